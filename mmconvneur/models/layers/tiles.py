"""Layers that treat every position alike, in tiles that fit a CPU's cache.

Dimension key: B images, N positions, C and C' channels.

There, time goes into memory that is touched for the first time: the hidden layer of one block at
stride 4 of an 800 x 1280 image is 98 MB, filled once and read once. Tile by tile it stays in the
cache. GPUs and compilers want the whole at once and get it. docs/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

TILE = 8192  # positions; the hidden layer of ConvNeur-T at stride 4 then takes 13 MB
MIN_ROWS = 512  # with fewer, a convolution spends its time on reordering its weights


def graph_is_recorded() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    return x.device.type == 'cpu' and not graph_is_recorded()


def tiles(x: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
    """Consecutive positions of ``x``, N in ``dim`` and B in 0, few enough for a CPU's cache."""
    if not runs_eagerly_on_cpu(x):
        return (x,)
    return x.split(max(1, TILE // max(1, x.size(0))), dim=dim)


def tiled(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, ``(B, N, C) -> (B, N, C')``, for one that treats every position alike."""
    return map_tiles(function, tiles(x))


def map_tiles(function: Callable[[Tensor], Tensor], tiles: Sequence[Tensor]) -> Tensor:
    """``function`` of each tile ``(B, n, C)``, put together: ``(B, N, C')``."""
    if len(tiles) == 1:
        return function(tiles[0])
    if torch.is_grad_enabled():
        return torch.cat([function(tile) for tile in tiles], dim=1)
    first = function(tiles[0])
    lengths = [tile.size(1) for tile in tiles]
    out = first.new_empty(first.size(0), sum(lengths), first.size(2))
    places = out.split(lengths, dim=1)
    places[0].copy_(first)
    for place, tile in zip(places[1:], tiles[1:], strict=True):
        place.copy_(function(tile))
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, ``(..., C) -> (..., C')``.

    On a CPU as a 1x1 convolution of a channels_last map: oneDNN's kernel is up to a third faster
    in float32 than the BLAS that a matrix product calls. With a single thread PyTorch would use a
    slower kernel of its own.
    """
    eager = runs_eagerly_on_cpu(x) and x.dtype == torch.float32
    if not eager or x.numel() < MIN_ROWS * x.size(-1) or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.size(-1)).permute(0, 3, 1, 2)  # (1, C, rows, 1), channels_last
    out = F.conv2d(rows, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """:func:`linear` with weights of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class GELULinear(torch.autograd.Function):
    """GELU(x) W^T + b, ``(B, N, C) -> (B, N, C')``, which keeps x for the backward pass only.

    GELU(x), as wide as x, is computed again there: a training step needs a quarter less memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(F.gelu(x), weight, bias)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # Under autocast x and the parameters may be float32 while the product was in bfloat16.
        dtype = gradient.dtype
        rows, into_x, into_weight = gradient.flatten(0, 1), None, None
        if ctx.needs_input_grad[0]:
            into_hidden = linear(gradient, weight.mT.to(dtype), None).to(x.dtype)
            into_x = torch.ops.aten.gelu_backward(into_hidden, x)
        if ctx.needs_input_grad[1]:
            into_weight = (rows.mT @ F.gelu(x).flatten(0, 1).to(dtype)).to(weight.dtype)
        return into_x, into_weight, rows.sum(0)


def gelu_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(GELU(x))``.

    Where no gradient is needed GELU overwrites x, because allocation takes longer on a CPU. A layer
    that took the place of ours (an adapter, a quantised one) is called as it is.
    """
    if not torch.is_grad_enabled():
        return layer(torch.ops.aten.gelu_(x))
    if type(layer) is not Linear or torch.compiler.is_compiling():
        return layer(F.gelu(x))
    return GELULinear.apply(x, layer.weight, layer.bias)
