"""Gates, writes, reads and slots, recomputed from what passed the tap points.

Dimension key: N = H W tokens, T chunks of L tokens, h heads, d head width, C channels of the block,
S slots; token p reads, token n is written.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp

from ..errors import UsageError
from ..models.mixers.inner_models import INNER_MODELS, regularised
from ..models.mixers.neural_memory import WriteRule, inner_dtype
from .taps import FusionTap, MemoryTap

PATH_POINTS = 16  # of the quadrature between M_0 and M_1


def gate(tap: FusionTap) -> Tensor:
    """sigmoid(G), ``(C, H, W)``: the share of F_loc that passes a ``GateFusion``."""
    return tap.context.sigmoid()


def slot_assignment(logits: Tensor) -> Tensor:
    """Softmax over the slots, ``(S, H, W)``: how much of each slot a pixel takes (GLMix)."""
    return logits.softmax(0)


@torch.no_grad()
def write_weights(tap: MemoryTap, chunks: int | None = None) -> Tensor:
    """c_n, ``(h, H, W)``: the weight in the memory of what token n wrote.

    The step of chunk j is G_j = sum_n w_n g_n over its tokens (for ridge g_n is multiplied by
    (H + lambda I)^-1), and unrolling S_t = eta_t S_{t-1} - theta_t G_t,
    M_t = (1 - alpha_t) M_{t-1} + S_t gives

        M_t = prod_s (1 - alpha_s) M_0 - sum_n c_n g_n,   c_n = C_tj theta_j w_n

    With the one chunk of the default c_n = w_n, which sum to one in each head.

    Args:
        tap: A memory and its tokens.
        chunks: t, the memory after so many chunks; default: after the last.
    """
    rule = _write_rule(tap)
    num_chunks = rule.weights.size(2)
    share = surprise = torch.zeros_like(rule.step[0])  # (h, T)
    for t in range(num_chunks if chunks is None else chunks):
        theta, eta, alpha = (rate[0, :, t, None] for rate in rule[1:])
        surprise = eta * surprise
        surprise[:, t] += theta[:, 0]
        share = (1 - alpha) * share + surprise
    coefficients = (share.unsqueeze(-1) * rule.weights[0]).flatten(1)  # (h, T L)
    return coefficients[:, : tap.valid.numel()].unflatten(1, tap.valid.shape)


def _write_rule(tap: MemoryTap) -> WriteRule:
    parts = _exact(tap.tokens).flatten(0, 1), tap.valid.flatten()
    return tap.memory.write_rule(*(tap.memory.chunked(part.unsqueeze(0)) for part in parts))


def projections(tap: MemoryTap) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each ``(h, N, d)``, q and k of unit length."""
    tokens, memory = tap.tokens.flatten(0, 1).unsqueeze(0), tap.memory
    maps = (f(tokens, inner_dtype(tokens)) for f in (memory.queries, memory.keys, memory.values))
    return tuple(x.squeeze(0).mT for x in maps)


@torch.no_grad()
def read_weights(tap: MemoryTap, row: int, column: int) -> Tensor:
    """a_pn, ``(h, H, W)``: the weight of each token n when the token p at a place of the map reads.

    With a linear map as inner model, whatever the chunks, and c_n as in :func:`write_weights` for
    the memory that p reads, what the image contributes to the readout is

        y_p = sum_n a_pn (v_n - k_n M),   a_pn = c_n (q_p . k_n)                      (linear)
                                          a_pn = c_n q_p (H + lambda I)^-1 k_n^T      (ridge)

    M being the memory at which the gradient of n was taken and H the second derivative of the loss
    of its chunk. Any other inner model f is followed
    along the straight path from M_0 to M_1 = M_0 + D, with J_x(M) the Jacobian of f(x; M) in M:

        y_p = f(q_p; M_1) - f(q_p; M_0) = sum_n c_n K_pn (v_n - f(k_n; M_0)),
        K_pn = int_0^1 J_{q_p}(M_0 + s D) ds  J_{k_n}(M_0)^T

    which is exact. K_pn is d x d, and the mean of its diagonal counts: a_pn = c_n tr K_pn / d. For
    the linear model K_pn = (q_p . k_n) I, so that the two agree.

    Raises:
        UsageError: For another inner model than these two with chunks: not defined here.
    """
    memory, token = tap.memory, row * tap.valid.size(1) + column
    length = memory.chunk_size or tap.valid.numel()
    coefficients = write_weights(tap, None if memory.read == 'after' else token // length)
    queries, keys, values = projections(tap)
    if memory.inner.solve is not None:
        query = queries[:, token, None, :, None]  # (h, 1, d, 1): the same for every chunk
        if memory.inner == INNER_MODELS['ridge']:
            query = torch.linalg.solve(regularised(_curvature(tap, keys)), query)
        kernel = (memory.chunked(keys) @ query).flatten(1)[:, : keys.size(1)]
    elif memory.read == 'after' and length >= tap.valid.numel():
        kernel = _path_kernel(tap, coefficients.flatten(1), queries[:, [token]], keys, values)
    else:
        raise UsageError(
            'read maps of a memory in chunks are defined for inner_model="ridge" and "linear" '
            'only, where what a token wrote does not depend on what was written before'
        )
    return coefficients * kernel.unflatten(1, tap.valid.shape)


def _curvature(tap: MemoryTap, keys: Tensor) -> Tensor:
    """H of each chunk, ``(h, N, d) -> (h, T, d, d)``."""
    chunks, weights = tap.memory.chunked(keys), _write_rule(tap).weights[0]  # (h, T, L, ...)
    return (weights.unsqueeze(-1) * chunks).mT @ chunks


def _path_kernel(
    tap: MemoryTap, coefficients: Tensor, query: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """tr K_pn / d of :func:`read_weights`, ``(h, N)``, by Gauss-Legendre quadrature over the path.

    ``coefficients (h, N)``, ``query (h, 1, d)``, ``keys`` and ``values (h, N, d)``.
    """
    apply = tap.memory.inner.apply
    initial = tuple(_exact(matrix.detach()) for matrix in tap.memory.initial)

    def loss(weights: tuple[Tensor, ...]) -> Tensor:
        errors = (apply(weights, keys) - values).square().sum(-1)
        return (coefficients * errors).sum() / 2

    def read(weights: tuple[Tensor, ...]) -> Tensor:
        return apply(weights, query).sum((0, 1))  # (d,): heads share no weight

    slope = grad(loss)(initial)  # -D
    jacobian = [0.0] * len(initial)  # each (d, h, d, d)
    for place, share in zip(*np.polynomial.legendre.leggauss(PATH_POINTS), strict=True):
        way = (place + 1) / 2  # from [-1, 1] to [0, 1]
        weights = tuple(m - way * g for m, g in zip(initial, slope, strict=True))
        jacobian = [
            j + share / 2 * new for j, new in zip(jacobian, jacrev(read)(weights), strict=True)
        ]
    # The i-th entry of the diagonal: f_i at the keys, along the gradient of f_i at the query.
    diagonal = (
        jvp(lambda *w: apply(w, keys), initial, direction)[1][..., i]
        for i, direction in enumerate(zip(*jacobian, strict=True))
    )
    return sum(diagonal) / keys.size(-1)


def _exact(x: Tensor) -> Tensor:
    return x.to(inner_dtype(x))
