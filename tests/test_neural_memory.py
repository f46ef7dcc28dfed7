"""The default memory against a loop over images, heads and tokens, and what it owes its users."""

import copy

import pytest
import torch
from reference import assert_equals_reference
from torch import Tensor, nn

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.mixers import NeuralMemory
from mmconvneur.models.mixers.inner_models import INNER_MODELS
from mmconvneur.models.mixers.neural_memory import fit

pytestmark = pytest.mark.usefixtures('device')

# Distinct primes: a swapped axis cannot pass.
BATCH, DIM, HEADS, WIDTH, HEIGHT_, WIDTH_ = 2, 13, 3, 2, 5, 7


def reference(memory: NeuralMemory, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The whole mixer. Masked tokens are taken out before anything is written."""
    out = torch.zeros_like(x)
    for b, image in enumerate(x):
        valid = torch.ones_like(image[0]) if mask is None else mask[b, 0]
        z = image.flatten(1).T @ memory.in_proj.weight.T + memory.in_proj.bias
        there = valid.flatten().bool()
        deviation = (z[there].var(0, unbiased=False) + 1e-5).sqrt()
        z = (z - z[there].mean(0)) / deviation * memory.norm.weight + memory.norm.bias
        z = z * there[:, None]
        near = neighbourhoods(z.T.unflatten(1, valid.shape), memory.short_conv)
        reads = [read_head(memory, z, near, there, h) for h in range(memory.num_heads)]
        result = torch.cat(reads, dim=1) @ memory.out_proj.weight.T + memory.out_proj.bias
        out[b] = result.T.unflatten(1, image.shape[1:])
    return out


def neighbourhoods(z: Tensor, conv: nn.Conv2d) -> Tensor:
    """The depthwise 3 x 3 convolution of (C_m, H, W), zero outside, token by token: (N, C_m)."""
    _, height, width = z.shape
    rows = []
    for i in range(height):
        for j in range(width):
            total = conv.bias
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        total = total + conv.weight[:, 0, di + 1, dj + 1] * z[:, i + di, j + dj]
            rows.append(total)
    return torch.stack(rows)


def read_head(memory: NeuralMemory, z: Tensor, near: Tensor, valid: Tensor, h: int) -> Tensor:
    """What every token reads in head h, (N, d); ``z`` and ``near``: (N, C_m)."""
    width = z.size(1) // memory.num_heads
    rows = slice(h * width, (h + 1) * width)
    q, k, v = (
        near @ weight[rows, :, 0].T + bias[rows]
        for weight, bias in zip(memory.qkv.weight.chunk(3), memory.qkv.bias.chunk(3), strict=True)
    )
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    scores = torch.exp(z[valid] @ memory.write_logits.weight[h, :, 0])
    return q @ descend(k[valid], v[valid], scores / scores.sum())


def descend(keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """16 steps of gradient descent from 0 on 1/2 sum_n w_n ||k_n M - v_n||^2, by autograd."""
    memory = torch.zeros(keys.size(1), values.size(1), dtype=keys.dtype)

    def loss(memory: Tensor) -> Tensor:
        errors = [(k @ memory - v).pow(2).sum() for k, v in zip(keys, values, strict=True)]
        return sum(w * e / 2 for w, e in zip(weights, errors, strict=True))

    for _ in range(16):
        memory = memory - torch.func.grad(loss)(memory)
    return memory


def build(**cfg) -> NeuralMemory:
    """A memory in float64 whose every parameter is random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    memory = NeuralMemory(DIM, **{'memory_dim': HEADS * WIDTH, 'num_heads': HEADS, **cfg}).double()
    for parameter in memory.parameters():
        nn.init.normal_(parameter, std=0.5)
    return memory


def image(seed: int = 1, height: int = HEIGHT_, width: int = WIDTH_) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, DIM, height, width, dtype=torch.float64, generator=generator)


def holes() -> Tensor:
    """A mask of any form: no rectangle is needed."""
    mask = torch.ones(BATCH, 1, HEIGHT_, WIDTH_)
    mask[0, :, :, 4:] = 0
    mask[1, :, 3, 2:5] = 0
    return mask


