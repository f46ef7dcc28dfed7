"""Gates, writes, reads and slots, recomputed from what passed the tap points.

Dimension key: N = H W tokens, h heads, d head width, C channels of the block, S slots; token p
reads, token n is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.mixers.neural_memory import fit
from .taps import FusionTap, MemoryTap


def gate(tap: FusionTap) -> Tensor:
    """sigmoid(G), ``(C, H, W)``: the share of F_loc that passes a ``GateFusion``."""
    return tap.context.sigmoid()


def slot_assignment(logits: Tensor) -> Tensor:
    """Softmax over the slots, ``(S, H, W)``: how much of each slot a pixel takes (GLMix)."""
    return logits.softmax(0)


@torch.no_grad()
def write_weights(tap: MemoryTap) -> Tensor:
    """w_n, ``(h, H, W)``: the weight of token n in the loss; they sum to one in each head."""
    return _weights(tap).squeeze(0).unflatten(1, tap.valid.shape)


def read_weights(tap: MemoryTap, row: int, column: int) -> Tensor:
    """a_pn, ``(h, H, W)``: the weight of each token n when the token p at a place of the map reads.

    What is read is linear in the values, the same for each channel of a head:

        y_p = q_p M = sum_n a_pn v_n,   a_pn = d y_p / d v_n
    """
    with torch.no_grad():
        weights = _weights(tap)
        queries, keys, values = tap.memory.project(tap.tokens[None])
    with torch.enable_grad():
        values.requires_grad_()
        memory = fit(keys, values, weights)  # (1, h, d, d)
        query = queries[..., row * tap.valid.size(1) + column]  # (1, h, d)
        first = (query.unsqueeze(-1) * memory).sum(2)[..., 0]  # a channel of each head
        (gradient,) = torch.autograd.grad(first.sum(), values)  # (1, h, d, N)
    return gradient[0, :, 0].unflatten(1, tap.valid.shape)


def _weights(tap: MemoryTap) -> Tensor:
    return tap.memory.write_weights(tap.tokens[None], tap.valid[None, None])
