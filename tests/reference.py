"""Slow, obvious versions written from the equations. The package never imports this file.

One head of one image at a time: K, Q, V are (N, d), w is (N,), a memory is a tuple of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def gradient(name: str, weights: tuple, keys: Tensor, values: Tensor, w: Tensor) -> tuple:
    """dloss/dW by automatic differentiation, itself differentiable."""
    return torch.func.grad(lambda m: loss(name, m, keys, values, w))(tuple(weights))


def chunks(num_tokens: int, size: int | None) -> list[slice]:
    size = size or num_tokens
    return [slice(a, min(a + size, num_tokens)) for a in range(0, num_tokens, size)]


def memories(
    name: str,
    initial: tuple,
    keys: list[Tensor],
    values: list[Tensor],
    weights: list[Tensor],
    rates: list[tuple],
    taken_at: str,
) -> list[tuple]:
    """M_0 ... M_T from lists with one entry per chunk; ``rates``: (theta, eta, alpha) of each.

    ``taken_at='start'`` takes every gradient at M_0, ``'running'`` at the memory before the chunk.
    """
    states = [tuple(initial)]
    surprise = [torch.zeros_like(m) for m in initial]
    for k, v, w, (theta, eta, alpha) in zip(keys, values, weights, rates, strict=True):
        at = states[0] if taken_at == 'start' else states[-1]
        grads = gradient(name, at, k, v, w)
        surprise = [eta * s - theta * g for s, g in zip(surprise, grads, strict=True)]
        states.append(tuple((1 - alpha) * m + s for m, s in zip(states[-1], surprise, strict=True)))
    return states


def neural_memory(module, name: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The whole mixer with the inner model ``name``, by loops over images, heads and chunks.

    Masked tokens are taken out of their chunk before anything is written. The published form is
    told from the default by its ``rates``.
    """
    out = torch.zeros_like(x)
    for b, image in enumerate(x):
        tokens = image.flatten(1).T @ module.reduce.weight.T + module.reduce.bias
        centred = tokens - tokens.mean(1, keepdim=True)
        tokens = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        tokens = tokens * module.norm.weight + module.norm.bias
        real = torch.ones(len(tokens)) if mask is None else mask[b].flatten()
        reads = [_read_head(module, name, tokens, real.bool(), h) for h in range(module.num_heads)]
        result = torch.cat(reads, dim=1) @ module.expand.weight.T + module.expand.bias
        out[b] = result.T.unflatten(1, image.shape[1:])
    return out


def _read_head(module, name: str, tokens: Tensor, real: Tensor, h: int) -> Tensor:
    width = module.memory_dim // module.num_heads
    rows = slice(h * width, (h + 1) * width)
    q, k, v = (
        tokens @ weight[rows].T + bias[rows]
        for weight, bias in zip(module.qkv.weight.chunk(3), module.qkv.bias.chunk(3), strict=True)
    )
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    parts = chunks(len(tokens), module.chunk_size)
    published = hasattr(module, 'rates')
    weights, rates = [], []
    for part in parts:
        kept = tokens[part][real[part]]
        if published:
            weights.append(torch.ones(len(kept), dtype=tokens.dtype))
            mean = kept.sum(0) / max(len(kept), 1)
            rate = torch.sigmoid(module.rates.weight @ mean + module.rates.bias)
            theta, eta, alpha = rate.view(3, module.num_heads)[:, h]
            rates.append((module.step * theta, eta, alpha))
        else:
            scores = torch.exp(kept @ module.write_logits.weight[h])
            weights.append(scores / scores.sum())
            rates.append((1.0, 0.0, 0.0))
    initial = tuple(m[h] for m in module.initial)
    keys = [k[part][real[part]] for part in parts]
    values = [v[part][real[part]] for part in parts]
    states = memories(name, initial, keys, values, weights, rates, module.gradient)
    reads = []
    for i, part in enumerate(parts):
        state = states[-1] if module.read == 'after' else states[i]
        y = inner(name, state, q[part])
        reads.append(y if published else y - inner(name, initial, q[part]))
    return torch.cat(reads)


def read_weights(name: str, initial: tuple, w: Tensor, query: Tensor, keys, values) -> Tensor:
    """w_n tr K_n / d with K_n = int_0^1 J_q(M_0 + s (M_1 - M_0)) ds J_{k_n}(M_0)^T, by Simpson.

    J_x(M) is the Jacobian of f(x; M) in M, all its matrices in one row of d m columns.
    """

    def jacobian(weights: tuple, x: Tensor) -> Tensor:
        parts = torch.autograd.functional.jacobian(lambda *m: inner(name, m, x[None])[0], weights)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    end = [m - g for m, g in zip(initial, gradient(name, initial, keys, values, w), strict=True)]
    points, average = 100, 0
    for i in range(points + 1):
        factor = 1 if i in (0, points) else 4 if i % 2 else 2
        at = tuple(m + i / points * (e - m) for m, e in zip(initial, end, strict=True))
        average = average + factor / (3 * points) * jacobian(at, query)
    kernels = [average @ jacobian(tuple(initial), k).T for k in keys]
    return torch.stack(
        [a * kernel.trace() / len(query) for a, kernel in zip(w, kernels, strict=True)]
    )
