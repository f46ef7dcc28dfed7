"""Compact tokens: a coarse grid on which a global branch works, and the way back to the map.

Dimension key: B images, C channels, H x W positions, s x s positions to a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pool_tokens(x: Tensor, size: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Means over ``size`` x ``size`` positions, at the edges over those that exist.

    Args:
        x: ``(B, C, H, W)``, any H and W.
        size: s, positions to a token along each side.
        mask: ``(B, 1, H, W)``, 1 = a valid position; means are over those alone, and a token is
            valid where it has any.

    Returns:
        Tokens ``(B, C, ceil(H / s), ceil(W / s))`` and their mask, ``None`` where none was given.
    """
    if mask is None:
        return _mean(x, size), None
    valid = mask.bool()
    share = _mean(valid.to(x.dtype), size)  # of a token's positions that are valid
    total = _mean(x.masked_fill(~valid, 0), size)
    return total / share.clamp(min=size**-2), share > 0


def _mean(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(x, size, ceil_mode=True, count_include_pad=False)


def spread_tokens(
    tokens: Tensor, size: int, shape: tuple[int, int], mask: Tensor | None = None
) -> Tensor:
    """Bilinear interpolation between the centres of tokens, ``(B, C, h, w) -> (B, C, *shape)``.

    The inverse grid of :func:`pool_tokens`: it does not shift where H or W is no multiple of s.
    With a mask, what is not valid has no part in the interpolation, as if the grid ended there.
    """
    if mask is None:
        return _enlarge(tokens, size, shape)
    valid = mask.to(tokens.dtype)
    share = _enlarge(valid, size, shape)
    spread = _enlarge(tokens.masked_fill(~mask.bool(), 0), size, shape)
    return spread / share.clamp(min=torch.finfo(share.dtype).tiny)


def _enlarge(x: Tensor, size: int, shape: tuple[int, int]) -> Tensor:
    # By the factor, not to the shape, which would stretch a last token that is cut off.
    x = F.interpolate(x, scale_factor=float(size), mode='bilinear', align_corners=False)
    return x[..., : shape[0], : shape[1]]
