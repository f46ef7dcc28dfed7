"""Inner models of the neural memory: small functions f(x; W) that are fitted inside a forward pass.

Dimension key: ... any leading dimensions (image, head, chunk), N tokens, d head width.

Each inner model is given by ``apply(W, x)`` and by a step down the weighted loss

    L(W) = 1/2 sum_n w_n ||f(k_n; W) - v_n||^2

in closed form, so that the memory is updated without autograd inside the forward pass and the whole
stays differentiable. The 1/2 absorbs the factor 2 of the squared error. The step is the gradient,
or for ``ridge`` what leads to the minimum itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = tuple[Tensor, ...]

RIDGE = 1e-2  # lambda


class InnerModel(NamedTuple):
    """An inner model with ``num_weights`` matrices, each ``(..., d, d)``.

    Attributes:
        num_weights: How many matrices W holds.
        apply: ``(W, x (..., N, d)) -> (..., N, d)``.
        change: ``(W, D, x) -> f(x; W + D) - f(x; W)``.
        step: ``(W, keys (..., N, d), values (..., N, d), w (..., N)) -> D``, each ``(..., d, d)``,
            to be subtracted from W.
        init_std: Standard deviation of the initial matrices for a head width d.
        solve: Where f is linear in one matrix W, the step from the two sums over tokens that it
            takes, ``(W, R, H) -> D`` with R = K^T (w * V) and H = K^T (w * K), each
            ``(..., d, d)``; else ``None``.
    """

    num_weights: int
    apply: Callable[[Weights, Tensor], Tensor]
    change: Callable[[Weights, Weights, Tensor], Tensor]
    step: Callable[[Weights, Tensor, Tensor, Tensor], Weights]
    init_std: Callable[[int], float]
    solve: Callable[[Weights, Tensor, Tensor], Weights] | None = None


def silu_derivative(x: Tensor) -> Tensor:
    """d/dx SiLU(x) = s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def linear(weights: Weights, x: Tensor) -> Tensor:
    """f(x; W) = x W."""
    (w,) = weights
    return x @ w


def linear_change(weights: Weights, change: Weights, x: Tensor) -> Tensor:
    """x D: one product, because f is linear in W."""
    return linear(change, x)


def gradient_solve(weights: Weights, cross: Tensor, curvature: Tensor) -> Weights:
    """G = K^T (w * (K W - V)) = H W - R."""
    (w,) = weights
    return (curvature @ w - cross,)


def ridge_solve(weights: Weights, cross: Tensor, curvature: Tensor) -> Weights:
    """(H + lambda I)^-1 G: from W to the minimum of L(W') + lambda/2 ||W' - W||^2.

    A ridge regression: what is read for a key is the value written with it, however small its
    weight among the others, as long as that is large beside lambda (MesaNet, arXiv 2506.05233).
    """
    gradient = gradient_solve(weights, cross, curvature)
    # Unlike torch.linalg.solve it does not make a CPU wait for its GPU to report success.
    return (torch.linalg.solve_ex(regularised(curvature), *gradient).result,)


def regularised(curvature: Tensor) -> Tensor:
    """H + lambda I. With unit keys and weights that sum to one the trace of H is 1."""
    eye = torch.eye(curvature.size(-1), dtype=curvature.dtype, device=curvature.device)
    return curvature + RIDGE * eye


def matrix_memory(init_std: Callable[[int], float], solve: Callable[..., Weights]) -> InnerModel:
    """f(x; W) = x W with a step that two sums over tokens decide."""

    def step(weights: Weights, keys: Tensor, values: Tensor, w: Tensor) -> Weights:
        weighted = w.unsqueeze(-1) * keys
        return solve(weights, weighted.mT @ values, weighted.mT @ keys)

    return InnerModel(1, linear, linear_change, step, init_std, solve)


def two_layer(weights: Weights, x: Tensor) -> Tensor:
    """f(x; W1, W2) = SiLU(x W1) W2."""
    w1, w2 = weights
    return F.silu(x @ w1) @ w2


def two_layer_gradient(weights: Weights, keys: Tensor, values: Tensor, w: Tensor) -> Weights:
    """G1 = K^T [(E W2^T) * SiLU'(Z)], G2 = SiLU(Z)^T E with Z = K W1."""
    w1, w2 = weights
    z = keys @ w1
    hidden = F.silu(z)
    error = w.unsqueeze(-1) * (hidden @ w2 - values)
    return keys.mT @ ((error @ w2.mT) * silu_derivative(z)), hidden.mT @ error


def gated(weights: Weights, x: Tensor) -> Tensor:
    """f(x; W1, W2) = (x W1) * SiLU(x W2)."""
    w1, w2 = weights
    return (x @ w1) * F.silu(x @ w2)


def gated_gradient(weights: Weights, keys: Tensor, values: Tensor, w: Tensor) -> Weights:
    """G1 = K^T (E * SiLU(Z2)), G2 = K^T (E * Z1 * SiLU'(Z2)) with Z1 = K W1, Z2 = K W2."""
    w1, w2 = weights
    z1, z2 = keys @ w1, keys @ w2
    gate = F.silu(z2)
    error = w.unsqueeze(-1) * (z1 * gate - values)
    return keys.mT @ (error * gate), keys.mT @ (error * z1 * silu_derivative(z2))


def _change(apply: Callable[[Weights, Tensor], Tensor]) -> Callable[..., Tensor]:
    def change(weights: Weights, change: Weights, x: Tensor) -> Tensor:
        changed = tuple(w + d for w, d in zip(weights, change, strict=True))
        return apply(changed, x) - apply(weights, x)

    return change


def _fan_in(width: int) -> float:
    # A product of two near-zero matrices is never written to: their gradients vanish together.
    return width**-0.5


def _near_zero(width: int) -> float:
    return 0.02


INNER_MODELS = {
    'ridge': matrix_memory(_near_zero, ridge_solve),
    'linear': matrix_memory(_near_zero, gradient_solve),
    'two_layer': InnerModel(2, two_layer, _change(two_layer), two_layer_gradient, _fan_in),
    'gated': InnerModel(2, gated, _change(gated), gated_gradient, _fan_in),
}