# ------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize('masked', [False, True])
def test_equals_its_loop(masked):
    assert_equals_reference(reference, build(), image(), holes() if masked else None)


def test_a_rare_token_is_read_almost_as_it_was_written():
    """Orthogonal keys: of a value with weight w, 1 - (1 - w)^16 is read, not w."""
    keys, values = torch.eye(3).double(), torch.tensor([[2.0], [5.0], [7.0]]).double()
    weights = torch.tensor([0.1, 0.3, 0.6]).double()
    memory = fit(keys[None, None], values.T[None, None], weights[None, None])[0, 0]
    expected = values[:, 0] * (1 - (1 - weights) ** 16)  # 1.63 of 2, 4.98 of 5, 7.00 of 7
    torch.testing.assert_close(memory[:, 0], expected, rtol=0, atol=1e-12)


def pointwise(memory: NeuralMemory) -> NeuralMemory:
    """With a short convolution that sees its own token alone."""
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    memory.short_conv.weight.detach().mul_(centre)
    return memory


def test_permuting_tokens_permutes_the_read():
    memory, x = pointwise(build()), image()
    order = torch.randperm(HEIGHT_ * WIDTH_, generator=torch.Generator().manual_seed(0))

    def permute(maps):
        return maps.flatten(2)[:, :, order].unflatten(2, (HEIGHT_, WIDTH_))

    torch.testing.assert_close(memory(permute(x)), permute(memory(x)), rtol=0, atol=1e-12)


