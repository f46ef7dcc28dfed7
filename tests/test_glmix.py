import math

import pytest
import torch
from reference import assert_equals_reference, layer_norm, slot_logits
from reference import glmix as reference
from torch.nn import functional as F

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.layers.grid import adaptive_avg_pool
from mmconvneur.models.mixers import GLMix

pytestmark = pytest.mark.usefixtures('device')

# 2 heads of 5 channels, 9 slots, 7 x 11 pixels: no two sizes are equal.
BATCH, HEADS, DIM, SLOTS, HEIGHT, WIDTH = 3, 2, 10, 9, 7, 11


def build(num_slots: int = SLOTS) -> GLMix:
    """A mixer in float64 whose every parameter is random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    mixer = GLMix(DIM, num_slots, HEADS).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.constant_(mixer.clustering.affinity.scale, 3.0)  # far from uniform weights
    return mixer


def image(height: int = HEIGHT, width: int = WIDTH, batch: int = BATCH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, DIM, height, width, dtype=torch.float64, generator=generator)


def padding(*valid: tuple[int, int], height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """A mask per image whose valid pixels are a rectangle at the corner."""
    mask = torch.zeros(len(valid), 1, height, width)
    for image_mask, (rows, columns) in zip(mask, valid, strict=True):
        image_mask[:, :rows, :columns] = 1
    return mask


# --------------------------------------------------------------------------------------- the values
@pytest.mark.parametrize('masked', [False, True])
def test_equals_its_loop(masked):
    mask = padding((7, 5), (4, 11), (3, 2)) if masked else None
    assert_equals_reference(reference, build(), image(), mask)


@pytest.mark.parametrize('size', [(1, 1), (1, 13), (2, 5), (5, 3)])
def test_maps_smaller_than_the_grid_repeat_their_pixels(size):
    mixer = build(num_slots=49)
    assert_equals_reference(reference, mixer, image(*size))
    ones = torch.ones(BATCH, 1, *size)
    torch.testing.assert_close(mixer(image(*size), ones), mixer(image(*size)), rtol=0, atol=1e-12)


@pytest.mark.parametrize('valid', [(1, 1), (2, 11), (7, 3), (7, 11), (5, 6)])
@pytest.mark.parametrize('size', [1, 3, 8])
def test_pooling_of_real_pixels_is_that_of_the_image_without_padding(valid, size):
    rows, columns = valid
    x = image()
    pooled = adaptive_avg_pool(x, size, padding(*[valid] * BATCH))
    expected = F.adaptive_avg_pool2d(x[:, :, :rows, :columns], size)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    # Wherever the rectangle lies.
    moved, mask = (t.flip(2, 3) for t in (x, padding(*[valid] * BATCH)))
    expected = F.adaptive_avg_pool2d(moved[:, :, HEIGHT - rows :, WIDTH - columns :], size)
    torch.testing.assert_close(adaptive_avg_pool(moved, size, mask), expected, rtol=0, atol=1e-12)


def test_pooling_leaves_single_pixels_out():
    x, mask = torch.arange(6.0).view(1, 1, 2, 3), torch.ones(1, 1, 2, 3)
    mask[0, 0, 1, 1] = 0  # 0 1 2 / 3 . 5
    assert adaptive_avg_pool(x, 1, mask).item() == pytest.approx((0 + 1 + 2 + 3 + 5) / 5)


def test_an_image_of_padding_alone_is_finite_and_does_not_reach_the_others():
    mixer, x = build(), image()
    mask = padding((7, 11), (0, 0), (7, 11))
    out = mixer(x, mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[::2], mixer(x)[::2], rtol=0, atol=1e-12)


def test_both_layouts_of_memory_give_the_same():
    mixer, x = build(), image()
    out = mixer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, mixer(x), rtol=0, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_pixels_of_zeros_have_finite_gradients():
    mixer, x = build().float(), torch.zeros(1, DIM, HEIGHT, WIDTH, requires_grad=True)
    torch.nn.init.zeros_(mixer.norm.bias)
    mixer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_autocast_stays_near_float32():
    mixer, x = build().float(), image().float()
    with torch.autocast('cpu', torch.bfloat16):
        out = mixer(x)
    # bfloat16 keeps 8 bits of each product.
    assert ((out - mixer(x)).norm() / mixer(x).norm()).item() < 2e-2


# -------------------------------------------------------------------------------------- in ConvNeur
def test_start_is_neutral_also_after_the_backbone_initialised():
    net = ConvNeur(
        dict(channels=(8, 12), depths=(1, 1)),
        out_indices=(0, 1),
        global_mixer=dict(type='GLMix', num_slots=4),
    )
    net.init_weights()
    for stage, dim in zip(net.stages, (8, 12), strict=True):
        mixer = stage[0].global_branch
        assert mixer(torch.randn(2, dim, 5, 7)).abs().max() == 0
        # Unit scale, not the 0.02 of the backbone: Xavier's bound for fan-in C and fan-out 3 C.
        assert mixer.clustering.attention.qkv.weight.abs().max() > 0.9 * (6 / (4 * dim)) ** 0.5


@pytest.mark.parametrize('value, first', [(None, 12**-0.5), (10, 10)])
def test_the_scale_starts_where_it_is_told(value, first):
    net = ConvNeur(
        dict(channels=(8, 12), depths=(1, 1)),
        out_indices=(0, 1),
        global_mixer=dict(type='GLMix', scale_init_value=value),
    )
    net.init_weights()
    assert net.stages[1][0].global_branch.clustering.affinity.scale.item() == pytest.approx(first)


def test_a_hook_on_the_affinity_gives_the_slot_maps():
    mixer, x = build(), image()
    seen = []
    mixer.get_submodule('clustering.affinity').register_forward_hook(lambda *a: seen.append(a[2]))
    mixer(x)
    (logits,) = seen
    pixels = layer_norm(x.permute(0, 2, 3, 1), mixer.norm.weight, mixer.norm.bias).flatten(1, 2)
    slots = adaptive_avg_pool(x, mixer.clustering.size).flatten(2).mT
    for b in range(BATCH):
        expected = slot_logits(slots[b], pixels[b], torch.tensor(3.0))
        torch.testing.assert_close(logits[b], expected, rtol=0, atol=1e-12)
    assert logits.shape == (BATCH, SLOTS, HEIGHT * WIDTH)


def test_temperature_starts_at_one_over_the_root_of_the_channels():
    assert GLMix(64).clustering.affinity.scale.item() == 1 / math.sqrt(64)


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(num_slots=60), r'num_slots=60 is not a square.*take 49 or 64'),
        (dict(num_slots=0), 'num_slots=0 must be positive'),
        (dict(num_heads=3), r'num_heads=3 must divide the 10 channels: take 1, 2, 5, 10'),
        (dict(num_heads=0), 'num_heads=0 must divide the 10 channels'),
    ],
    ids=str,
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        GLMix(DIM, **cfg)
    assert '\n' not in str(error.value)
