"""Multi-head self-attention among tokens (arXiv 1706.03762)."""

from __future__ import annotations

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError


def attend(qkv: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q_i k_i^T / sqrt(d)) v_i for every head i, ``(B, N, 3 C) -> (B, N, C)``.

    ``mask (B, 1, H, W)``, H W = N: 1 = a token that is attended to.
    """
    queries, keys, values = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    valid = None if mask is None else mask.flatten(2).unsqueeze(1).bool()  # (B, 1, 1, N)
    out = F.scaled_dot_product_attention(queries, keys, values, valid)  # (B, h, N, d)
    return out.transpose(1, 2).flatten(2)


class TokenAttention(BaseModule):
    """W_o [softmax(q_i k_i^T / sqrt(d)) v_i for every head i], ``(B, N, C) -> (B, N, C)``.

    q, k, v are linear in the tokens and cut into heads of d = C / h channels. 4 N C^2 + 2 N^2 C
    multiplications per image; the N x N weights are not stored, as they are by PyTorch's own
    ``MultiheadAttention`` in inference on a CPU.

    Args:
        dim: Channels C.
        num_heads: Heads h; must divide ``dim``.

    Raises:
        UsageError: If the heads do not divide the channels.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            heads = ', '.join(str(h) for h in range(1, dim + 1) if dim % h == 0)
            raise UsageError(f'num_heads={num_heads} must divide the {dim} channels: take {heads}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.qkv, self.out_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def init_weights(self) -> None:
        super().init_weights()
        # The init_cfg of a backbone has just filled every Linear with smaller weights.
        self.reset_parameters()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, N, C) -> (B, N, C)``; mask as in :func:`attend`."""
        return self.out_proj(attend(self.qkv(tokens), self.num_heads, mask))