def test_a_mask_equals_removing_the_tokens():
    """Whatever their places: the others are moved together."""
    memory, x, mask = pointwise(build()), image()[:1], holes()[1:]
    there = mask[0, 0].bool()
    alone = memory(x[:, :, there].unsqueeze(2))  # (1, C, 1, n)
    torch.testing.assert_close(memory(x, mask)[:, :, there], alone[:, :, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize('padding', [3.0, 1e30, torch.inf, torch.nan])
def test_masked_pixels_do_not_reach_the_others(padding):
    memory, x, mask = build(), image(), holes()
    changed = torch.where(mask.bool(), x, padding)
    before, after = memory(x, mask), memory(changed, mask)
    there = mask.bool().expand_as(x)
    torch.testing.assert_close(after[there], before[there], rtol=0, atol=0)
    if padding == 3.0:
        assert (memory(changed) - memory(x))[there].abs().max() > 1e-3


def test_an_image_without_valid_pixels_writes_nothing():
    memory = build()
    out = memory(image(), torch.zeros(BATCH, 1, HEIGHT_, WIDTH_))
    expected = memory.out_proj.bias[:, None, None].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_an_empty_batch_passes():
    assert build()(image()[:0]).shape == (0, DIM, HEIGHT_, WIDTH_)


@pytest.mark.parametrize('gain', [1.0, 5.0])
@pytest.mark.parametrize('contrast', [0.0, 1e-6, 1e-4, 1e-2])
def test_an_image_of_one_colour_is_written_without_trouble(contrast, gain):
    """Where tokens hardly differ, rounding must not decide what is written."""
    torch.manual_seed(0)
    memory = NeuralMemory(97, memory_dim=184)
    nn.init.normal_(memory.out_proj.weight, std=0.1)
    nn.init.constant_(memory.norm.weight, gain)
    x = torch.randn(2, 97, 1, 1) + contrast * torch.randn(2, 97, 13, 11)
    out = memory(x.requires_grad_())
    for gradient in torch.autograd.grad(out.square().mean(), [x, *memory.parameters()]):
        assert gradient.isfinite().all()
    expected = copy.deepcopy(memory).double()(x.double())
    tolerance = 1e-3 * expected.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_what_passes_has_unit_scale_at_the_start():
    """Tokens, convolution and values, whatever the width: none is lost in the next."""
    torch.manual_seed(0)
    for dim in (40, 768):
        memory = NeuralMemory(dim)
        memory.init_weights()
        z = torch.randn(1, memory.bottleneck_dim, 19, 23)
        queries, keys, values = memory.project(z)
        assert 0.3 < memory.short_conv(z).std() < 1 and 0.3 < values.std() < 1
        # As queries start as keys, every token finds itself.
        torch.testing.assert_close(queries, keys, rtol=0, atol=0)


def test_a_head_has_eight_channels_at_least():
    sizes = [NeuralMemory(dim).qkv.in_channels for dim in (40, 96, 192, 384, 768)]
    assert sizes == [64, 64, 96, 192, 384]


def test_one_corner_reaches_the_opposite_one_through_the_memory_only():
    arch = dict(channels=(8, 16), depths=(1, 1), kernel_size=3)
    x = torch.randn(1, 3, 131, 127, generator=torch.Generator().manual_seed(1)).double()
    changed = x.clone()
    changed[:, :, :11, :11] += 1

    def response(mixer) -> float:
        torch.manual_seed(0)
        net = ConvNeur(arch, out_indices=(0, 1), global_mixer=mixer).double().eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
        pairs = zip(net(x), net(changed), strict=True)
        return max((a - b)[..., -3:, -3:].abs().max().item() for a, b in pairs)

    assert response(None) == 0
    assert response(dict(type='NeuralMemory')) > 1e-9  # float64 noise: 1e-15
    chunked = dict(type='ChunkedNeuralMemory', chunk_size=None)
    for inner_model in INNER_MODELS:
        assert response(dict(chunked, inner_model=inner_model)) > 1e-9
    # Written after everybody has read: with one chunk nothing crosses the image.
    assert response(dict(chunked, read='before')) == 0


# --------------------------------------------------------------------------- precision and layers
def test_sums_over_tokens_stay_in_float32_under_autocast():
    memory, seen = NeuralMemory(DIM, memory_dim=33, num_heads=3), []
    nn.init.normal_(memory.out_proj.weight)
    x = image().float()
    expected = memory(x)

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            projects = 'bmm' in str(function) and args[-2].size(1) == 3 * 33  # to q, k and v
            if 'bmm' in str(function) and not projects:
                seen.extend(a.dtype for a in args if isinstance(a, Tensor))
            return function(*args, **(kwargs or {}))

    with Spy(), torch.autocast('cpu', torch.bfloat16):
        out = memory(x)
    assert seen and set(seen) == {torch.float32}
    # bfloat16 has 8 bits: the outer maps lose that much and the inner sums no more.
    scale = expected.abs().max().item()
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=2e-2 * scale)


def test_layers_are_called_once_with_all_tokens():
    """A hook on any of them hears every token of the batch, and what it returns counts."""
    memory, calls = build(), []
    for name, layer in memory.named_children():
        layer.register_forward_hook(lambda m, i, o, name=name: calls.append((name, o.shape[1])))
    before = memory(image())
    assert sorted(calls) == sorted(
        [
            *((name, HEIGHT_) for name in ('in_proj', 'out_proj')),
            *((name, HEADS * WIDTH) for name in ('norm', 'short_conv')),
            ('qkv', 3 * HEADS * WIDTH),
            ('write_logits', HEADS),
        ]
    )
    memory.out_proj.register_forward_hook(lambda layer, inputs, output: 2 * output)
    torch.testing.assert_close(memory(image()), 2 * before, rtol=0, atol=1e-10)


def test_a_traced_memory_takes_another_batch_and_size():
    memory, x = build().eval(), image()
    traced = torch.jit.trace(memory, x[:1])
    torch.testing.assert_close(traced(x), memory(x), rtol=0, atol=1e-10)
    x = image(2, 11, 3)
    torch.testing.assert_close(traced(x), memory(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(memory_dim=10), 'num_heads=8 must divide memory_dim=10'),
        (dict(num_heads=0), 'num_heads=0'),
        (dict(memory_dim=0), 'bottleneck_dim=0 must be positive'),
    ],
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        NeuralMemory(16, **cfg)
    assert '\n' not in str(error.value)
