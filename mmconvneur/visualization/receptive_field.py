"""Effective receptive field of any backbone (arXiv 1701.04128, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class ReceptiveField(NamedTuple):
    """The pixels that a place depends on, ``field (H, W)``, and the pixel at its middle."""

    field: Tensor
    row: int
    column: int


def effective_receptive_field(
    backbone: nn.Module,
    image: Tensor,
    channels: int = 16,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> ReceptiveField:
    """Dependence of the centre of the last map on each pixel, by its gradient.

        E = mean_c sum_i |dy_c / dx_i|

    with y_c the centre of channel c of the last map and x_i channel i of the image: averaged over
    channels of one image. Of more than ``channels`` channels, evenly spaced ones are taken.

    Args:
        backbone: Any module that returns a map or a sequence of maps.
        image: ``(1, 3, H, W)``, as the backbone takes it.
        channels: How many channels to average over, with a backward pass for each.
        progress: Wraps those passes, to show how many there are.
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    x = image.detach().clone().requires_grad_()
    field = torch.zeros_like(x[0, 0])
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            maps = backbone(x)
            last = maps if isinstance(maps, Tensor) else maps[-1]
            row, column = (side // 2 for side in last.shape[-2:])
            centre = last[0, :, row, column]
            chosen = np.linspace(0, len(centre) - 1, min(channels, len(centre))).round().astype(int)
            for channel in progress(chosen):
                # Not autograd.grad, which reentrant checkpointing (in mmdet's ResNet) refuses.
                centre[channel].backward(retain_graph=True)
                assert x.grad is not None
                field += x.grad[0].abs().sum(0)
                x.grad = None
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    strides = (size / side for size, side in zip(field.shape, last.shape[-2:], strict=True))
    row, column = (int((i + 0.5) * s) for i, s in zip((row, column), strides, strict=True))
    return ReceptiveField(field / len(chosen), row, column)


def square_holding(receptive: ReceptiveField, share: float) -> int:
    """Side in pixels of the smallest square about the centre that holds a share of the field."""
    field = receptive.field.double().cpu()
    rows = (torch.arange(field.size(0)) - receptive.row).abs()
    columns = (torch.arange(field.size(1)) - receptive.column).abs()
    distance = torch.maximum(rows[:, None], columns)  # Chebyshev: (H, W)
    held = torch.bincount(distance.flatten(), weights=field.flatten()).cumsum(0)
    return 2 * int((held < share * held[-1]).sum()) + 1
