"""The attentions of the paper's comparison (ConvNeur, arXiv 2603.19567), under one bottleneck.

Dimension key: B images, N = H W tokens, h heads, d head width, C_m = h d channels.
"""

from __future__ import annotations

import torch
from mmcv.cnn import NonLocal2d
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MIXERS
from ..layers.padding import without_padding
from ..layers.precision import widened
from ..layers.token_attention import attend
from .base import BottleneckMixer, check_num_heads, lowest


@MIXERS.register_module()
class SelfAttention(BottleneckMixer):
    """Multi-head self-attention among all pixels (arXiv 1706.03762).

        f(z) = softmax(q k^T / sqrt(d)) v per head,   q, k, v = linear(z)

    Without position encoding, as a memory has none. 2 N^2 C_m multiplications; PyTorch's fused
    kernels need memory for N tokens only, its plain one for h N^2 numbers.

    Args:
        dim, bottleneck_dim: As in :class:`BottleneckMixer`.
        num_heads: Heads h; must divide ``bottleneck_dim``.

    Raises:
        UsageError: As :class:`BottleneckMixer`, and for heads that do not divide C_m.
    """

    def __init__(self, dim: int, bottleneck_dim: int | None = None, num_heads: int = 4) -> None:
        super().__init__(dim, bottleneck_dim)
        check_num_heads(num_heads, 'bottleneck_dim', self.bottleneck_dim)
        self.num_heads = num_heads
        self.qkv = nn.Linear(self.bottleneck_dim, 3 * self.bottleneck_dim)
        self.reset_parameters()

    def mix(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)  # (B, N, C_m)
        out = attend(self.qkv(tokens), self.num_heads, mask)
        return out.transpose(1, 2).unflatten(2, maps.shape[-2:])


class NonLocalMap(NonLocal2d):
    """f of :class:`NonLocal`, with the layers and the names of mmcv's block."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        queries, keys, values = (
            layer(x).flatten(2).transpose(1, 2) for layer in (self.theta, self.phi, self.g)
        )
        valid = None if mask is None else mask.flatten(2).bool()  # (B, 1, N)
        out = F.scaled_dot_product_attention(queries, keys, values, valid)  # (B, N, C_m / 2)
        return self.conv_out(out.transpose(1, 2).unflatten(2, x.shape[-2:]))


@MIXERS.register_module()
class NonLocal(BottleneckMixer):
    """The non-local block (arXiv 1711.07971) with the layers of mmcv's ``NonLocal2d``.

        f(z) = W softmax(theta(z) phi(z)^T / sqrt(C_m / 2)) g(z),   theta, phi, g: C_m -> C_m / 2

    mmcv's block returns z + f(z) and starts with W = 0. Here only the global part is wanted, and
    behind the zero W_out a second zero would leave both without a gradient for ever, so W does not
    start at zero.

    Args:
        dim, bottleneck_dim: As in :class:`BottleneckMixer`.

    Raises:
        UsageError: As :class:`BottleneckMixer`.
    """

    def __init__(self, dim: int, bottleneck_dim: int | None = None) -> None:
        super().__init__(dim, bottleneck_dim)
        self.block = NonLocalMap(self.bottleneck_dim)
        self.reset_parameters()

    def mix(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        return self.block(maps, mask)


@MIXERS.register_module()
class CBAM(BottleneckMixer):
    """Channel attention, then spatial attention (CBAM, arXiv 1807.06521, equations 1 to 3).

        z'   = sigmoid(MLP(mean over pixels of z) + MLP(max over pixels of z)) * z
        f(z) = sigmoid(conv7x7[mean over channels of z', max over channels of z']) * z'

    The MLP has C_m / 16 hidden channels, but at least 8.

    Args:
        dim, bottleneck_dim: As in :class:`BottleneckMixer`.

    Raises:
        UsageError: As :class:`BottleneckMixer`.
    """

    def __init__(self, dim: int, bottleneck_dim: int | None = None) -> None:
        super().__init__(dim, bottleneck_dim)
        hidden = max(8, self.bottleneck_dim // 16)
        self.channel = nn.Sequential(
            nn.Linear(self.bottleneck_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.bottleneck_dim),
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.reset_parameters()

    def mix(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        which = sum(self.channel(v) for v in mean_and_max(maps, mask))  # (B, C_m)
        maps = which.sigmoid()[..., None, None] * maps
        pooled = torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], dim=1)
        where = self.spatial(without_padding(pooled, mask))  # (B, 1, H, W)
        return where.sigmoid() * maps


def mean_and_max(maps: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Over the valid pixels of each image, ``(B, C, H, W) -> (B, C)`` each."""
    if mask is None:
        return maps.mean((2, 3)), maps.amax((2, 3))
    valid = mask.bool()
    total = without_padding(maps, mask).sum((2, 3), dtype=widened(maps).dtype)
    largest = torch.where(valid, maps, lowest(maps)).amax((2, 3))
    return (total / valid.sum((2, 3))).to(maps.dtype), largest
