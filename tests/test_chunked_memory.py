"""Memories in chunks against loops over images, heads, chunks and tokens.

One head of one image at a time: K, Q, V are (N, d), w is (N,), a memory is a tuple of matrices.
"""

import itertools

import pytest
import torch
from reference import assert_equals_reference, layer_norm
from torch import Tensor

from mmconvneur import UsageError
from mmconvneur.models.mixers import ChunkedNeuralMemory, PublishedNeuralMemory
from mmconvneur.models.mixers.inner_models import INNER_MODELS

pytestmark = pytest.mark.usefixtures('device')

# Distinct primes: a swapped axis cannot pass. 5 x 7 tokens, chunks of 11: the last one is ragged.
BATCH, DIM, HEADS, WIDTH, HEIGHT_, WIDTH_ = 2, 13, 3, 2, 5, 7
FORMS = [
    dict(inner_model=name, chunk_size=size, read=read, gradient=gradient)
    for name in INNER_MODELS
    for size, read, gradient in [
        (None, 'after', 'running'),
        (None, 'after', 'start'),
        *itertools.product([11], ['after', 'before'], ['running', 'start']),
    ]
]
PUBLISHED = [
    dict(inner_model=name, chunk_size=11, gradient=gradient)
    for name, gradient in itertools.product(INNER_MODELS, ['running', 'start'])
]


