"""Padding: which part of a padded image is its own, and how the rest is kept out.

A batch holds images of one size. What is missing at the bottom and the right of the smaller ones is
filled with a constant, by the data preprocessors of mmdet and mmseg after normalisation, or by a
``Pad`` transform before it.

Dimension key: B images, C channels, H x W pixels, h x w positions of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import Sequential
from torch import Tensor, nn

from ...errors import UsageError
from .tiles import runs_eagerly_on_cpu


def own_area(x: Tensor, img_shapes: Sequence | Tensor | None = None) -> Tensor | None:
    """Where the pixels are an image's own: a rectangle in its top left corner.

    Padding is what trailing rows and columns hold if that is one constant per channel, whichever,
    or NaN; then once more inside what is left, for a letterbox that the batch padded again. An
    image of a single constant has no padding. From a GPU nothing is read back, so that the mask is
    ``None`` only where ``img_shapes`` say so.

    Args:
        x: ``(B, C, H, W)``.
        img_shapes: Height and width of each image, ``(B, 2)``, where they are known.

    Returns:
        ``(B, 1, H, W)``, bool; ``None`` where it is known that there is no padding.

    Raises:
        UsageError: For ``img_shapes`` that are no sizes of these images.
    """
    if img_shapes is not None:
        heights, widths = given_sizes(x, img_shapes)
    elif readable(x) and not ends_in_constants(x).any():
        return None
    else:
        heights, widths = own_sizes(x)
    if readable(heights) and (heights == x.size(2)).all() and (widths == x.size(3)).all():
        return None
    heights, widths = (n.to(x.device, non_blocking=True) for n in (heights, widths))
    rows, columns = line_numbers(x)
    return rectangles(rows, columns, heights, widths).unsqueeze(1)


def readable(x: Tensor) -> bool:
    """Whether Python may look at values: not on a GPU, in a recorded graph or of a FakeTensor."""
    return runs_eagerly_on_cpu(x) and type(x) is Tensor


def ends_in_constants(x: Tensor) -> Tensor:
    """Whether the last row or the last column of each image may be padding, ``(B,)``."""
    corner, row, column = x[..., -1:, -1:], x[..., -1, :], x[..., -1]
    return ~(differs(row, corner[..., 0]).any(1) & differs(column, corner[..., 0]).any(1))


def own_sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Heights and widths, ``(B,)`` each, of what trailing constants leave of ``(B, C, H, W)``."""
    rows, columns = line_numbers(x)
    own = differs(x, x[..., -1:, -1:])
    heights, widths = last(own.any(2), rows, x.size(2)), last(own.any(1), columns, x.size(3))
    # A frame within: the same inside what is left.
    pixel = (heights * x.size(3) + widths - (x.size(3) + 1))[:, None, None]
    corner = x.flatten(2).gather(2, pixel.expand(-1, x.size(1), 1))
    own = differs(x, corner.unsqueeze(3)) & rectangles(rows, columns, heights, widths)
    return last(own.any(2), rows, heights), last(own.any(1), columns, widths)


def differs(x: Tensor, constant: Tensor) -> Tensor:
    """Where a pixel of ``(B, C, ...)`` is neither a constant nor NaN in some channel."""
    return ((x != constant) & (x == x)).any(1)


def last(own: Tensor, numbers: Tensor, otherwise: Tensor | int) -> Tensor:
    """The number of the last line that is ``own (B, L)``; ``otherwise`` where none is."""
    found = (own * numbers).amax(1)
    return torch.where(found > 0, found, otherwise)


def line_numbers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows and columns, from 1."""
    rows, columns = (torch.arange(1, n + 1, device=x.device) for n in x.shape[2:])
    return rows, columns


def rectangles(rows: Tensor, columns: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """The first rows and columns of each image, ``(B, H, W)``, bool."""
    inside_rows, inside_columns = rows <= heights[:, None], columns <= widths[:, None]
    return inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)


def given_sizes(x: Tensor, img_shapes: Sequence | Tensor) -> tuple[Tensor, Tensor]:
    sizes = torch.as_tensor(img_shapes)
    if sizes.shape != (x.size(0), 2):
        raise UsageError(
            f'img_shapes has the shape {tuple(sizes.shape)}: '
            f'give height and width of each of the {x.size(0)} images'
        )
    largest = torch.tensor(x.shape[2:])
    if sizes.is_cpu and not ((sizes > 0) & (sizes <= largest)).all():
        raise UsageError(
            f'img_shapes={sizes.tolist()}: give sizes from 1 x 1 to '
            f'{x.size(2)} x {x.size(3)}, the size of the batch'
        )
    return sizes[:, 0], sizes[:, 1]


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (B, C, h, w)`` with zeros where ``mask (B, 1, h, w)`` is 0, whatever it holds there."""
    if mask is None:
        return x
    absent = ~mask.bool().permute(0, 2, 3, 1)
    return x.permute(0, 2, 3, 1).masked_fill(absent, 0).permute(0, 3, 1, 2)


def finite_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (B, C, h, w)`` with zeros for NaN and infinity where ``mask (B, 1, h, w)`` is 0."""
    return x if mask is None else torch.where(mask, x, x.nan_to_num(0, 0, 0))


def coarser(mask: Tensor | None, stride: int, x: Tensor) -> Tensor | None:
    """The mask of ``x (B, C, h, w)``, a map of ``stride`` times fewer rows and columns.

    A position is an image's own if one of its pixels is.
    """
    if mask is None:
        return None
    # By numbers: for slices torch.export would demand sizes that the strides divide.
    for axis in (2, 3):
        first = torch.arange(x.size(axis), device=mask.device) * stride
        mask = mask.index_select(axis, first)
    return mask


class Stage(Sequential):
    """Blocks one after the other, each called with the masks too."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, local_mask: Tensor | None = None
    ) -> Tensor:
        for block in self:
            x = block(x, mask, local_mask)
        return x


class Layers(nn.Sequential):
    """Layers one after the other, whose convolutions see zeros where a mask is 0.

    Those of 1x1 see a position alone and need no mask.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x (B, C, h, w)``; ``mask (B, 1, h, w)``, 1 = a valid position, or ``None``."""
        for layer in self:
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                x = layer(without_padding(x, mask))
                mask = coarser(mask, layer.stride[0], x)
            else:
                x = layer(x)
        return x
