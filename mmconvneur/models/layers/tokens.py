"""Compact tokens: a coarse grid on which a global branch works, and the way back to the map.

Dimension key: B images, C channels, H x W positions, s x s positions to a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .padding import without_padding


def pool_tokens(x: Tensor, size: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Means over ``size`` x ``size`` positions; what is left at the edges is dropped.

    Args:
        x: ``(B, C, H, W)``, H and W of at least s.
        size: s, positions to a token along each side.
        mask: ``(B, 1, H, W)``, 1 = a valid position; means are over those alone, and a token is
            valid where it has any.

    Returns:
        Tokens ``(B, C, floor(H / s), floor(W / s))`` and their mask, ``None`` where none was given.
    """
    if mask is None:
        return F.avg_pool2d(x, size), None
    share = F.avg_pool2d(mask.to(x.dtype), size)  # of a token's positions that are valid
    total = F.avg_pool2d(without_padding(x, mask), size)
    return total / share.clamp(min=size**-2), share > 0


def spread_tokens(tokens: Tensor, shape: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Bilinear interpolation to a map, ``(B, C, h, w) -> (B, C, *shape)``.

    With a mask, what is not valid has no part in the interpolation, as if the grid ended there.
    """
    if mask is None:
        return F.interpolate(tokens, shape, mode='bilinear', align_corners=False)
    share = spread_tokens(mask.to(tokens.dtype), shape)
    spread = spread_tokens(without_padding(tokens, mask), shape)
    return spread / share.clamp(min=torch.finfo(share.dtype).tiny)
