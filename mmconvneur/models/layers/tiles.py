"""1x1 convolutions, and how a chain of them runs fast on a CPU.

Dimension key: B images, N positions, C and C' channels.

A CPU spends its time on memory that it touches for the first time: the hidden layer of one block
at stride 4 of an 800 x 1280 image is 98 MB, filled once and read once. Tile by tile it stays in
the cache. GPUs and compilers get the whole map. docs/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.compat import is_compiling

TILE = 8192  # positions; the hidden layer of ConvNeur-T at stride 4 then takes 13 MB
MIN_ROWS = 512  # with fewer, a convolution spends its time on reordering its weights


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    return x.device.type == 'cpu' and not (is_compiling() or torch.jit.is_tracing())


def in_tiles(layer: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, ``(B, N, C) -> (B, N, C')``, for a function of each position alone.

    Where something looks inside ``layer`` (see ``unseen``), the whole map passes at once.
    """
    if not unseen(layer, x):
        return function(x)
    first, *tiles = x.split(max(1, TILE // max(1, x.size(0))), dim=1)
    done = function(first)
    if not tiles:
        return done
    out = done.new_empty(x.size(0), x.size(1), done.size(2))
    places = out.split(first.size(1), dim=1)
    places[0].copy_(done)
    for place, tile in zip(places[1:], tiles, strict=True):
        place.copy_(function(tile))
    return out


def unseen(layer: nn.Module, x: Tensor) -> bool:
    """Whether nothing and nobody looks at what is inside a layer: inference on a CPU, no hooks."""
    hooks = (m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    return not torch.is_grad_enabled() and runs_eagerly_on_cpu(x) and not any(hooks)


class Linear(nn.Linear):
    """x W^T + b, ``(..., C) -> (..., C')``.

    On a CPU as a 1x1 convolution of a channels_last map: oneDNN's kernel is up to a third faster
    in float32 than the BLAS that a matrix product calls. With a single thread PyTorch would use a
    slower kernel of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        eager = runs_eagerly_on_cpu(x) and x.dtype == torch.float32
        if not eager or x.numel() < MIN_ROWS * x.size(-1) or torch.get_num_threads() == 1:
            return F.linear(x, self.weight, self.bias)
        # (1, C, rows, 1), channels_last
        rows = x.reshape(1, -1, 1, x.size(-1)).permute(0, 3, 1, 2)
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
