"""Inner models of a chunked memory: small maps f(x; W) whose weights are fitted to a chunk.

Dimension key: N tokens of a chunk, d width of a head; leading dimensions are independent memories.

Each comes with the gradient of the weighted loss

    L(W) = 1/2 sum_n w_n ||f(k_n; W) - v_n||^2

in closed form, so that the memory is updated without autograd inside the forward pass and the whole
stays differentiable. The 1/2 absorbs the factor 2 of the squared error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

Weights = tuple[Tensor, ...]


class InnerModel(NamedTuple):
    """An inner model with ``num_weights`` matrices, each ``(..., d, d)``.

    Attributes:
        num_weights: How many matrices W holds.
        apply: ``(W, x (..., N, d)) -> (..., N, d)``.
        gradient: ``(W, keys (..., N, d), values (..., N, d), w (..., N)) -> dL/dW``, each
            ``(..., d, d)``.
        init_std: Standard deviation of the initial matrices for a head width d.
    """

    num_weights: int
    apply: Callable[[Weights, Tensor], Tensor]
    gradient: Callable[[Weights, Tensor, Tensor, Tensor], Weights]
    init_std: Callable[[int], float]


def linear(weights: Weights, x: Tensor) -> Tensor:
    """f(x; W) = x W."""
    (w,) = weights
    return x @ w


def linear_gradient(weights: Weights, keys: Tensor, values: Tensor, w: Tensor) -> Weights:
    """G = K^T E with E = w (K W - V)."""
    return (keys.mT @ (w.unsqueeze(-1) * (linear(weights, keys) - values)),)


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


def silu_derivative(x: Tensor) -> Tensor:
    """d/dx SiLU(x) = s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def _near_zero(width: int) -> float:
    return 0.02


def _fan_in(width: int) -> float:
    # A product of two near-zero matrices is never written to: their gradients vanish together.
    return width**-0.5


INNER_MODELS = {
    'linear': InnerModel(1, linear, linear_gradient, _near_zero),
    'two_layer': InnerModel(2, two_layer, two_layer_gradient, _fan_in),
    'gated': InnerModel(2, gated, gated_gradient, _fan_in),
}
