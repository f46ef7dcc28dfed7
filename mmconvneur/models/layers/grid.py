"""A grid of cells over the valid rectangle of each image: means of its cells, and the way back.

Dimension key: B images, C channels, H x W pixels, S x S cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .padding import without_padding
from .precision import full_precision, widened


def adaptive_avg_pool(x: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """Averages over a ``size`` x ``size`` grid that spans the valid pixels: padding has no part.

    On a rectangle of valid pixels this is ``F.adaptive_avg_pool2d`` of the rectangle.

    Args:
        x: ``(B, C, H, W)``.
        size: S.
        mask: ``(B, 1, H, W)``, 1 = a valid pixel.

    Returns:
        ``(B, C, S, S)``.
    """
    if mask is None:
        return F.adaptive_avg_pool2d(x, size)
    valid = mask.bool()
    with full_precision(x):
        pixels = widened(without_padding(x, valid))
        rows, columns = (cells(lines, size).to(pixels.dtype) for lines in valid_lines(valid))
        totals = along_axes(rows, pixels, columns)
        counts = rows @ valid.squeeze(1).to(pixels.dtype) @ columns.transpose(1, 2)
        return (totals / counts.clamp(min=1).unsqueeze(1)).to(x.dtype)


def spread_grid(grid: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Bilinear interpolation to the pixels that a grid spans, ``(B, C, S, S) -> (B, C, H, W)``.

    On a rectangle of valid pixels this is ``F.interpolate`` to the rectangle.

    Args:
        grid: ``(B, C, S, S)``.
        shape: H and W.
        mask: ``(B, 1, H, W)``, 1 = a valid pixel.
    """
    if mask is None:
        return F.interpolate(grid, shape, mode='bilinear', align_corners=False)
    with full_precision(grid):
        wide = widened(grid)
        rows, columns = (nearness(lines, wide) for lines in valid_lines(mask.bool()))
        return along_axes(rows, wide, columns).to(grid.dtype)


def along_axes(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """R X C^T in each channel: ``(B, I, H), (B, C, H, W), (B, J, W) -> (B, C, I, J)``."""
    return rows.unsqueeze(1) @ x @ columns.transpose(1, 2).unsqueeze(1)


def valid_lines(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows ``(B, H)`` and columns ``(B, W)`` hold a valid pixel of ``(B, 1, H, W)``."""
    return valid.any(3).squeeze(1), valid.any(2).squeeze(1)


def cells(valid: Tensor, size: int) -> Tensor:
    """Which of L lines belong to each of S cells, ``(B, L) -> (B, S, L)``, all bool.

    Cell i of l valid lines holds those from floor(i l / S) up to ceil((i + 1) l / S).
    """
    rank, count = (n.unsqueeze(1) for n in ranks(valid))
    cell = torch.arange(size, device=valid.device)[:, None]
    # Both positive: in ONNX, a quotient of negative numbers is not rounded down.
    first, end = cell * count // size, ((cell + 1) * count + size - 1) // size
    return (first <= rank) & (rank < end) & valid.unsqueeze(1)


def nearness(valid: Tensor, grid: Tensor) -> Tensor:
    """Weights of the cells of a grid, whose centres lie evenly over the valid lines.

    ``(B, L)``, ``(B, C, S, S) -> (B, L, S)``.
    """
    rank, count = (n.unsqueeze(2).to(grid.dtype) for n in ranks(valid))
    size = grid.size(2)
    place = ((rank + 0.5) * size / count.clamp(min=1) - 0.5).clamp(0, size - 1)
    return (1 - (place - torch.arange(size, device=valid.device)).abs()).clamp(min=0)


def ranks(valid: Tensor) -> tuple[Tensor, Tensor]:
    """The number of valid lines before each of L, and of all: ``(B, L)``, ``(B, 1)``."""
    valid = valid.long()  # ONNX adds no bools
    return valid.cumsum(1) - 1, valid.sum(1, keepdim=True)
