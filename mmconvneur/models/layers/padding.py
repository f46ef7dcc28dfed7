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

FRAMES = 2  # one around the other: a letterbox, and what the batch adds to it


def own_area(x: Tensor, img_shapes: Sequence | Tensor | None = None) -> Tensor | None:
    """Where the pixels are an image's own: a rectangle in its top left corner.

    Padding is what trailing rows and columns hold if that is one constant per channel, whichever;
    then again inside what is left. NaN counts as one constant. An image of a single constant has
    no padding. On a GPU nothing is read back: no copy of the batch waits for another.

    Args:
        x: ``(B, C, H, W)``.
        img_shapes: Height and width of each image, ``(B, 2)``, where they are known.

    Returns:
        ``(B, 1, H, W)``, bool; ``None`` where it is known that there is no padding.

    Raises:
        UsageError: For ``img_shapes`` that are no sizes of these images.
    """
    if img_shapes is None:
        heights, widths = own_sizes(x)
    else:
        heights, widths = given_sizes(x, img_shapes)
    # FakeTensor and its like hold no values either.
    if runs_eagerly_on_cpu(heights) and type(x) is Tensor:
        if (heights == x.size(2)).all() and (widths == x.size(3)).all():
            return None
    return rectangles(x, heights.to(x.device), widths.to(x.device)).unsqueeze(1)


def own_sizes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Heights and widths, ``(B,)`` each, of what trailing constants leave of ``(B, C, H, W)``."""
    height, width = x.shape[2:]
    heights = torch.full_like(x[:, 0, 0, 0], height, dtype=torch.long)
    widths = torch.full_like(heights, width)
    number = x == x
    for _ in range(FRAMES):
        last = (heights - 1) * width + widths - 1
        corner = x.flatten(2).gather(2, last[:, None, None].expand(-1, x.size(1), 1))
        own = (number & (x != corner.unsqueeze(3))).any(1) & rectangles(x, heights, widths)
        heights, widths = last_line(own.any(2), heights), last_line(own.any(1), widths)
    return heights, widths


def last_line(own: Tensor, otherwise: Tensor) -> Tensor:
    """The number of the last line that is ``own (B, L)``, from 1; ``otherwise`` where none is."""
    last = (own * torch.arange(1, own.size(1) + 1, device=own.device)).amax(1)
    return torch.where(last > 0, last, otherwise)


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
    return sizes.unbind(1)


def rectangles(x: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """The first rows and columns of each image, ``(B, H, W)``, bool."""
    rows = torch.arange(x.size(2), device=x.device) < heights.unsqueeze(1)
    columns = torch.arange(x.size(3), device=x.device) < widths.unsqueeze(1)
    return rows.unsqueeze(2) & columns.unsqueeze(1)


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (B, C, h, w)`` with zeros where ``mask (B, 1, h, w)`` is 0, whatever it holds there."""
    return x if mask is None else torch.where(mask.bool(), x, 0)


def finite_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x (B, C, h, w)`` with zeros for NaN and infinity where ``mask (B, 1, h, w)`` is 0."""
    return x if mask is None else torch.where(mask, x, x.nan_to_num(0, 0, 0))


def coarser(mask: Tensor | None, stride: int, x: Tensor) -> Tensor | None:
    """The mask of ``x (B, C, h, w)``, a map of ``stride`` times fewer rows and columns.

    A position is an image's own if one of its pixels is.
    """
    if mask is None:
        return None
    height, width = (stride * length for length in x.shape[2:])
    return mask[..., :height:stride, :width:stride].contiguous()


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
