"""Local branch: the residual function of a ConvNeXt block (arXiv 2201.03545, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .padding import without_padding
from .tiles import Linear, in_tiles, unseen


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each position, ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # Both permutes are views; on channels_last input the normalised axis is contiguous.
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class LocalBranch(nn.Module):
    """F_loc = gamma * W_2 GELU(W_1 LayerNorm(depthwise conv(x))), ``(B, C, H, W)`` in and out.

    Args:
        dim: Channels C.
        mlp_ratio: Hidden channels over C.
        kernel_size: Side of the depthwise kernel, odd.
        gamma: Initial layer scale, one value per channel.
    """

    def __init__(self, dim: int, mlp_ratio: float, kernel_size: int, gamma: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.depthwise_conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pointwise_conv1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.pointwise_conv2 = Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(gamma)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask (B, 1, H, W)``: 0 = the convolution sees a zero there."""
        height, width = x.shape[-2:]
        x = self.depthwise_conv(without_padding(x, mask))
        x = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        x = in_tiles(self, self.mix_channels, x)
        return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def mix_channels(self, x: Tensor) -> Tensor:
        x = self.pointwise_conv1(self.norm(x))
        # The hidden layer is the largest tensor: a second one of its size would leave the cache.
        in_place = type(self.act) is nn.GELU and unseen(self, x)
        x = torch.ops.aten.gelu_(x) if in_place else self.act(x)
        return self.gamma * self.pointwise_conv2(x)
