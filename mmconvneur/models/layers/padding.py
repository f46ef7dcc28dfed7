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

    Padding is what trailing rows and columns hold if that is one constant per channel, whichever;
    NaN and infinity count as zeros. An image of a single constant has no padding. From a GPU
    nothing is read back, so that the mask is ``None`` only where ``img_shapes`` say so.

    Args:
        x: ``(B, C, H, W)``.
        img_shapes: Height and width of each image, ``(B, 2)``, where they are known.

    Returns:
        ``(B, 1, H, W)``, bool; ``None`` where it is known that there is no padding.

    Raises:
        UsageError: For ``img_shapes`` that are no sizes of these images.
    """
    if img_shapes is not None:
        ends = [sizes - 1 for sizes in given_sizes(x, img_shapes)]
    elif readable(x) and not may_be_padded(x):
        return None
    else:
        own = differs_from_corner(x)
        ends = [last(own.any(2)), last(own.any(1))]
    ends_of_axes = [(ends[0], x.size(2)), (ends[1], x.size(3))]
    if all(readable(end) and (end == size - 1).all() for end, size in ends_of_axes):
        return None
    rows, columns = [
        torch.arange(size, device=x.device) <= end.to(x.device, non_blocking=True)[:, None]
        for end, size in ends_of_axes
    ]
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def readable(x: Tensor) -> bool:
    """Whether Python may look at values: not on a GPU, in a recorded graph or of a FakeTensor."""
    return runs_eagerly_on_cpu(x) and type(x) is Tensor


def may_be_padded(x: Tensor) -> bool:
    """Whether in some image the last two pixels of the last row or column are the same."""
    own = differs_from_corner(x[..., -2:, -2:])
    return not all(above and left for (_, above), (left, _) in own.tolist())


def differs_from_corner(x: Tensor) -> Tensor:
    """Where a pixel of ``(B, C, H, W)`` is another than the last one, ``(B, H, W)``."""
    x = x.nan_to_num(0, 0, 0)
    return (x != x[..., -1:, -1:]).any(1)


def last(own: Tensor) -> Tensor:
    """The index of the last line that is ``own (B, L)``; L - 1 where none is."""
    indices = torch.arange(own.size(1), device=own.device)
    return indices[torch.where(own, indices, -1).amax(1)]


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
    valid = mask.bool().permute(0, 2, 3, 1)
    # A zero of x's own type: the exporter of PyTorch 2.1 writes a number's own type.
    return torch.where(valid, x.permute(0, 2, 3, 1), x.new_zeros(())).permute(0, 3, 1, 2)


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
        first = torch.arange(0, x.size(axis) * stride, stride, device=mask.device)
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
