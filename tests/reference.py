"""Slow, obvious versions written from the equations, and how modules are compared with them.

The package never imports this file. The memories' own versions stand in their tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter and statistic random, so that nothing hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
        for buffer_name, buffer in module.named_buffers():
            if buffer_name.endswith('running_mean'):
                buffer.normal_(std=0.3, generator=generator)
            elif buffer_name.endswith('running_var'):
                buffer.uniform_(0.5, 2, generator=generator)
    return module


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    sum(out.square().mean() for out in net(x)).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def assert_equals_reference(
    reference: Callable, module: nn.Module, x: Tensor, mask: Tensor | None = None
) -> None:
    """Values, and the gradients of input and parameters."""
    inputs = [x.requires_grad_(), *module.parameters()]
    there = 1 if mask is None else mask  # what padding reads is nobody's concern
    actual, expected = there * module(x, mask), there * reference(module, x, mask)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    direction = torch.randn_like(actual)
    # The reference leaves out of its graph what cannot matter; the module gives zeros there.
    expected_grads = torch.autograd.grad(
        expected, inputs, direction, allow_unused=True, materialize_grads=True
    )
    actual_grads = torch.autograd.grad(actual, inputs, direction)
    for a, e in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def token_attention(x: Tensor, num_heads: int, qkv: tuple, out: tuple) -> Tensor:
    """Of tokens (N, C), head by head; ``qkv`` and ``out`` are a weight and a bias each."""
    q, k, v = (x @ w.T + b for w, b in zip(qkv[0].chunk(3), qkv[1].chunk(3), strict=True))
    heads = []
    for qh, kh, vh in zip(*(t.chunk(num_heads, dim=1) for t in (q, k, v)), strict=True):
        scores = torch.exp(qh @ kh.T / qh.size(1) ** 0.5)
        heads.append(scores / scores.sum(1, keepdim=True) @ vh)
    return torch.cat(heads, dim=1) @ out[0].T + out[1]


def grid_means(image: Tensor, size: int) -> Tensor:
    """Means (size^2, C) of the cells of a grid over (C, H, W), cell by cell."""
    _, height, width = image.shape
    means = []
    for i in range(size):
        for j in range(size):
            top, bottom = i * height // size, math.ceil((i + 1) * height / size)
            left, right = j * width // size, math.ceil((j + 1) * width / size)
            means.append(image[:, top:bottom, left:right].mean((1, 2)))
    return torch.stack(means)


def slot_logits(slots: Tensor, pixels: Tensor, scale: Tensor) -> Tensor:
    """s cos(slot, pixel), slot by slot: (S, C), (N, C) -> (S, N)."""
    lengths = pixels.pow(2).sum(1).sqrt()
    rows = [scale.squeeze() * (pixels @ s) / (s.pow(2).sum().sqrt() * lengths) for s in slots]
    return torch.stack(rows)


def soft_clustering(
    z: Tensor, slots: Tensor, scale: Tensor, num_heads: int, qkv: tuple, out: tuple, valid: Tensor
) -> Tensor:
    """Gather, attention and dispatch of one image: pixels (N, C), ``valid`` (N,) bool."""
    logits = slot_logits(slots, z, scale)
    gathered = []
    for row in logits:
        scores = torch.exp(row[valid])
        gathered.append(scores / scores.sum() @ z[valid])
    slots = token_attention(torch.stack(gathered), num_heads, qkv, out)
    assignment = torch.exp(logits) / torch.exp(logits).sum(0)
    return assignment.T @ slots


def glmix(module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The whole mixer, image by image; the valid pixels of a mask are a rectangle at the corner."""
    results = []
    clustering = module.clustering
    attention = clustering.attention
    for b, image in enumerate(x):
        valid = torch.ones(image.shape[1:]) if mask is None else mask[b, 0]
        height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
        slots = grid_means(image[:, :height, :width], clustering.size)
        context = soft_clustering(
            layer_norm(image.flatten(1).T, module.norm.weight, module.norm.bias),
            slots,
            clustering.affinity.scale,
            attention.num_heads,
            (attention.qkv.weight, attention.qkv.bias),
            (attention.out_proj.weight, attention.out_proj.bias),
            valid.flatten().bool(),
        )
        context = context @ module.out_proj.weight.T + module.out_proj.bias
        results.append(context.T.unflatten(1, image.shape[1:]))
    return torch.stack(results)


