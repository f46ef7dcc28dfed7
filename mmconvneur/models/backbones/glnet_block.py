"""The block of GLNet (arXiv 2411.14429) and the two mixings it is built with."""

from __future__ import annotations

import torch
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers.local_branch import LayerNorm2d
from ..layers.padding import Layers, without_padding
from ..layers.token_attention import TokenAttention
from ..mixers.glmix import SoftClustering


class GlobalLocalMixing(BaseModule):
    """clustering(z, x) + 1x1(5x5 depthwise(1x1(z))): the mixer that is linear in the pixels."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.clustering = SoftClustering(dim, num_heads)
        self.local = Layers(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(
        self, z: Tensor, x: Tensor, mask: Tensor | None, local_mask: Tensor | None
    ) -> Tensor:
        return self.clustering(z, x, mask) + self.local(z, local_mask)


class FullAttention(BaseModule):
    """Self-attention among all pixels of z, quadratic in their number."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = TokenAttention(dim, num_heads)

    def forward(
        self, z: Tensor, x: Tensor, mask: Tensor | None, local_mask: Tensor | None
    ) -> Tensor:
        pixels = z.permute(0, 2, 3, 1)  # (B, H, W, C)
        out = self.attention(pixels.flatten(1, 2), mask).unflatten(1, pixels.shape[1:3])
        return out.permute(0, 3, 1, 2)


MIXINGS: dict[str, type[nn.Module]] = {'glmix': GlobalLocalMixing, 'attention': FullAttention}


class ResidualDepthwiseConv(nn.Conv2d):
    """x + 3x3 depthwise(x)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class GLNetBlock(BaseModule):
    """One block; p and the convolution d are the identity without ``overlap``.

        y = p(x),                               p(x) = x + 3x3 depthwise(x)
        y = y + DropPath(g_1 mix(LN(y), x))     slots are pooled from x itself
        y = y + DropPath(g_2 MLP(LN(y))),       MLP = 1x1, d, GELU, 1x1

    Args:
        dim: Channels C.
        mixing: ``(z, x, mask, local_mask) -> (B, C, H, W)``.
        mlp_ratio: Hidden channels of the MLP over C.
        overlap: Whether p and d are residual 3x3 depthwise convolutions.
        layer_scale: Initial g_1 and g_2, one value per channel; ``None``: 1, not learnt.
        drop_path: Probability that an image skips a residual in training.
        with_cp: Recompute the block in the backward pass instead of storing its activations.
    """

    def __init__(
        self,
        dim: int,
        mixing: nn.Module,
        mlp_ratio: float,
        overlap: bool,
        layer_scale: float | None,
        drop_path: float,
        with_cp: bool,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)

        def scale() -> nn.Module:
            if layer_scale is None:
                return nn.Identity()
            return LayerScale(dim, data_format='channels_first', scale=layer_scale)

        self.position = ResidualDepthwiseConv(dim) if overlap else nn.Identity()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.mixing = mixing
        self.mlp = Layers(
            nn.Conv2d(dim, hidden, 1),
            ResidualDepthwiseConv(hidden) if overlap else nn.Identity(),
            nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
        )
        self.scale1, self.scale2 = scale(), scale()
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, mask: Tensor | None = None, local_mask: Tensor | None = None
    ) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; masks as in :class:`LocalBlock`."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self.block, x, mask, local_mask, use_reentrant=False)
        return self.block(x, mask, local_mask)

    def block(self, x: Tensor, mask: Tensor | None, local_mask: Tensor | None) -> Tensor:
        y = self.position(without_padding(x, local_mask))
        mixed = self.mixing(self.norm1(y), x, mask, local_mask)
        y = y + self.drop_path(self.scale1(mixed))
        return y + self.drop_path(self.scale2(self.mlp(self.norm2(y), local_mask)))
