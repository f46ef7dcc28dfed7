"""Neural memory: a global branch whose weights are fitted to the image inside the forward pass.

Dimension key: B images, N = H W tokens, T chunks of L tokens, n tokens of a strip, h heads, d head
width, C channels of the block, C_m = h d channels of the memory.

Sources: ConvNeur (arXiv 2603.19567, the branch), Titans (arXiv 2501.00663, momentum and decay),
ViT^3 (arXiv 2512.01643, one inner step over the whole image). The write weights per token and the
read of the image's own contribution are this project's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError, check_choice
from ...registry import MIXERS
from ..layers.tiles import Linear, map_tiles, tiles
from .base import check_num_heads, half_width
from .inner_models import INNER_MODELS, InnerModel, Weights
from .products import gram, product, unit_length


class WriteRule(NamedTuple):
    """How strongly each token and each chunk is written.

    Attributes:
        weights: ``(B, h, T, L)``, the weight of each token in the loss of its chunk.
        step: ``(B, h, T)``, theta_t.
        momentum: ``(B, h, T)``, eta_t.
        decay: ``(B, h, T)``, alpha_t.
    """

    weights: Tensor
    step: Tensor
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
    batch, _, num_chunks = rule.step.shape
    state = tuple(m.expand(batch, *m.shape) for m in initial)
    surprise = tuple(torch.zeros_like(m) for m in state)
    states = [state]
    for t in range(num_chunks):
        theta, eta, alpha = (r[:, :, t, None, None] for r in rule[1:])
        steps = inner.step(state, keys[:, :, t], values[:, :, t], rule.weights[:, :, t])
        surprise = tuple(eta * s - theta * g for s, g in zip(surprise, steps, strict=True))
        state = tuple((1 - alpha) * m + s for m, s in zip(state, surprise, strict=True))
        states.append(state)
    return tuple(torch.stack(matrices, dim=2) for matrices in zip(*states, strict=True))


def start_states(
    inner: InnerModel, initial: Weights, keys: Tensor, values: Tensor, rule: WriteRule
) -> Weights:
    """All memories M_0 ... M_T when every chunk's gradient is taken at M_0, without a scan.

        M_t = prod_{s<=t} a_s M_0 - sum_j C_tj theta_j G_j,   a = 1 - alpha,   C = D(a) D(eta),
        D(x)_tj = prod_{s=j+1..t} x_s for t >= j, else 0

    Arguments and result as in :func:`running_states`.
    """
    start = tuple(m.unsqueeze(1) for m in initial)  # (h, 1, d, d): the same for every chunk
    steps = inner.step(start, keys, values, rule.weights)
    keep = 1 - rule.decay
    mix = _products_after(keep) @ _products_after(rule.momentum) * rule.step.unsqueeze(-2)
    mix = F.pad(mix, (0, 0, 1, 0))  # (B, h, T + 1, T): M_0 holds no chunk
    kept = F.pad(keep.cumprod(-1), (1, 0), value=1.0)[..., None, None]
    return tuple(
        kept * m - torch.einsum('bhtj,bhjde->bhtde', mix, g)
        for m, g in zip(start, steps, strict=True)
    )


def _products_after(x: Tensor) -> Tensor:
    """D(x)_tj = prod_{s=j+1..t} x_s on and below the diagonal, 0 above: (..., T) -> (..., T, T)."""
    chunk = torch.arange(x.size(-1), device=x.device)
    below = chunk[:, None] > chunk
    return torch.where(below, x.unsqueeze(-1), 1.0).cumprod(-2).tril()


STATES = {'running': running_states, 'start': start_states}


def inner_dtype(tokens: Tensor) -> torch.dtype:
    """The inner step is a sum over thousands of tokens: in float32 at least."""
    return torch.promote_types(tokens.dtype, torch.float32)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Where sums over many tokens and small differences are taken, also under autocast."""
    if not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class ExactLinear(nn.Linear):
    """x W^T + b in the dtype of the inner step, whatever the dtype of the model."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = inner_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)


class WriteLogits(nn.Linear):
    """A L^-1 x, L L^T the :func:`shrunk_covariance` of each chunk, for a softmax over its tokens.

    A fixed map sees little of what is rare in an image: the directions in which most tokens differ
    drown it. Whitened, all directions count alike, in the spirit of the detector of Reed and Yu
    (IEEE TASSP 38(10), 1990). A softmax ignores the mean of x and a bias, which are left out.

    Args:
        dim: Channels C.
        num_heads: Heads h.
        whiten: If not, A x.
    """

    def __init__(self, dim: int, num_heads: int, whiten: bool) -> None:
        super().__init__(dim, num_heads, bias=False)
        self.whiten = whiten

    def forward(self, tokens: Sequence[Tensor], real: Tensor | None) -> Tensor:
        """Strips ``(B, n, C)`` of L tokens ``-> (B, h, L)`` in the dtype of the inner step.

        ``real (B, L)`` is 1 for the tokens that count in the covariance; ``None``: all do.
        """
        weight = self.weight.to(inner_dtype(tokens[0])).expand(tokens[0].size(0), -1, -1)
        if self.whiten:
            # Unlike torch.linalg.cholesky it does not make a CPU wait for its GPU's success.
            factor = torch.linalg.cholesky_ex(shrunk_covariance(tokens, real)).L
            # (B, h, C)
            weight = torch.linalg.solve_triangular(factor, weight, upper=False, left=False)
        logits = [product(weight, s.to(weight.dtype), transpose_b=True) for s in tokens]
        return torch.cat(logits, dim=2)


def shrunk_covariance(tokens: Sequence[Tensor], real: Tensor | None) -> Tensor:
    """(1 - rho) S + (rho tr(S)/C + 1e-6) I, S the covariance of L tokens, ``(B, C, C)``.

    The fewer the tokens for the channels, the less is known of S and the larger is rho: the oracle
    approximating shrinkage of Chen, Wiesel, Eldar and Hero (IEEE TSP 58(10), 2010, equation 23).
    ``tokens`` come in strips ``(B, n, C)``; ``real (B, L)``: 1 for those that count; ``None``: all.
    """
    dtype, dim = inner_dtype(tokens[0]), tokens[0].size(-1)
    lengths = [strip.size(1) for strip in tokens]
    if real is None:
        count = sum(lengths)
        mean = _sum(tokens, dtype) / count  # (B, 1, C)
    else:
        absent = real.bool().logical_not().unsqueeze(-1).split(lengths, dim=1)
        count = real.to(dtype).sum(1).clamp(min=1)[:, None, None]
        present = (s.masked_fill(a, 0) for s, a in zip(tokens, absent, strict=True))
        mean = _sum(present, dtype) / count
        tokens = (torch.where(a, mean, s) for s, a in zip(tokens, absent, strict=True))
    # Centred first: E[x x^T] - mean mean^T is not positive where tokens are nearly equal.
    centred = (strip - mean for strip in tokens)
    sample = sum(map(gram, centred)) / count
    trace = sample.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    rho = shrinkage(sample.detach(), trace.detach(), count)
    eye = torch.eye(dim, dtype=dtype, device=sample.device)
    return (1 - rho) * sample + (rho * trace / dim + 1e-6) * eye


def _sum(tokens: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    return sum(strip.sum(1, keepdim=True, dtype=dtype) for strip in tokens)


def shrinkage(sample: Tensor, trace: Tensor, count: Tensor) -> Tensor:
    """rho of :func:`shrunk_covariance`, ``(B, 1, 1)``, taken as a constant by gradients."""
    dim = sample.size(-1)
    norm = sample.square().sum((1, 2), keepdim=True)
    # Both times C, because a trace would take 2 / C in float32.
    above = (dim - 2) * norm + dim * trace.square()
    below = (dim * (count + 1) - 2) * (norm - trace.square() / dim)
    return (above / below.clamp(min=torch.finfo(below.dtype).tiny)).clamp(max=1)


class OneOfThree(nn.Linear):
    """Queries (part 0), keys (1) or values (2), ``(B, N, C_m) -> (B, C_m, N)``.

    With the tokens last, what is done per head runs along thousands of tokens, not along the few
    channels of a head.
    """

    def forward(self, tokens: Tensor, part: int) -> Tensor:
        weight, bias = self.of(part, self.weight.dtype)
        weight = weight.expand(tokens.size(0), -1, -1)
        return product(weight, tokens, bias[:, None], transpose_b=True)

    def of(self, part: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight ``(C_m, C_m)`` and bias ``(C_m)`` of a part."""
        return tuple(p.chunk(3)[part].to(dtype) for p in (self.weight, self.bias))


