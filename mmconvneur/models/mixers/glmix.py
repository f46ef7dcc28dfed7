"""GLMix: pixels are softly clustered to slots, the slots attend to each other and are handed back.

Dimension key: B images, N = H W pixels, C channels, S slots.

Source: GLMix (arXiv 2411.14429).
"""

from __future__ import annotations

import math

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError
from ...registry import MIXERS
from ..layers.grid import adaptive_avg_pool
from ..layers.local_branch import LayerNorm2d
from ..layers.padding import without_padding
from ..layers.token_attention import TokenAttention
from .base import GlobalMixer, masked_softmax


class SlotAffinity(nn.Module):
    """Logits A = s cos(slot, pixel), with one learnable s per block.

    The tap point of slot maps: a forward hook on a module called ``affinity`` receives A, whose
    softmax over the slots assigns every pixel to them.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        # One axis, not none: MMEngine's flat_decay_mult and FSDP overlook scalars.
        self.scale = nn.Parameter(torch.full((1,), float(scale)))

    def forward(self, slots: Tensor, pixels: Tensor) -> Tensor:
        """``slots (B, S, C)``, ``pixels (B, N, C) -> (B, S, N)``."""
        slots = F.normalize(slots, dim=-1, eps=1e-6)
        return self.scale * slots @ F.normalize(pixels, dim=-1, eps=1e-6).transpose(-2, -1)


class SoftClustering(BaseModule):
    """Soft clustering of GLMix and GLNet: slots, gather, attention, dispatch.

        P = slots: the means of x, the block's input, over a square grid of S cells
        A = s cos(P, z)                  z: the normalised input
        Q = softmax over pixels (A) z    gather
        Q = TokenAttention(Q)            no norm, residual or MLP
        y = softmax over slots (A)^T Q   dispatch

    A map smaller than the grid repeats its pixels. 3 S N C + 4 S C^2 + 2 S^2 C multiplications:
    linear in the number of pixels.

    Args:
        dim: Channels C.
        num_heads: Heads of the attention among slots; must divide ``dim``.
        num_slots: S, a square number.
        scale_init_value: The first s; default C^-1/2, as published.

    Raises:
        UsageError: For a number of slots that is not positive or not a square, or heads that do
            not divide the channels.
    """

    def __init__(
        self, dim: int, num_heads: int, num_slots: int = 64, scale_init_value: float | None = None
    ) -> None:
        super().__init__()
        if num_slots < 1:
            raise UsageError(f'num_slots={num_slots} must be positive: take 64')
        self.size = math.isqrt(num_slots)
        if self.size**2 != num_slots:
            raise UsageError(
                f'num_slots={num_slots} is not a square, as pooling to a grid needs: '
                f'take {self.size**2} or {(self.size + 1) ** 2}'
            )
        self.affinity = SlotAffinity(dim**-0.5 if scale_init_value is None else scale_init_value)
        self.attention = TokenAttention(dim, num_heads)

    def forward(self, z: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``z, x (B, C, H, W) -> (B, C, H, W)``; ``mask (B, 1, H, W)``: 1 = a valid pixel."""
        pixels = z.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        slots = adaptive_avg_pool(x, self.size, mask).flatten(2).transpose(-2, -1)  # (B, S, C)
        logits = self.affinity(slots, pixels)  # (B, S, N)
        valid = None if mask is None else mask.flatten(2)  # (B, 1, N)
        slots = self.attention(masked_softmax(logits, valid) @ pixels)  # (B, S, C)
        out = logits.softmax(1).transpose(-2, -1) @ slots
        return out.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2)


@MIXERS.register_module()
class GLMix(GlobalMixer):
    """Soft clustering as a global branch: G = W_out clustering(LayerNorm(x), x).

    See :class:`SoftClustering` for the equations and the cost, to which W_out adds N C^2.

    Args:
        dim: Channels C of the block.
        num_slots: S, a square number.
        num_heads: Heads of the attention among slots; must divide ``dim``.
        scale_init_value: Where s starts; default C^-1/2, at which each slot is nearly a mean of the
            image. With 10 it can tell pixels apart from the start.

    Raises:
        UsageError: As :class:`SoftClustering`.
    """

    def __init__(
        self,
        dim: int,
        num_slots: int = 64,
        num_heads: int = 4,
        scale_init_value: float | None = None,
    ) -> None:
        super().__init__(dim, dim)
        self.norm = LayerNorm2d(dim)
        self.clustering = SoftClustering(dim, num_heads, num_slots, scale_init_value)
        self.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`GlobalMixer.forward`: padding is neither pooled nor gathered."""
        x = without_padding(x, mask)
        return self.project_out(self.clustering(self.norm(x), x, mask))
