"""Memories that are written chunk by chunk, the form of the ConvNeur paper among them.

Dimension key: B images, N = H W tokens, T chunks of L tokens, h heads, d head width, C channels of
the block, C_m = h d channels of the memory.

Sources: ConvNeur (arXiv 2603.19567) for the branch, Titans (arXiv 2501.00663, section 3) for
momentum and decay, ViT^3 (arXiv 2512.01643) for the inner models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError, check_choice
from ...registry import MIXERS
from ..layers.padding import without_padding
from ..layers.precision import full_precision, widened
from .base import BottleneckMixer, check_num_heads, masked_softmax
from .inner_models import INNER_MODELS, InnerModel, Weights


class WriteRule(NamedTuple):
    """Write strength of each token and each chunk.

    Attributes:
        weights: ``(B, h, T, L)``, the weight of each token in the loss of its chunk.
        lr: ``(B, h, T)``, the inner learning rate theta_t.
        momentum: ``(B, h, T)``, eta_t.
        decay: ``(B, h, T)``, alpha_t.
    """

    weights: Tensor
    lr: Tensor
    momentum: Tensor
    decay: Tensor


def running_states(
    inner: InnerModel, initial: Weights, keys: Tensor, values: Tensor, rule: WriteRule
) -> Weights:
    """All memories M_0 ... M_T when each chunk's gradient is taken at the memory before it.

        S_t = eta_t S_{t-1} - theta_t grad L_t(M_{t-1}),   M_t = (1 - alpha_t) M_{t-1} + S_t

    Args:
        inner: The inner model.
        initial: M_0, each matrix ``(h, d, d)``.
        keys, values: ``(B, h, T, L, d)``.
        rule: Write weights and rates.

    Returns:
        Each matrix of the inner model as ``(B, h, T + 1, d, d)``.
    """
    batch, _, num_chunks = rule.lr.shape
    state = tuple(m.expand(batch, *m.shape) for m in initial)
    surprise = tuple(torch.zeros_like(m) for m in state)
    states = [state]
    for t in range(num_chunks):
        theta, eta, alpha = [r[:, :, t, None, None] for r in rule[1:]]
        gradient = inner.gradient(state, keys[:, :, t], values[:, :, t], rule.weights[:, :, t])
        surprise = tuple(eta * s - theta * g for s, g in zip(surprise, gradient))
        state = tuple((1 - alpha) * m + s for m, s in zip(state, surprise))
        states.append(state)
    return tuple(torch.stack(matrices, dim=2) for matrices in zip(*states))


def start_states(
    inner: InnerModel, initial: Weights, keys: Tensor, values: Tensor, rule: WriteRule
) -> Weights:
    """All memories M_0 ... M_T when every chunk's gradient is taken at M_0, without a scan.

        M_t = prod_{s<=t} a_s M_0 - sum_j C_tj theta_j G_j,   a = 1 - alpha,   C = D(a) D(eta),
        D(x)_tj = prod_{s=j+1..t} x_s for t >= j, else 0

    Arguments and result as in :func:`running_states`.
    """
    start = tuple(m.unsqueeze(1) for m in initial)  # (h, 1, d, d): the same for every chunk
    gradient = inner.gradient(start, keys, values, rule.weights)
    keep = 1 - rule.decay
    mix = _products_after(keep) @ _products_after(rule.momentum) * rule.lr.unsqueeze(-2)
    mix = F.pad(mix, (0, 0, 1, 0))  # (B, h, T + 1, T): M_0 holds no chunk
    kept = F.pad(keep.cumprod(-1), (1, 0), value=1.0)[..., None, None]
    return tuple(
        kept * m - torch.einsum('bhtj,bhjde->bhtde', mix, g) for m, g in zip(start, gradient)
    )


def _products_after(x: Tensor) -> Tensor:
    """D(x)_tj = prod_{s=j+1..t} x_s on and below the diagonal, 0 above: (..., T) -> (..., T, T)."""
    chunk = torch.arange(x.size(-1), device=x.device)
    below = chunk[:, None] > chunk
    return torch.where(below, x.unsqueeze(-1), 1.0).cumprod(-2).tril()


def valid_first(valid: Tensor) -> Tensor:
    """New places of N tokens, the valid ones first, else in their order: ``(B, N) -> (B, N)``."""
    valid = valid.bool()
    after = valid.sum(1, keepdim=True) + (~valid).cumsum(1)
    return torch.where(valid, valid.cumsum(1), after) - 1


def moved(x: Tensor, places: Tensor) -> Tensor:
    """``x (B, N, ...)`` with each token at its place of ``(B, N)``."""
    places = places.view(*places.shape, *(1,) * (x.dim() - 2)).expand_as(x)
    return torch.zeros_like(x).scatter(1, places, x)


STATES = {'running': running_states, 'start': start_states}


@MIXERS.register_module()
class ChunkedNeuralMemory(BottleneckMixer):
    """A memory that takes one gradient step per chunk, in raster order.

        z = LayerNorm(W_in x),  q, k, v = linear(z),  q and k of unit length per head
        w = softmax over the chunk of A z, per head
        M_t = M_{t-1} - grad L_t,   L_t(M) = 1/2 sum_n w_n ||f(k_n; M) - v_n||^2
        G = W_out (f(q; M) - f(q; M_0))

    With a weighted mean over unit keys the step needs no size at any resolution. Without f(q; M_0)
    the read is not swamped by what every image shares.

    Args:
        dim: Channels C of the block.
        memory_dim: Channels C_m; default half of ``dim``, rounded to a multiple of 8.
        num_heads: Heads h; must divide ``memory_dim``.
        inner_model: ``'linear'``, ``'two_layer'`` or ``'gated'``.
        chunk_size: Tokens L in a chunk; ``None``: the whole image is one.
        read: ``'after'``: every token reads the last memory; ``'before'``: a token of chunk t reads
            M_{t-1}, so that with one chunk it reads nothing of the image.
        gradient: Where it is taken: ``'running'`` at M_{t-1} (sequential) or ``'start'`` at M_0
            (parallel).

    Raises:
        UsageError: For an unknown choice, a non-positive size, or heads that do not divide C_m.
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int | None = None,
        num_heads: int = 8,
        inner_model: str = 'linear',
        chunk_size: int | None = 196,
        read: str = 'after',
        gradient: str = 'running',
    ) -> None:
        super().__init__(dim, memory_dim)
        check_choice('inner model', inner_model, INNER_MODELS)
        check_choice('read', read, ('after', 'before'))
        check_choice('gradient', gradient, STATES)
        check_num_heads(num_heads, 'memory_dim', self.bottleneck_dim)
        if chunk_size is not None and chunk_size < 1:
            raise UsageError(
                f'chunk_size={chunk_size} must be positive, or None for the whole image'
            )
        self.num_heads, self.inner_model = num_heads, inner_model
        self.chunk_size, self.read, self.gradient = chunk_size, read, gradient
        self.qkv = nn.Linear(self.bottleneck_dim, 3 * self.bottleneck_dim)
        self.initial = nn.ParameterList(
            torch.empty(num_heads, *(self.bottleneck_dim // num_heads,) * 2)
            for _ in range(self.inner.num_weights)
        )
        self.build_write_rule()
        self.reset_parameters()

    @property
    def inner(self) -> InnerModel:
        return INNER_MODELS[self.inner_model]

    def build_write_rule(self) -> None:
        self.write_logits = nn.Linear(self.bottleneck_dim, self.num_heads, bias=False)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for matrix in self.initial:
            nn.init.normal_(matrix, std=self.inner.init_std(matrix.size(-1)))
        self.reset_write_rule()

    def reset_write_rule(self) -> None:
        nn.init.normal_(self.write_logits.weight, std=4 * self.bottleneck_dim**-0.5)

    def no_weight_decay(self) -> set[str]:
        """Names of the initial memories M_0, for optimizer constructors.

        M_0 is a point at which gradients are taken, not a map of features. Decay would draw it to
        0, where the two matrices of a two-layer or gated inner model have no gradient.
        """
        return {f'initial.{i}' for i in range(len(self.initial))}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`GlobalMixer.forward`: chunks are of valid pixels, the padding comes last."""
        x = without_padding(x, mask)
        tokens = self.norm(self.in_proj(x.permute(0, 2, 3, 1).flatten(1, 2)))  # (B, N, C_m)
        # What fills the last chunk up is not valid.
        valid = tokens.new_ones(tokens.shape[:2])
        if mask is not None:
            valid = mask.flatten(1).to(tokens.dtype)
            places = valid_first(valid)
            tokens, valid = moved(tokens, places), moved(valid, places)
        rule = self.write_rule(tokens, valid)
        queries, keys, values = self.project(tokens)
        with full_precision(x):
            initial = tuple(widened(m) for m in self.initial)
            states = STATES[self.gradient](self.inner, initial, keys, values, rule)
            seen = slice(-1, None) if self.read == 'after' else slice(-1)
            memory = tuple(m[:, :, seen] for m in states)  # (B, h, T or 1, d, d)
            out = self.readout(tuple(m.unsqueeze(1) for m in initial), memory, queries)
        # (B, h, T, L, d) -> (B, T L, h d) -> (B, N, C_m)
        out = out.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)[:, : tokens.size(1)]
        if mask is not None:
            out = out.gather(1, places.unsqueeze(2).expand_as(out))
        return self.out_proj(out.to(tokens.dtype)).unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, ``(B, N, C_m) -> (B, h, T, L, d)`` each, q and k of unit length."""
        qkv = self.chunked(widened(self.qkv(tokens))).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = qkv.permute(3, 0, 4, 1, 2, 5)
        return F.normalize(queries, dim=-1, eps=1e-6), F.normalize(keys, dim=-1, eps=1e-6), values

    def write_rule(self, tokens: Tensor, valid: Tensor) -> WriteRule:
        """Token weights and rates from ``tokens (B, N, C_m)`` and ``valid (B, N)``: 1 or 0."""
        logits = self.chunked(widened(self.write_logits(tokens)))  # (B, T, L, h)
        valid = self.chunked(valid).unsqueeze(1)
        weights = masked_softmax(logits.permute(0, 3, 1, 2), valid)
        rate = weights.new_zeros(weights.shape[:3])
        return WriteRule(weights, lr=rate + 1, momentum=rate, decay=rate)

    def readout(self, initial: Weights, memory: Weights, queries: Tensor) -> Tensor:
        """The part that the image itself wrote: f(q; M) - f(q; M_0)."""
        return self.inner.apply(memory, queries) - self.inner.apply(initial, queries)

    def chunked(self, x: Tensor) -> Tensor:
        """``(B, N, ...) -> (B, T, L, ...)``, the last chunk filled up with zeros."""
        if self.chunk_size is None:
            return x.unsqueeze(1)
        missing = -x.size(1) % self.chunk_size
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
        return x.unflatten(1, (-1, self.chunk_size))


@MIXERS.register_module()
class PublishedNeuralMemory(ChunkedNeuralMemory):
    """The form of the ConvNeur paper, as far as it is known: chunks, read before write, dynamics.

        L_t = 1/2 sum over the chunk of ||f(k; M_{t-1}) - v||^2
        S_t = eta_t S_{t-1} - theta_t grad L_t,   M_t = (1 - alpha_t) M_{t-1} + S_t
        y_t = f(q_t; M_{t-1})

    theta, eta and alpha come from the mean token of the chunk. Where a stage has one chunk only M_0
    is read: the keys, the values and the three rates then receive zero gradients (zero, not none,
    so that distributed training does not wait for them). The form of the generators and their
    start is not published: here theta = ``lr`` sigmoid(. - 4), eta = sigmoid(.),
    alpha = sigmoid(. - 4).

    Args:
        dim, memory_dim, num_heads, inner_model, gradient: As in :class:`ChunkedNeuralMemory`.
        chunk_size: 196 for classification, 4096 for COCO.
        lr: Largest theta: 1 for classification, 1e-3 for COCO.
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int | None = None,
        num_heads: int = 8,
        inner_model: str = 'linear',
        chunk_size: int = 196,
        lr: float = 1.0,
        gradient: str = 'running',
    ) -> None:
        super().__init__(dim, memory_dim, num_heads, inner_model, chunk_size, 'before', gradient)
        self.lr = lr

    def build_write_rule(self) -> None:
        self.rates = nn.Linear(self.bottleneck_dim, 3 * self.num_heads)

    def reset_write_rule(self) -> None:
        nn.init.normal_(self.rates.weight, std=0.02)
        with torch.no_grad():
            theta, eta, alpha = self.rates.bias.chunk(3)
            theta.fill_(-4.0), eta.zero_(), alpha.fill_(-4.0)

    def write_rule(self, tokens: Tensor, valid: Tensor) -> WriteRule:
        tokens, valid = self.chunked(tokens), self.chunked(valid).to(tokens.dtype)  # (B, T, L, ...)
        mean = (tokens * valid.unsqueeze(-1)).sum(2) / valid.sum(2).clamp(min=1).unsqueeze(-1)
        # (B, T, 3 h) -> three of (B, h, T)
        rates = widened(self.rates(mean)).sigmoid().transpose(1, 2).chunk(3, dim=1)
        theta, eta, alpha = rates
        weights = widened(valid).unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        return WriteRule(weights, self.lr * theta, eta, alpha)

    def readout(self, initial: Weights, memory: Weights, queries: Tensor) -> Tensor:
        """The memory as a whole: f(q; M)."""
        return self.inner.apply(memory, queries)
