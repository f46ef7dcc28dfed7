"""Spatial Bias: maps of global context from a small grid, without attention.

Source: "Spatial Bias for Attention-free Non-local Neural Networks" (arXiv 2302.12505).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from ...registry import MIXERS
from ..layers.grid import adaptive_avg_pool, spread_grid
from ..layers.padding import without_padding
from ..layers.precision import full_precision, widened
from .base import GlobalMixer

GRID = 10  # cells to a side, whatever the size of the image
NUM_REDUCED, NUM_BIASES = 5, 3
BATCH_NORM = dict(type='BN')


def masked_batch_norm(norm: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """``norm(x)`` whose statistics are those of the valid pixels, ``(B, C, H, W)``.

    Args:
        norm: A norm of ``(B, C, H, W)``; any but a batch norm treats padding as pixels.
        x: ``(B, C, H, W)``, finite.
        mask: ``(B, 1, H, W)``, 1 = a valid pixel.
    """
    measures = norm.training and isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if mask is None or not measures:
        return norm(x)

    def total(values: Tensor) -> Tensor:
        values = values.sum((0, 2, 3), keepdim=True)
        shared = isinstance(norm, nn.SyncBatchNorm) and distributed.is_initialized()
        return all_reduce(values) if shared else values

    valid = mask.bool()
    with full_precision(x):
        wide = widened(x)
        count = total(valid.to(wide.dtype))
        mean = total(torch.where(valid, wide, 0)) / count
        variance = total(torch.where(valid, wide - mean, 0).square()) / count
        normed = (wide - mean) * (variance + norm.eps).rsqrt()
        out = normed * norm.weight[:, None, None] + norm.bias[:, None, None]
        with torch.no_grad():
            norm.num_batches_tracked += 1
            unbiased = variance * count / (count - 1).clamp(min=1)
            for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running.lerp_(new.flatten().to(running.dtype), norm.momentum)
    return out.to(x.dtype)


class SpatialBiasMaps(nn.Module):
    """Three maps in which every pixel depends on the whole image.

        r = avgpool_{10x10}(ReLU(BN(W a))),   W: C -> 5 maps
        bias = upsample(conv1d(r)): the 100 cells are the channels of a convolution 100 -> 100 whose
        kernel of 3 slides over the 5 maps, so 3 are left

    Args:
        dim: Channels C.
        norm_cfg: The norm of the 5 maps.
    """

    def __init__(self, dim: int, norm_cfg: dict = BATCH_NORM) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, NUM_REDUCED, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, NUM_REDUCED)[1]
        self.mix = nn.Conv1d(GRID**2, GRID**2, NUM_REDUCED - NUM_BIASES + 1)

    def forward(
        self,
        x: Tensor,
        size: Sequence[int],
        mask: Tensor | None = None,
        out_mask: Tensor | None = None,
    ) -> Tensor:
        """``(B, C, H, W) -> (B, 3, *size)``, any H and W, also smaller than the grid.

        With ``mask (B, 1, H, W)`` and ``out_mask (B, 1, *size)``, 1 = a valid pixel, the grid lies
        over the valid part of each image, and the norm takes its statistics from it alone.
        """
        # Five maps are cheap to copy; of a channels_last norm torch.export would fix the width.
        maps = self.reduce(without_padding(x, mask)).contiguous()
        maps = masked_batch_norm(self.norm, maps, mask).relu()
        cells = adaptive_avg_pool(maps, GRID, mask).flatten(2)  # (B, 5, 100)
        cells = self.mix(cells.transpose(1, 2)).transpose(1, 2)  # (B, 3, 100)
        return spread_grid(cells.unflatten(2, (GRID, GRID)), size, out_mask)


@MIXERS.register_module()
class SpatialBias(GlobalMixer):
    """G = W_out bias(x), with the three maps of :class:`SpatialBiasMaps`.

    The projection W_out from 3 to C channels, which starts at zero, is this project's: the paper
    concatenates the maps inside a ResNet's bottleneck (:class:`SpatialBiasResNet`). In training the
    batch norm makes an image depend on its batch-mates, as every batch norm does.

    Args:
        dim: Channels C of the block.
        norm_cfg: The norm of the 5 maps, e.g. ``dict(type='SyncBN')``.
    """

    def __init__(self, dim: int, norm_cfg: dict = BATCH_NORM) -> None:
        super().__init__(NUM_BIASES, dim)
        self.bias = SpatialBiasMaps(dim, norm_cfg)
        self.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`GlobalMixer.forward`: the grid lies over the valid part of each image."""
        return self.project_out(self.bias(x, x.shape[-2:], mask, mask))
