"""Neural memory: a global branch whose weights are fitted to the image inside the forward pass.

Dimension key: B images, N = H W tokens, h heads, d head width, C channels of the block, C_m = h d
channels of the memory.

Sources: ConvNeur (arXiv 2603.19567) for the branch; Titans (arXiv 2501.00663) for the inner loss;
ViT^3 (arXiv 2512.01643) for one batch of all tokens; DeltaNet (arXiv 2406.06484) for the
short convolution. The write weights per token and the doubling of steps are this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...registry import MIXERS
from ..layers.padding import without_padding
from ..layers.precision import full_precision, widened
from .base import BottleneckMixer, check_num_heads, half_width, masked_softmax

DOUBLINGS = 4  # of the number of gradient steps


class ImageNorm(nn.GroupNorm):
    """(x - mean) / deviation of each channel over an image, scaled and shifted: an instance norm.

    ``(B, C, H, W) -> (B, C, H, W)``. Unlike PyTorch's it takes maps of a single position and a mask
    ``(B, 1, H, W)``, 1 = a valid position: the others, finite, do not count and become 0.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)  # each channel is a group

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # For channels_last, PyTorch's CPU kernel subtracts squares: small deviations get lost.
        x = x.contiguous()
        if mask is None:
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        with full_precision(x):
            wide = widened(x)
            # The part of each valid position in a mean, (B, N, 1): a matrix product takes it.
            count = mask.sum((2, 3), keepdim=True, dtype=wide.dtype).clamp(min=1)
            parts = (mask / count).flatten(2).transpose(-2, -1)
            centred = wide - (wide.flatten(2) @ parts).unsqueeze(3)
            variance = centred.square().flatten(2) @ parts  # (B, C, 1)
            scale = self.weight[:, None] * (variance + self.eps).rsqrt()
            normed = torch.addcmul(self.bias[:, None, None], centred, scale.unsqueeze(3))
        return without_padding(normed, mask).to(self.weight.dtype)


class TokenLinear(nn.Conv1d):
    """W x + b for each token, ``(B, C, N) -> (B, C', N)``: a 1x1 convolution as a matrix product.

    On a CPU, a convolution would first bring thousands of tokens into a layout of its own.
    """

    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.squeeze(2).expand(x.size(0), -1, -1)
        return torch.bmm(weight, x) + self.bias[:, None]


