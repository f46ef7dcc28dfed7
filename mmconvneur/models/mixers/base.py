"""Base classes of global branches: last layer, bottleneck, padding left out."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import UsageError
from ..layers.padding import without_padding
from ..layers.tiles import Linear


class GlobalMixer(BaseModule):
    """G = W_out f(x): a global branch whose last layer starts at zero, so that its gate is neutral.

    A subclass adds the layers of f to ``__init__``, starts them in ``reset_parameters``, and ends
    ``__init__`` with a call of that.

    Args:
        mixed_dim: Channels of f(x).
        dim: Channels C of the block.
    """

    def __init__(self, mixed_dim: int, dim: int) -> None:
        super().__init__()
        self.out_proj = Linear(mixed_dim, dim)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def init_weights(self) -> None:
        super().init_weights()
        # The backbone's init_cfg has just filled every layer as if it were an ordinary one.
        self.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x (B, C, H, W) -> (B, C, H, W)``, valid pixels without influence of padding.

        ``mask (B, 1, H, W)``: 1 = a valid pixel, 0 = padding, whatever that holds; ``None``: no
        padding. Every image has a valid pixel.
        """
        raise NotImplementedError

    def project_out(self, mixed: Tensor) -> Tensor:
        """W_out f(x), ``(B, mixed_dim, H, W) -> (B, C, H, W)``."""
        # A linear layer takes what is not contiguous in three kernels.
        return self.out_proj(mixed.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class BottleneckMixer(GlobalMixer):
    """G = W_out f(LayerNorm(W_in x)) with a global map f among C_m channels, ``mix``.

    W_in: C -> C_m and W_out: C_m -> C are 1x1 convolutions.

    Args:
        dim: Channels C of the block.
        bottleneck_dim: Channels C_m; default half of ``dim``, rounded to a multiple of 8.

    Raises:
        UsageError: If ``bottleneck_dim`` is not positive.
    """

    def __init__(self, dim: int, bottleneck_dim: int | None = None) -> None:
        if bottleneck_dim is None:
            bottleneck_dim = half_width(dim)
        if bottleneck_dim < 1:
            raise UsageError(f'bottleneck_dim={bottleneck_dim} must be positive')
        super().__init__(bottleneck_dim, dim)
        self.bottleneck_dim = bottleneck_dim
        self.in_proj = Linear(dim, bottleneck_dim)
        self.norm: nn.Module = nn.LayerNorm(bottleneck_dim, eps=1e-6)

    def mix(self, maps: Tensor, mask: Tensor | None) -> Tensor:
        """f: ``(B, C_m, H, W) -> (B, C_m, H, W)``; mask as in :meth:`forward`."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`GlobalMixer.forward`."""
        x = without_padding(x, mask)
        tokens = self.norm(self.in_proj(x.permute(0, 2, 3, 1)))  # (B, H, W, C_m)
        return self.project_out(self.mix(tokens.permute(0, 3, 1, 2), mask))

    def reset_parameters(self) -> None:
        """Start neutral (W_out = 0) but ready to learn: no layer before it at zero."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        super().reset_parameters()


def masked_softmax(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over the last dimension, among what is ``valid`` (1 or 0) there; zero elsewhere."""
    if valid is None:
        return logits.softmax(-1)
    valid = valid.bool()
    weights = torch.where(valid, logits, lowest(logits)).softmax(-1)
    return torch.where(valid, weights, weights.new_zeros(()))  # also where nothing is valid


def lowest(x: Tensor) -> Tensor:
    """The lowest number of x's type, of that type: the exporter of PyTorch 2.1 does not convert."""
    return x.new_full((), torch.finfo(x.dtype).min)


def half_width(dim: int) -> int:
    """Half of ``dim`` channels, rounded to a multiple of 8: what a global branch works with."""
    return max(8, (dim // 2 + 4) // 8 * 8)


def check_num_heads(num_heads: int, option: str, width: int) -> None:
    """Raise ``UsageError`` unless the heads divide the channels that an option sets."""
    if num_heads < 1 or width < 1 or width % num_heads:
        raise UsageError(
            f'num_heads={num_heads} must divide {option}={width}: '
            f'set global_mixer.num_heads or {option} accordingly'
        )
