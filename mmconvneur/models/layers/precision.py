"""Sums over thousands of tokens need full precision, also under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """In float32 at least: sums over thousands of tokens are taken in it."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> AbstractContextManager:
    """Where autocast must not narrow what was :func:`widened`."""
    try:
        return torch.autocast(x.device.type, enabled=False)
    except RuntimeError:  # a device without autocast
        return nullcontext()