def fit(keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """M after 16 steps of gradient descent from M = 0 on the loss of :class:`NeuralMemory`.

        M <- M - grad L(M) = M + R - H M,   H = sum_n w_n k_n^T k_n,   R = sum_n w_n k_n^T v_n

    After t steps M_t = S_t R, S_t = (1 - (1 - H)^t) / H, so that twice as many are as cheap as one:

        M_2t = 2 M_t - H_t M_t,   H_2t = 2 H_t - H_t H_t,   H_t = 1 - (1 - H)^t

    The eigenvalues of H lie in [0, 1], so nothing can diverge.

    Args:
        keys: ``(B, h, d, N)``, columns of unit length.
        values: ``(B, h, d, N)``.
        weights: ``(B, h, N)``, which sum to 1 over the tokens.

    Returns:
        M, ``(B, h, d, d)``.
    """
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # (B h, d, N)
    weighted = weights.flatten(0, 1).unsqueeze(1) * keys
    # M_t and H_t side by side: both change by the same product.
    both = weighted @ torch.cat([values, keys], dim=1).transpose(1, 2)  # (B h, d, 2 d)
    size = values.size(1)
    for _ in range(DOUBLINGS):
        both = torch.baddbmm(both, both[..., size:], both, beta=2, alpha=-1)
    return both[..., :size].unflatten(0, weights.shape[:2])


@MIXERS.register_module()
class NeuralMemory(BottleneckMixer):
    """A linear memory that is fitted to the whole image, then read by every token.

        z = ImageNorm(W_in x),  q, k, v = linear(conv3x3(z)),  q and k of unit length per head
        w = softmax over the image of A z, per head
        M = 16 steps of gradient descent on L(M) = 1/2 sum_n w_n ||k_n M - v_n||^2 from M = 0
        G = W_out (q M)

    A softmax can pick a few tokens out of thousands. Normalised over the image, the channels in
    which most tokens are alike drown neither the writing nor the keys of those in which a few stand
    out. The depthwise convolution binds what lies side by side, so that one token can hold a key
    and its value. After 16 steps a token is read almost as it was written, however small its
    weight; one step would store it in proportion to that. With a weighted mean over unit keys steps
    need no size at any resolution. But for the convolution, the order of the tokens does not
    matter.

    Args:
        dim: Channels C of the block.
        memory_dim: Channels C_m; default half of ``dim``, rounded to a multiple of 8, at least 64.
        num_heads: Heads h; must divide ``memory_dim``.

    Raises:
        UsageError: If C_m is not positive or the heads do not divide it.
    """

    def __init__(self, dim: int, memory_dim: int | None = None, num_heads: int = 8) -> None:
        # A head of fewer than 8 channels cannot keep a handful of pairs apart.
        memory_dim = max(64, half_width(dim)) if memory_dim is None else memory_dim
        super().__init__(dim, memory_dim)
        check_num_heads(num_heads, 'memory_dim', memory_dim)
        self.num_heads = num_heads
        self.norm = ImageNorm(memory_dim)
        self.short_conv = nn.Conv2d(memory_dim, memory_dim, 3, padding=1, groups=memory_dim)
        self.qkv = TokenLinear(memory_dim, 3 * memory_dim)
        self.write_logits = nn.Conv1d(memory_dim, num_heads, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start neutral (W_out = 0) but ready to learn: unit-scale values, selective writing."""
        super().reset_parameters()
        # Channels have deviation 1, so logits start with deviation 4: each head writes a handful of
        # tokens that stand out. Near-equal weights would dilute a small cue among thousands of
        # tokens until its gradient is lost in noise.
        nn.init.normal_(self.write_logits.weight, std=4 * self.bottleneck_dim**-0.5)
        self.short_conv.reset_parameters()  # PyTorch's: Xavier's takes all channels for inputs
        with torch.no_grad():  # queries start as keys: from the start, like reads what like wrote
            queries, keys, _ = self.qkv.weight.chunk(3)
            queries.copy_(keys)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`GlobalMixer.forward`: padding is not written into the memory."""
        z = self.tokens(x, mask)
        queries, keys, values = self.project(z)
        weights = self.write_weights(z, mask)
        with full_precision(x):
            memory = fit(keys, values, weights)
            read = memory.transpose(2, 3) @ queries  # (B, h, d, N)
        read = read.to(z.dtype).flatten(1, 2)  # (B, C_m, N)
        return self.project_out(read.unflatten(2, x.shape[-2:]))

    def tokens(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """z, ``(B, C, H, W) -> (B, C_m, H, W)``, zero on padding whatever that holds."""
        x = without_padding(x, mask)
        return self.norm(self.in_proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), mask)

    def project(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, ``(B, C_m, H, W) -> (B, h, d, N)`` each, q and k of unit length."""
        qkv = widened(self.qkv(self.short_conv(z).flatten(2)))  # (B, 3 C_m, N)
        qkv = qkv.unflatten(1, (3, self.num_heads, -1)).transpose(0, 1).contiguous()
        # PyTorch's norm over a dimension that is not the last takes ten times as long on a CPU.
        squares = qkv[:2].square().sum(3, keepdim=True)
        queries, keys = (qkv[:2] * squares.clamp(min=1e-12).rsqrt()).unbind(0)
        return queries, keys, qkv[2]

    def write_weights(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """w, ``(B, C_m, H, W) -> (B, h, N)``."""
        valid = None if mask is None else mask.flatten(2).bool()  # (B, 1, N)
        return masked_softmax(widened(self.write_logits(z.flatten(2))), valid)