def glnet(state: dict, x: Tensor, head_dim: int, training: bool = False) -> list[Tensor]:
    """GLNet from the tensors of a published checkpoint, under the published names.

    Returns the maps of the four stages, then the last one normalised, as the classifier gets it.
    """

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        weight = state[f'{name}.weight']
        weight = weight if weight.dim() == 4 else weight[:, :, None, None]
        groups = x.size(1) // weight.size(1)
        return F.conv2d(x, weight, state[f'{name}.bias'], stride, padding, groups=groups)

    def batch_norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f'{name}.running_mean'], state[f'{name}.running_var']
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * state[f'{name}.weight'][:, None, None] + state[f'{name}.bias'][:, None, None]

    def pixel_norm(name: str, x: Tensor) -> Tensor:
        x = layer_norm(x.permute(0, 2, 3, 1), state[f'{name}.weight'], state[f'{name}.bias'])
        return x.permute(0, 3, 1, 2)

    def pair(name: str, joint: str) -> tuple[Tensor, Tensor]:
        return state[f'{name}{joint}weight'], state[f'{name}{joint}bias']

    def mix(name: str, z: Tensor, source: Tensor) -> Tensor:
        kind = 'relation_mha' if f'{name}.slot_scale' in state else 'mha_op'
        heads = z.size(1) // head_dim
        maps = (pair(f'{name}.{kind}.in_proj', '_'), pair(f'{name}.{kind}.out_proj', '.'))
        results = []
        for image, raw in zip(z.flatten(2).mT, source, strict=True):
            if kind == 'mha_op':
                results.append(token_attention(image, heads, *maps))
            else:
                slots, all_pixels = grid_means(raw, 8), torch.ones(len(image)).bool()
                scale = state[f'{name}.slot_scale']
                results.append(soft_clustering(image, slots, scale, heads, *maps, all_pixels))
        mixed = torch.stack(results).mT.unflatten(2, z.shape[2:])
        if kind == 'relation_mha':
            name = f'{name}.feature_conv'
            mixed = mixed + conv(f'{name}.2', conv(f'{name}.1', conv(f'{name}.0', z), padding=2))
        return mixed

    def mlp(name: str, x: Tensor) -> Tensor:
        x = conv(f'{name}.0', x)
        if f'{name}.1.weight' in state:
            x = x + conv(f'{name}.1', x, padding=1)
        last = '3' if f'{name}.3.weight' in state else '2'
        return conv(f'{name}.{last}', F.gelu(x))

    def layer_scale(name: str, x: Tensor) -> Tensor:
        gamma = state.get(f'{name}.gamma', torch.ones(1))
        return gamma.flatten()[:, None, None] * x

    def downsample(i: int, x: Tensor) -> Tensor:
        name = f'downsample_layers.{i}'
        if 'downsample_layers.0.4.weight' not in state:  # stl: disjoint patches
            if i == 0:
                return batch_norm(f'{name}.1', conv(f'{name}.0', x, stride=4))
            return conv(f'{name}.1', batch_norm(f'{name}.0', x), stride=2)
        if i == 0:
            x = F.gelu(batch_norm(f'{name}.2', conv(f'{name}.1', x, stride=2, padding=1)))
            return batch_norm(f'{name}.5', conv(f'{name}.4', x, stride=2, padding=1))
        return batch_norm(f'{name}.1', conv(f'{name}.0', x, stride=2, padding=1))

    maps = []
    for i in range(4):
        x = downsample(i, x)
        depth = len({key.split('.')[3] for key in state if key.startswith(f'stages.{i}.')})
        for j in range(depth):
            name = f'stages.{i}.blocks.{j}'
            source = x
            if f'{name}.pos_conv.weight' in state:
                x = x + conv(f'{name}.pos_conv', x, padding=1)
            x = x + layer_scale(f'{name}.ls1', mix(name, pixel_norm(f'{name}.norm1', x), source))
            x = x + layer_scale(f'{name}.ls2', mlp(f'{name}.mlp', pixel_norm(f'{name}.norm2', x)))
        maps.append(x)
    return [*maps, batch_norm('norm', x)]


# ------------------------------------------------------------------------------- other mixers
def bottleneck(module, x: Tensor, mix) -> Tensor:
    """``W_out f(LayerNorm(W_in x))``, image by image; ``mix``: ``(C_m, H, W) -> (C_m, H, W)``."""
    out = []
    for image in x:
        z = torch.einsum('oc,chw->ohw', module.in_proj.weight, image)
        z = z + module.in_proj.bias[:, None, None]
        centred = z - z.mean(0)
        z = centred / (centred.pow(2).mean(0) + 1e-6).sqrt()
        z = z * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
        mixed = torch.einsum('oc,chw->ohw', module.out_proj.weight, mix(z))
        out.append(mixed + module.out_proj.bias[:, None, None])
    return torch.stack(out)


def self_attention(module, x: Tensor) -> Tensor:
    def mix(z: Tensor) -> Tensor:
        tokens = z.flatten(1).T
        nothing = torch.eye(tokens.size(1), dtype=z.dtype), 0
        qkv = module.qkv.weight, module.qkv.bias
        return token_attention(tokens, module.num_heads, qkv, nothing).T.unflatten(1, z.shape[1:])

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
        cells = grid_means(maps, 10)  # (100, 5)
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


def neighbours(pixel: int, length: int) -> list[tuple[int, float]]:
    """The two cells between whose centres the centre of a pixel lies, and their weights."""
    position = min(max((pixel + 0.5) * 10 / length - 0.5, 0), 9)
    left = min(int(position), 8)
    return [(left, left + 1 - position), (left + 1, position - left)]


def spatial_bias(module, x: Tensor) -> Tensor:
    maps = spatial_bias_maps(module.bias, x, x.shape[-2:])
    out = torch.einsum('oc,bchw->bohw', module.out_proj.weight, maps)
    return out + module.out_proj.bias[:, None, None]