@MIXERS.register_module()
class NeuralMemory(BaseModule):
    """The default memory: one weighted inner step over the image, then a read of what it wrote.

        z = LayerNorm(W_in x),  q, k, v = linear(z),  q and k of unit length per head
        w = softmax over the chunk of A L^-1 z, per head, L L^T = shrunk covariance of z
        L_t(M) = 1/2 sum_n w_n ||f(k_n; M) - v_n||^2
        M_t = argmin_M L_t(M) + lambda/2 ||M - M_{t-1}||^2   (ridge)
        M_t = M_{t-1} - grad L_t(M_{t-1})                    (any other inner model)
        G = W_out (f(q; M) - f(q; M_0))

    A softmax can pick a few tokens out of thousands, and whitening makes those stand out that are
    rare in this image, in whichever direction they differ. The ridge regression reads a token as it
    was written, however small its weight; with a weighted mean over unit keys either step is stable
    at any resolution and needs no size. Without f(q; M_0) the read is not swamped by what every
    image shares. With one chunk (the default) the result does not depend on the order of the
    tokens. W_out starts at zero: a neutral gate.

    Args:
        dim: Channels C of the block.
        memory_dim: Channels C_m; default half of ``dim``, rounded to a multiple of 8.
        num_heads: Heads h; must divide ``memory_dim``.
        inner_model: ``'ridge'``, ``'linear'``, ``'two_layer'`` or ``'gated'``.
        whiten: Whether tokens are whitened for the write weights; else w = softmax(A z).
        chunk_size: Tokens L in a chunk, in raster order; ``None``: the whole image.
        read: ``'after'``: every token reads the last memory; ``'before'``: a token of chunk t reads
            M_{t-1}, so that with one chunk it reads nothing of the image.
        gradient: With several chunks, where it is taken: ``'running'`` at M_{t-1} (sequential) or
            ``'start'`` at M_0 (parallel; not for ridge, whose steps each go all the way).

    Raises:
        UsageError: For an unknown or impossible choice, a non-positive size, or heads that do not
            divide C_m.
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int | None = None,
        num_heads: int = 8,
        inner_model: str = 'ridge',
        whiten: bool = True,
        chunk_size: int | None = None,
        read: str = 'after',
        gradient: str = 'running',
    ) -> None:
        super().__init__()
        if memory_dim is None:
            memory_dim = half_width(dim)
        check_choice('inner model', inner_model, INNER_MODELS)
        check_choice('read', read, ('after', 'before'))
        check_choice('gradient', gradient, STATES)
        check_num_heads(num_heads, 'memory_dim', memory_dim)
        if chunk_size is not None and chunk_size < 1:
            raise UsageError(
                f'chunk_size={chunk_size} must be positive, or None for the whole image'
            )
        if inner_model == 'ridge' and chunk_size is not None and gradient == 'start':
            raise UsageError(
                "inner_model='ridge' with chunks needs gradient='running': steps from M_0 that "
                "each lead to a minimum cannot be added up; or choose inner_model='linear'"
            )
        self.memory_dim, self.num_heads = memory_dim, num_heads
        self.chunk_size, self.read, self.gradient = chunk_size, read, gradient
        self.inner_model, self.whiten = inner_model, whiten
        width = memory_dim // num_heads

        self.reduce = Linear(dim, memory_dim)
        self.norm = nn.LayerNorm(memory_dim, eps=1e-6)
        self.qkv = OneOfThree(memory_dim, 3 * memory_dim)
        self.build_write_rule()
        self.initial = nn.ParameterList(
            torch.empty(num_heads, width, width) for _ in range(self.inner.num_weights)
        )
        self.expand = Linear(memory_dim, dim)
        self.reset_parameters()

    @property
    def inner(self) -> InnerModel:
        return INNER_MODELS[self.inner_model]

    def build_write_rule(self) -> None:
        self.write_logits = WriteLogits(self.memory_dim, self.num_heads, self.whiten)

    def reset_parameters(self) -> None:
        """Start neutral (W_out = 0) but ready to learn: unit-scale values, selective writing."""
        for layer in (self.reduce, self.qkv):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for matrix in self.initial:
            nn.init.normal_(matrix, std=self.inner.init_std(matrix.size(-1)))
        self.reset_write_rule()
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def reset_write_rule(self) -> None:
        # Channels have deviation 1, so logits start with deviation 4: each head writes a handful of
        # tokens that stand out. Near-equal weights would dilute a small cue among thousands of
        # tokens until its gradient is lost in noise.
        nn.init.normal_(self.write_logits.weight, std=4 * self.memory_dim**-0.5)

    def init_weights(self) -> None:
        super().init_weights()
        # The backbone's init_cfg has just filled every Linear as if it were an ordinary layer.
        self.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of the initial memories M_0, for optimizer constructors.

        M_0 is a point at which gradients are taken, not a map of features. Decay would draw it to
        0, where the two matrices of a two-layer or gated inner model have no gradient.
        """
        return {f'initial.{i}' for i in range(len(self.initial))}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x (B, C, H, W) -> (B, C, H, W)``; ``mask (B, 1, H, W)``: 1 = a real pixel, 0 = padding.

        Padding is not written into the memory.
        """
        height, width = x.shape[-2:]
        x = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, C)
        real = None if mask is None else mask.flatten(1)  # (B, N)
        tokens = [self.embed(strip) for strip in tiles(x)]  # each (B, n, C_m)
        if self.folds:
            out = self.whole_image(tokens, real)
        else:
            out = self.in_chunks(torch.cat(tokens, dim=1), real)
        return out.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens, ``(B, N, C) -> (B, N, C_m)``."""
        return self.norm(self.reduce(x))

    @property
    def folds(self) -> bool:
        """Whether :meth:`whole_image` will do: a matrix, written as one chunk and read by all.

        Layers that took the place of ours (an adapter, a quantised one) or that have hooks
        (pruning) are called on the tokens.
        """
        ours = type(self.qkv) is OneOfThree and type(self.expand) is Linear
        layers = self.qkv, self.expand
        hooked = any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
        one_chunk = self.chunk_size is None and self.read == 'after'
        return ours and not hooked and one_chunk and self.inner.solve is not None

    def whole_image(self, tokens: Sequence[Tensor], real: Tensor | None) -> Tensor:
        """What :meth:`in_chunks` does, with small matrices in place of maps over all tokens.

            sum_n w_n k_n^T v_n = (sum_n w_n k_n^T z_n) W_v + (sum_n w_n k_n^T) b_v
            W_out (q D) = q (D W_out)

        One step from M_0 has no momentum yet, and nothing before it that could decay.
        """
        dtype = inner_dtype(tokens[0])
        with full_precision(tokens[0]):
            weights = self.write_weights(tokens, real)  # (B, h, N)
        cross = curvature = total = 0
        for z, w in zip(tokens, tiles(weights, dim=2), strict=True):
            keys = self.keys(z, dtype)  # (B, h, d, n)
            with full_precision(z):
                weighted = w.unsqueeze(2) * keys
                cross = cross + weighted.flatten(1, 2) @ z.to(dtype)  # (B, C_m, C_m)
                curvature = curvature + product(weighted, keys, transpose_b=True)  # (B, h, d, d)
                total = total + weighted.sum(-1, keepdim=True)  # (B, h, d, 1)
        with full_precision(tokens[0]):
            weight, bias = (p.unflatten(0, (self.num_heads, -1)) for p in self.qkv.of(2, dtype))
            cross = cross.unflatten(1, (self.num_heads, -1)) @ weight.mT  # (B, h, d, d)
            cross = cross + total * bias.unsqueeze(1)
            (step,) = self.inner.solve(self.initial_memory(dtype), cross, curvature)
            expand = self.expand.weight.to(dtype).mT.unflatten(0, (self.num_heads, -1))
            read = (-step @ expand).flatten(1, 2).to(tokens[0].dtype)  # (B, C_m, C)

        def readout(z: Tensor) -> Tensor:
            queries = self.queries(z, dtype).flatten(1, 2).to(z.dtype)  # (B, C_m, n)
            return product(queries, read, self.expand.bias, transpose_a=True)

        return map_tiles(readout, tokens)

    def in_chunks(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        if real is None:  # what fills the last chunk up is not
            real = tokens.new_ones(tokens.shape[:2])
        dtype, heads = inner_dtype(tokens), (tokens.size(0), self.num_heads)
        queries, keys, values = (
            # (B, h, d, N) -> (B h, N, d) -> (B, h, T, L, d)
            self.chunked(f(tokens, dtype).mT.flatten(0, 1)).unflatten(0, heads)
            for f in (self.queries, self.keys, self.values)
        )
        with full_precision(tokens):
            rule = self.write_rule(self.chunked(tokens), self.chunked(real))
            initial = self.initial_memory(dtype)
            states = STATES[self.gradient](self.inner, initial, keys, values, rule)
            seen = slice(-1, None) if self.read == 'after' else slice(-1)
            initial = tuple(m.unsqueeze(1) for m in initial)  # (h, 1, d, d)
            written = (m[:, :, seen] - m0 for m, m0 in zip(states, initial, strict=True))
            out = self.readout(initial, tuple(written), queries)
        out = out.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)[:, : tokens.size(1)]
        return self.expand(out.to(tokens.dtype))

    def queries(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, N, C_m) -> (B, h, d, N)``, of unit length."""
        return unit_length(self.project(0, tokens, dtype))

    def keys(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, N, C_m) -> (B, h, d, N)``, of unit length."""
        return unit_length(self.project(1, tokens, dtype))

    def values(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, N, C_m) -> (B, h, d, N)``."""
        return self.project(2, tokens, dtype)

    def project(self, part: int, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return self.qkv(tokens, part).to(dtype).unflatten(1, (self.num_heads, -1))

    def write_rule(self, tokens: Tensor, real: Tensor) -> WriteRule:
        """Token weights and rates from ``tokens (B, T, L, C_m)`` and ``real (B, T, L)``.

        ``real`` is 1 for a real pixel and 0 for padding.
        """
        weights = self.write_weights(tiles(tokens.flatten(0, 1)), real.flatten(0, 1))
        weights = weights.unflatten(0, tokens.shape[:2]).transpose(1, 2)  # (B, h, T, L)
        rate = weights.new_zeros(weights.shape[:3])
        return WriteRule(weights, step=rate + 1, momentum=rate, decay=rate)

    def write_weights(self, tokens: Sequence[Tensor], real: Tensor | None) -> Tensor:
        """w of a chunk: strips ``(B, n, C_m)`` of its L tokens, ``real (B, L) -> (B, h, L)``."""
        logits = self.write_logits(tokens, real)
        if real is None:
            return logits.softmax(-1)
        absent = ~real.bool().unsqueeze(1)
        logits = logits.masked_fill(absent, torch.finfo(logits.dtype).min)
        # Filled with zero once more for a chunk that is padding throughout.
        return logits.softmax(-1).masked_fill(absent, 0.0)

    def readout(self, initial: Weights, written: Weights, queries: Tensor) -> Tensor:
        """What the image itself wrote: f(q; M_0 + written) - f(q; M_0)."""
        return self.inner.change(initial, written, queries)

    def initial_memory(self, dtype: torch.dtype) -> Weights:
        return tuple(m.to(dtype) for m in self.initial)

    def chunked(self, x: Tensor) -> Tensor:
        """``(B, N, ...) -> (B, T, L, ...)``, the last chunk filled up with zeros."""
        if self.chunk_size is None:
            return x.unsqueeze(1)
        missing = -x.size(1) % self.chunk_size
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
        return x.unflatten(1, (-1, self.chunk_size))


@MIXERS.register_module()
class PublishedNeuralMemory(NeuralMemory):
    """The form of the ConvNeur paper, as far as it is known: chunks, read before write, dynamics.

        L_t = 1/2 sum over the chunk of ||f(k; M_{t-1}) - v||^2
        S_t = eta_t S_{t-1} - theta_t grad L_t,   M_t = (1 - alpha_t) M_{t-1} + S_t
        y_t = f(q_t; M_{t-1})

    theta, eta and alpha come from the mean token of the chunk. Where a stage has one chunk only M_0
    is read: the keys, the values and the three rates then receive zero gradients (zero, not none,
    so that distributed training does not wait for them). The form of the generators and their
    start is not published: here theta = ``step`` sigmoid(. - 4), eta = sigmoid(.),
    alpha = sigmoid(. - 4).

    Args:
        dim, memory_dim, num_heads, inner_model, gradient: As in :class:`NeuralMemory`.
        chunk_size: 196 for classification, 4096 for COCO.
        step: Largest theta: 1 for classification, 1e-3 for COCO.
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int | None = None,
        num_heads: int = 8,
        inner_model: str = 'linear',
        chunk_size: int = 196,
        step: float = 1.0,
        gradient: str = 'running',
    ) -> None:
        super().__init__(
            dim,
            memory_dim,
            num_heads,
            inner_model,
            chunk_size=chunk_size,
            read='before',
            gradient=gradient,
        )
        self.step = step

    def build_write_rule(self) -> None:
        self.rates = ExactLinear(self.memory_dim, 3 * self.num_heads)

    def reset_write_rule(self) -> None:
        nn.init.normal_(self.rates.weight, std=0.02)
        with torch.no_grad():
            theta, eta, alpha = self.rates.bias.chunk(3)
            theta.fill_(-4.0), eta.zero_(), alpha.fill_(-4.0)

    def write_rule(self, tokens: Tensor, real: Tensor) -> WriteRule:
        tokens = tokens.to(inner_dtype(tokens))
        real = real.to(tokens.dtype)
        weights = real.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        mean = (tokens * real.unsqueeze(-1)).sum(2) / real.sum(2).clamp(min=1).unsqueeze(-1)
        # (B, T, 3 h) -> three of (B, h, T)
        theta, eta, alpha = self.rates(mean).sigmoid().transpose(1, 2).chunk(3, dim=1)
        return WriteRule(weights, self.step * theta, eta, alpha)

    def readout(self, initial: Weights, written: Weights, queries: Tensor) -> Tensor:
        """The memory as a whole: f(q; M)."""
        whole = tuple(m0 + m for m0, m in zip(initial, written, strict=True))
        return self.inner.apply(whole, queries)
