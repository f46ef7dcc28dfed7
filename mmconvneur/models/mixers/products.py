"""Products and norms whose gradients come in the layout of their operands.

PyTorch gives the gradient of a transposed operand of a batched product as a transposed view.
Where tokens are many and channels few, every later pass then jumps through memory, which takes a
CPU several times as long. docs/performance.md has the figures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..layers.tiles import graph_is_recorded


def product(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Tensor:
    """A B + bias, ``(B, N, K), (B, K, M) -> (B, N, M)``, with A = a or a^T and B = b or b^T."""
    return _apply(Product, a, b, bias, transpose_a, transpose_b)


def gram(x: Tensor) -> Tensor:
    """x^T x, ``(B, N, C) -> (B, C, C)``."""
    return _apply(Gram, x)


def unit_length(x: Tensor) -> Tensor:
    """x / max(|x|, 1e-6) over d, ``(B, h, d, N) -> (B, h, d, N)``."""
    return _apply(UnitLength, x)[0]


def _apply(function: type[torch.autograd.Function], *inputs) -> Tensor | tuple[Tensor, ...]:
    """``function`` with its own gradient, unless none is needed or a graph is being recorded."""
    own = torch.is_grad_enabled() and not graph_is_recorded()
    return (function.apply if own else function.forward)(*inputs)


class Product(torch.autograd.Function):
    """:func:`product`: dA = G B^T and dB = A^T G, each transposed as its operand was."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor, b: Tensor, bias: Tensor | None, transpose_a: bool, transpose_b: bool
    ) -> Tensor:
        left, right = a.mT if transpose_a else a, b.mT if transpose_b else b
        return left @ right if bias is None else torch.baddbmm(bias, left, right)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
        a, b, bias, ctx.transpose_a, ctx.transpose_b = inputs
        ctx.save_for_backward(a, b)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        # Under autocast the operands may be float32 while the product was in bfloat16.
        a, b = (x.to(gradient.dtype) for x in operands)
        left, right = a.mT if ctx.transpose_a else a, b.mT if ctx.transpose_b else b
        into_a = into_b = into_bias = None
        if ctx.needs_input_grad[0]:
            into_a = right @ gradient.mT if ctx.transpose_a else gradient @ right.mT
            into_a = into_a.to(operands[0].dtype)
        if ctx.needs_input_grad[1]:
            into_b = gradient.mT @ left if ctx.transpose_b else left.mT @ gradient
            into_b = into_b.to(operands[1].dtype)
        if ctx.needs_input_grad[2]:
            shape, dtype = ctx.bias
            into_bias = gradient.sum_to_size(shape).to(dtype)
        return into_a, into_b, into_bias, None, None


class Gram(torch.autograd.Function):
    """:func:`gram`: its gradient x (G + G^T) is one product, where autograd would take two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mT @ x

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x @ (gradient + gradient.mT)


class UnitLength(torch.autograd.Function):
    """:func:`unit_length` y and the scale s = 1 / max(|x|, 1e-6), whose gradients are G and g.

    With |x| above the floor dx = s (G - y (y . G + s g)), below it dx = s G.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        # Several times as fast along the tokens as F.normalize, whose norm jumps through x.
        scale = x.square().sum(2, keepdim=True).clamp(min=1e-12).rsqrt()
        return x * scale, scale

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, into_scale: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (gradient * y).sum(2, keepdim=True) + scale * into_scale
        along = torch.where(scale < 1e6, along, 0.0)
        return torch.addcmul(gradient, y, along, value=-1) * scale
