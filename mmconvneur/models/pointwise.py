"""What treats every position alike, and how it runs fast on a CPU.

Dimension key: B images, N positions, C and C' channels.

There, time goes into memory that is touched for the first time: the hidden layer of one block at
stride 4 of an 800 x 1280 image is 98 MB, filled once and read once. Strip by strip it stays in the
cache. GPUs and compilers want the whole at once and get it. docs/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

STRIP = 8192  # positions; the widest hidden layer at stride 4 then takes 13 MB
MIN_ROWS = 512  # with fewer, a convolution spends its time on reordering its weights


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == 'cpu' and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    )


def strips(x: Tensor) -> tuple[Tensor, ...]:
    """Consecutive positions of ``x (B, N, C)``, few enough for the cache of a CPU."""
    if not runs_eagerly_on_cpu(x):
        return (x,)
    return x.split(max(1, STRIP // x.size(0)), dim=1)


def by_strips(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, ``(B, N, C) -> (B, N, C')``, for one that treats every position alike."""
    pieces = strips(x)
    if len(pieces) == 1:
        return function(x)
    if torch.is_grad_enabled():
        return torch.cat([function(piece) for piece in pieces], dim=1)
    first = function(pieces[0])
    out = first.new_empty(*x.shape[:2], first.size(2))
    places = strips(out)
    places[0].copy_(first)
    for place, piece in zip(places[1:], pieces[1:], strict=True):
        place.copy_(function(piece))
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b, ``(B, N, C) -> (B, N, C')``.

    On a CPU as a 1x1 convolution of a channels_last map: oneDNN's kernel is up to a third faster
    in float32 than the BLAS that a matrix product calls.
    """
    eager = runs_eagerly_on_cpu(x) and x.dtype == torch.float32
    if not eager or x.size(0) * x.size(1) < MIN_ROWS:
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.size(-1)).permute(0, 3, 1, 2)
    out = F.conv2d(image, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:2], -1)


class Linear(nn.Linear):
    """:func:`linear` with weights of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, of which the backward pass is left x alone: what is cheap is computed again.

    GELU's output is as wide as its input; without it a training step needs a quarter less memory.
    A compiler chooses for itself what it keeps.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


class GELU(nn.Module):
    """x Phi(x); in place where no gradient needs x, because allocation takes longer on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)
