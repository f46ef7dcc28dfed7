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


# ------------------------------------------------------------------------------- other mixers
def bottleneck(module, x: Tensor, mix) -> Tensor:
    """``W_out f(LayerNorm(W_in x))``, image by image; ``mix``: ``(C_m, H, W) -> (C_m, H, W)``."""
    out = []
    for image in x:
        z = torch.einsum('oc,chw->ohw', module.reduce.weight, image)
        z = z + module.reduce.bias[:, None, None]
        centred = z - z.mean(0)
        z = centred / (centred.pow(2).mean(0) + 1e-6).sqrt()
        z = z * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
        mixed = torch.einsum('oc,chw->ohw', module.expand.weight, mix(z))
        out.append(mixed + module.expand.bias[:, None, None])
    return torch.stack(out)


def self_attention(module, x: Tensor) -> Tensor:
    """Query by query: the mean of the values, weighted by exp(q k / sqrt(d))."""

    def mix(z: Tensor) -> Tensor:
        tokens = z.flatten(1).T
        q, k, v = (tokens @ module.qkv.weight.T + module.qkv.bias).chunk(3, dim=1)
        heads = []
        for part in torch.arange(q.size(1)).chunk(module.num_heads):
            rows = []
            for query in q[:, part]:
                weights = torch.exp(k[:, part] @ query / len(part) ** 0.5)
                rows.append(weights @ v[:, part] / weights.sum())
            heads.append(torch.stack(rows))
        return torch.cat(heads, dim=1).T.unflatten(1, z.shape[1:])

    return bottleneck(module, x, mix)


def non_local(module, x: Tensor) -> Tensor:
    """W softmax(theta phi^T / sqrt(C')) g, pixel by pixel, without the residual."""

    def mix(z: Tensor) -> Tensor:
        tokens = z.flatten(1).T

        def conv1x1(layer, tokens):
            return tokens @ layer.conv.weight[:, :, 0, 0].T + layer.conv.bias

        theta, phi, g = (conv1x1(getattr(module.block, n), tokens) for n in ('theta', 'phi', 'g'))
        rows = []
        for query in theta:
            weights = torch.exp(phi @ query / len(query) ** 0.5)
            rows.append(weights @ g / weights.sum())
        return conv1x1(module.block.conv_out, torch.stack(rows)).T.unflatten(1, z.shape[1:])

    return bottleneck(module, x, mix)


def cbam(module, x: Tensor) -> Tensor:
    """Equations 1 to 3 of CBAM, the 7 x 7 convolution pixel by pixel."""

    def mlp(v: Tensor) -> Tensor:
        first, _, last = module.channel
        hidden = first.weight @ v + first.bias
        return last.weight @ (hidden * (hidden > 0)) + last.bias

    def mix(z: Tensor) -> Tensor:
        flat = z.flatten(1)
        largest = torch.stack([row[row.argmax()] for row in flat])
        which = 1 / (1 + torch.exp(-mlp(flat.mean(1)) - mlp(largest)))
        z = which[:, None, None] * z
        _, height, width = z.shape
        maps = torch.zeros(2, height + 6, width + 6, dtype=z.dtype)
        maps[0, 3:-3, 3:-3] = z.mean(0)
        maps[1, 3:-3, 3:-3] = z.gather(0, z.argmax(0, keepdim=True))[0]
        out = torch.zeros_like(z)
        for i in range(height):
            for j in range(width):
                near = maps[:, i : i + 7, j : j + 7]
                score = (module.spatial.weight[0] * near).sum() + module.spatial.bias[0]
                out[:, i, j] = z[:, i, j] / (1 + torch.exp(-score))
        return out

    return bottleneck(module, x, mix)


def spatial_bias_maps(module, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The three maps of Spatial Bias, cell by cell and pixel by pixel; the norm in eval mode."""
    out = torch.zeros(len(x), 3, *size, dtype=x.dtype)
    norm = module.norm
    for b, image in enumerate(x):
        maps = torch.einsum('oc,chw->ohw', module.reduce.weight[:, :, 0, 0], image)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        maps = (maps - norm.running_mean[:, None, None]) * scale[:, None, None]
        maps = maps + norm.bias[:, None, None]
        maps = maps * (maps > 0)
        cells = torch.stack(
            [
                maps[:, rows, columns].mean((1, 2))
                for rows in cells_of(image.size(1))
                for columns in cells_of(image.size(2))
            ]
        )  # (100, 5)
        kernel = module.mix.weight  # (100, 100, 3)
        grid = [
            sum(kernel[:, :, k] @ cells[:, left + k] for k in range(3)) + module.mix.bias
            for left in range(3)
        ]  # three of (100,)
        for m, cell in enumerate(grid):
            cell = cell.view(10, 10)
            for i in range(size[0]):
                for j in range(size[1]):
                    out[b, m, i, j] = sum(
                        p * q * cell[row, column]
                        for row, p in neighbours(i, size[0])
                        for column, q in neighbours(j, size[1])
                    )
    return out


def cells_of(length: int) -> list[slice]:
    """The pixels that each of ten cells averages over: all that it touches."""
    return [slice(i * length // 10, -(-(i + 1) * length // 10)) for i in range(10)]


def neighbours(pixel: int, length: int) -> list[tuple[int, float]]:
    """The two cells between whose centres the centre of a pixel lies, and their weights."""
    position = min(max((pixel + 0.5) * 10 / length - 0.5, 0), 9)
    left = min(int(position), 8)
    return [(left, left + 1 - position), (left + 1, position - left)]


def spatial_bias(module, x: Tensor) -> Tensor:
    maps = spatial_bias_maps(module.bias, x, x.shape[-2:])
    out = torch.einsum('oc,bchw->bohw', module.expand.weight, maps)
    return out + module.expand.bias[:, None, None]