# -------------------------------------------------------------------------------- slow references
def inner(name: str, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """f(x; W) of the named inner model."""
    if name == 'linear':
        return x @ weights[0]
    if name == 'two_layer':
        hidden = x @ weights[0]
        return (hidden / (1 + torch.exp(-hidden))) @ weights[1]
    if name == 'gated':
        left, right = x @ weights[0], x @ weights[1]
        return left * right / (1 + torch.exp(-right))
    raise AssertionError(name)


def loss(name: str, weights: tuple, keys: Tensor, values: Tensor, w: Tensor) -> Tensor:
    """1/2 sum_n w_n ||f(k_n) - v_n||^2, token by token."""
    total = keys.new_zeros(())
    for k, v, weight in zip(keys, values, w, strict=True):
        total = total + 0.5 * weight * (inner(name, weights, k[None])[0] - v).pow(2).sum()
    return total


def slope(name: str, weights: tuple, keys: Tensor, values: Tensor, w: Tensor) -> tuple:
    """dloss/dW by automatic differentiation, itself differentiable."""
    return torch.func.grad(lambda m: loss(name, m, keys, values, w))(tuple(weights))


def memories(
    memory, keys: list[Tensor], values: list[Tensor], weights: list[Tensor], rates: list, h: int
) -> list[tuple]:
    """M_0 ... M_T of a head from lists with an entry per chunk; ``rates``: (theta, eta, alpha)."""
    states = [tuple(m[h] for m in memory.initial)]
    surprise = [torch.zeros_like(m) for m in states[0]]
    for k, v, w, (theta, eta, alpha) in zip(keys, values, weights, rates, strict=True):
        at = states[0] if memory.gradient == 'start' else states[-1]
        grads = slope(memory.inner_model, at, k, v, w)
        surprise = [eta * s - theta * g for s, g in zip(surprise, grads, strict=True)]
        states.append(tuple((1 - alpha) * m + s for m, s in zip(states[-1], surprise, strict=True)))
    return states


def reference(memory, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The whole mixer. Masked tokens are taken out before chunks are cut; they read zeros."""
    out = torch.zeros_like(x).flatten(2)
    for b, image in enumerate(x):
        valid = torch.ones(x[0, 0].numel()) if mask is None else mask[b].flatten()
        tokens = image.flatten(1).T[valid.bool()] @ memory.in_proj.weight.T + memory.in_proj.bias
        tokens = layer_norm(tokens, memory.norm.weight, memory.norm.bias)
        reads = [read_head(memory, tokens, h) for h in range(HEADS)]
        result = torch.cat(reads, dim=1) @ memory.out_proj.weight.T + memory.out_proj.bias
        out[b, :, valid.bool()] = result.T
    return out.unflatten(2, x.shape[2:])


def read_head(memory, tokens: Tensor, h: int) -> Tensor:
    rows = slice(h * WIDTH, (h + 1) * WIDTH)
    q, k, v = (
        tokens @ weight[rows].T + bias[rows]
        for weight, bias in zip(memory.qkv.weight.chunk(3), memory.qkv.bias.chunk(3), strict=True)
    )
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    size = memory.chunk_size or len(tokens)
    parts = [slice(a, min(a + size, len(tokens))) for a in range(0, len(tokens), size)]
    published = isinstance(memory, PublishedNeuralMemory)
    weights, rates = [], []
    for part in parts:
        kept = tokens[part]
        if published:
            weights.append(torch.ones(len(kept), dtype=tokens.dtype))
            mean = kept.mean(0)
            rate = torch.sigmoid(memory.rates.weight @ mean + memory.rates.bias)
            theta, eta, alpha = rate.view(3, HEADS)[:, h]
            rates.append((memory.lr * theta, eta, alpha))
        else:
            scores = torch.exp(kept @ memory.write_logits.weight[h])
            weights.append(scores / scores.sum())
            rates.append((1.0, 0.0, 0.0))
    keys = [k[part] for part in parts]
    values = [v[part] for part in parts]
    states = memories(memory, keys, values, weights, rates, h)
    reads = []
    for i, part in enumerate(parts):
        y = inner(memory.inner_model, states[-1 if memory.read == 'after' else i], q[part])
        reads.append(y if published else y - inner(memory.inner_model, states[0], q[part]))
    return torch.cat(reads)


# ------------------------------------------------------------------------------------------ values
def build(cls=ChunkedNeuralMemory, **cfg):
    """A memory in float64 whose every parameter is random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    memory = cls(DIM, memory_dim=HEADS * WIDTH, num_heads=HEADS, **cfg).double()
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return memory


def image(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, DIM, HEIGHT_, WIDTH_, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_every_form_equals_its_loop(form):
    assert_equals_reference(reference, build(**form), image())


@pytest.mark.parametrize('form', PUBLISHED, ids=str)
def test_published_form_equals_its_loop(form):
    assert_equals_reference(reference, build(PublishedNeuralMemory, **form), image())


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_mask_equals_removing_the_tokens(form):
    mask = torch.ones(BATCH, 1, HEIGHT_, WIDTH_)
    mask[0, :, :, 4:] = 0
    mask[1, :, 3:] = 0
    assert_equals_reference(reference, build(**form), image(), mask)


def test_mask_equals_removing_the_tokens_in_the_published_form():
    mask = torch.ones(BATCH, 1, HEIGHT_, WIDTH_)
    mask[0, :, :, 4:] = 0
    memory = build(PublishedNeuralMemory, chunk_size=11)
    assert_equals_reference(reference, memory, image(), mask)


@pytest.mark.parametrize('form', FORMS, ids=str)
def test_an_empty_batch_passes(form):
    assert build(**form)(image()[:0]).shape == (0, DIM, HEIGHT_, WIDTH_)


def test_permuting_tokens_permutes_the_read():
    memory, x = build(chunk_size=None), image()
    order = torch.randperm(HEIGHT_ * WIDTH_, generator=torch.Generator().manual_seed(0))

    def permute(maps):
        return maps.flatten(2)[:, :, order].unflatten(2, (HEIGHT_, WIDTH_))

    torch.testing.assert_close(memory(permute(x)), permute(memory(x)), rtol=0, atol=1e-12)


def test_published_rates_start_small():
    """theta = sigmoid(-4) = 0.018, eta = 1/2, alpha = 0.018 for tokens of zero."""
    memory = PublishedNeuralMemory(DIM, memory_dim=6, num_heads=3, lr=0.5)
    memory.chunk_size = 7
    rule = memory.write_rule(torch.zeros(2, 35, 6), torch.ones(2, 35))
    assert rule.weights.shape == (2, 3, 5, 7) and (rule.weights == 1).all()
    for rate, value in (
        (rule.lr, 0.5 * 0.0179862),
        (rule.momentum, 0.5),
        (rule.decay, 0.0179862),
    ):
        torch.testing.assert_close(rate, torch.full((2, 3, 5), value), rtol=0, atol=1e-7)


def test_inner_step_stays_in_float32_under_autocast(monkeypatch):
    memory = ChunkedNeuralMemory(DIM, memory_dim=33, num_heads=3, chunk_size=11)
    torch.nn.init.normal_(memory.out_proj.weight)
    seen = set()
    inner = INNER_MODELS['linear']

    def spy(weights, keys, values, w):
        seen.update(t.dtype for t in (*weights, keys, values, w))
        return inner.gradient(weights, keys, values, w)

    monkeypatch.setitem(INNER_MODELS, 'linear', inner._replace(gradient=spy))
    x = image().float()
    with torch.autocast('cpu', torch.bfloat16):
        out = memory(x)
    assert seen == {torch.float32}
    # bfloat16 has 8 bits: the outer maps lose that much and the inner sum no more.
    expected = memory(x)
    torch.testing.assert_close(
        out.float(), expected, rtol=0, atol=2e-2 * expected.abs().max().item()
    )


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(inner_model='cubic'), 'linear, two_layer, gated'),
        (dict(read='during'), 'after, before'),
        (dict(gradient='later'), 'running, start'),
        (dict(memory_dim=10), 'num_heads=8 must divide memory_dim=10'),
        (dict(num_heads=0), 'num_heads=0'),
        (dict(chunk_size=0), 'chunk_size=0 must be positive'),
        (dict(chunk_size=-3), 'chunk_size=-3 must be positive'),
    ],
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        ChunkedNeuralMemory(16, **cfg)
    assert '\n' not in str(error.value)
