"""Fusion of the two branches, and the block of the paper's figure."""

from __future__ import annotations

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .tokens import pool_tokens, spread_tokens


class GateFusion(nn.Module):
    """sigmoid(G) * F_loc: the global context modulates, and is never added (ConvNeur)."""

    start = 0.5  # of F_loc that passes while G is zero

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        return context.sigmoid() * local


class AddFusion(nn.Module):
    """F_loc + G."""

    start = 1.0

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        return local + context


class ConcatFusion(BaseModule):
    """W [F_loc, G] with a 1x1 convolution W that starts as [I, I]: as F_loc + G.

    With [I, 0] a mixer whose last layer starts at zero would never be heard: neither the layer
    nor its half of W would get a gradient.
    """

    start = 1.0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * dim, dim)
        self.reset_start()

    def reset_start(self) -> None:
        with torch.no_grad():
            for half in self.merge.weight.chunk(2, dim=1):
                nn.init.eye_(half)
        nn.init.zeros_(self.merge.bias)

    def init_weights(self) -> None:
        super().init_weights()
        self.reset_start()

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        both = torch.cat([local, context], dim=1).permute(0, 2, 3, 1)  # (B, H, W, 2 C)
        return self.merge(both).permute(0, 3, 1, 2)


FUSIONS: dict[str, type[nn.Module]] = {'gate': GateFusion, 'add': AddFusion, 'concat': ConcatFusion}


class LocalBlock(BaseModule):
    """X + DropPath(F_loc(X)): a ConvNeXt block.

    Args:
        local_branch: ``(B, C, H, W) -> (B, C, H, W)``.
        drop_path: Probability that an image skips the block in training.
        with_cp: Recompute the block in the backward pass instead of storing its activations.
    """

    def __init__(self, local_branch: nn.Module, drop_path: float, with_cp: bool) -> None:
        super().__init__()
        self.local_branch = local_branch
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, mask: Tensor | None = None, local_mask: Tensor | None = None
    ) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; masks ``(B, 1, H, W)``: 1 = a valid position.

        The global branch takes nothing from the rest of ``mask``, and the local branch sees zeros
        in the rest of ``local_mask``.
        """
        inputs = x, mask, local_mask
        if self.with_cp and torch.is_grad_enabled():
            return x + self.drop_path(checkpoint(self.residual, *inputs, use_reentrant=False))
        return x + self.drop_path(self.residual(*inputs))

    def residual(self, x: Tensor, mask: Tensor | None, local_mask: Tensor | None) -> Tensor:
        return self.local_branch(x, local_mask)


class ConvNeurBlock(LocalBlock):
    """X + DropPath(fusion(F_loc(X), G(X))), with the gate X + DropPath(sigmoid(G) * F_loc).

        G(X) = spread(mixer(pool(X)))

    The mixer sees tokens that stand for ``token_size`` x ``token_size`` positions each.

    Args:
        local_branch, drop_path, with_cp: As in :class:`LocalBlock`.
        global_branch: A mixer, ``(B, C, H, W) -> (B, C, H, W)``.
        fusion: ``(F_loc, G) -> (B, C, H, W)``.
        token_size: 1: the mixer gets every position as it is.
    """

    def __init__(
        self,
        local_branch: nn.Module,
        global_branch: nn.Module,
        fusion: nn.Module,
        drop_path: float,
        with_cp: bool,
        token_size: int,
    ) -> None:
        super().__init__(local_branch, drop_path, with_cp)
        self.global_branch = global_branch
        self.fusion = fusion
        self.token_size = token_size

    def residual(self, x: Tensor, mask: Tensor | None, local_mask: Tensor | None) -> Tensor:
        return self.fusion(self.local_branch(x, local_mask), self.context(x, mask))

    def context(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """G(X), ``(B, C, H, W) -> (B, C, H, W)``."""
        if self.token_size == 1:
            return self.global_branch(x, mask)
        tokens, valid = pool_tokens(x, self.token_size, mask)
        mixed = self.global_branch(tokens, valid)
        return spread_tokens(mixed, x.shape[-2:], valid)
