import copy
import itertools

import pytest
import torch
from reference import neural_memory as reference

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.layers import tiles
from mmconvneur.models.mixers import NeuralMemory, PublishedNeuralMemory
from mmconvneur.models.mixers.inner_models import INNER_MODELS
from mmconvneur.models.mixers.neural_memory import shrunk_covariance

# Distinct primes: a swapped axis cannot pass. 5 x 7 tokens, chunks of 11: the last one is ragged.
BATCH, DIM, HEADS, WIDTH, HEIGHT_, WIDTH_ = 2, 13, 3, 2, 5, 7
FORMS = [
    dict(chunk_size=size, read=read, gradient=gradient)
    for size, read, gradient in [
        (None, 'after', 'running'),
        (None, 'after', 'start'),
        *itertools.product([11], ['after', 'before'], ['running', 'start']),
    ]
]
PUBLISHED = [dict(chunk_size=11, gradient='running'), dict(chunk_size=11, gradient='start')]


def possible(forms: list[dict]) -> list:
    """Every form with every inner model, but steps of ridge that would be added up."""
    return [
        pytest.param(name, form, id='-'.join(map(str, (name, *form.values()))))
        for name, form in itertools.product(INNER_MODELS, forms)
        if name != 'ridge' or form['chunk_size'] is None or form['gradient'] == 'running'
    ]


@pytest.fixture(autouse=True, params=[tiles.TILE, 11], ids=['one-strip', 'many-strips'])
def strip(request, monkeypatch):
    """Everything holds for an image that is one strip and for one that is many, the last ragged."""
    monkeypatch.setattr(tiles, 'TILE', request.param)


def build(cls=NeuralMemory, **cfg):
    """A memory in float64 whose every parameter is random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    memory = cls(DIM, memory_dim=HEADS * WIDTH, num_heads=HEADS, **cfg).double()
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return memory


def image(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, DIM, HEIGHT_, WIDTH_, dtype=torch.float64, generator=generator)


def assert_equals_reference(memory, name, mask=None):
    x = image().requires_grad_()
    inputs = [x, *memory.parameters()]
    actual, expected = memory(x, mask), reference(memory, name, x, mask)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    direction = torch.randn_like(actual)
    # The reference leaves out of its graph what cannot matter; the module gives zeros there.
    expected_grads = torch.autograd.grad(
        expected, inputs, direction, allow_unused=True, materialize_grads=True
    )
    actual_grads = torch.autograd.grad(actual, inputs, direction)
    for a, e in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


@pytest.mark.parametrize(('name', 'form'), possible(FORMS))
def test_every_form_equals_its_loop(name, form):
    assert_equals_reference(build(inner_model=name, **form), name)


def test_write_weights_without_whitening():
    assert_equals_reference(build(whiten=False), 'ridge')


@pytest.mark.parametrize(('name', 'form'), possible(PUBLISHED))
def test_published_form_equals_its_loop(name, form):
    assert_equals_reference(build(PublishedNeuralMemory, inner_model=name, **form), name)


@pytest.mark.parametrize('form', FORMS)
def test_mask_equals_removing_the_tokens(form):
    mask = torch.ones(BATCH, 1, HEIGHT_, WIDTH_)
    mask[0, :, :, 4:] = 0
    mask[1, :, 3:] = 0
    assert_equals_reference(build(inner_model='linear', **form), 'linear', mask)
    assert_equals_reference(build(chunk_size=form['chunk_size']), 'ridge', mask)
    assert_equals_reference(build(PublishedNeuralMemory, chunk_size=11), 'linear', mask)


@pytest.mark.parametrize('name', ['qkv', 'expand'])
def test_a_layer_that_took_the_place_of_ours_is_called(name):
    class Doubled(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, *inputs):
            return 2 * self.layer(*inputs)

    memory, doubled = build(), build()
    setattr(doubled, name, Doubled(getattr(doubled, name)))
    with torch.no_grad():
        for parameter in getattr(memory, name).parameters():
            parameter.mul_(2)
    torch.testing.assert_close(doubled(image()), memory(image()), rtol=0, atol=1e-10)


def test_layers_with_hooks_are_called():
    memory = build()
    before = memory(image())
    hook = memory.expand.register_forward_hook(lambda layer, inputs, output: 2 * output)
    torch.testing.assert_close(memory(image()), 2 * before, rtol=0, atol=1e-10)
    hook.remove()
    hook = memory.qkv.register_forward_hook(lambda layer, inputs, output: 2 * output)
    hooked = memory(image())
    hook.remove()
    with torch.no_grad():
        memory.qkv.weight.mul_(2), memory.qkv.bias.mul_(2)
    torch.testing.assert_close(hooked, memory(image()), rtol=0, atol=1e-10)


@pytest.mark.parametrize('form', [dict(), *FORMS], ids=str)
def test_an_empty_batch_passes(form):
    assert build(**form, inner_model='linear')(image()[:0]).shape == (0, DIM, HEIGHT_, WIDTH_)


@pytest.mark.parametrize('gain', [1.0, 5.0])
@pytest.mark.parametrize('contrast', [0.0, 1e-6, 1e-4, 1e-2])
def test_an_image_of_one_colour_is_written_without_trouble(contrast, gain):
    """Tokens that hardly differ have no covariance to speak of, and it must not turn negative."""
    torch.manual_seed(0)
    memory = NeuralMemory(97, memory_dim=184)
    torch.nn.init.normal_(memory.expand.weight, std=0.1)
    torch.nn.init.constant_(memory.norm.weight, gain)
    x = torch.randn(2, 97, 1, 1) + contrast * torch.randn(2, 97, 13, 11)
    tokens = memory.embed(x.flatten(2).mT)
    assert (torch.linalg.cholesky_ex(shrunk_covariance([tokens], None)).info == 0).all()
    out = memory(x.requires_grad_())
    for gradient in torch.autograd.grad(out.square().mean(), [x, *memory.parameters()]):
        assert gradient.isfinite().all()
    expected = copy.deepcopy(memory).double()(x.double())
    tolerance = 1e-3 * expected.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_a_traced_memory_takes_another_batch():
    memory, x = build().eval(), image()
    traced = torch.jit.trace(memory, x[:1])
    torch.testing.assert_close(traced(x), memory(x), rtol=0, atol=1e-10)


def test_masked_pixels_do_not_reach_the_others():
    memory, x, mask = build(), image(), torch.ones(BATCH, 1, HEIGHT_, WIDTH_)
    mask[:, :, :, 5:] = 0
    changed = x.clone()
    changed[:, :, :, 5:] += 3
    before, after = memory(x, mask), memory(changed, mask)
    torch.testing.assert_close(after[..., :5], before[..., :5], rtol=0, atol=0)
    assert (memory(changed) - memory(x))[..., :5].abs().max() > 1e-3


def test_a_chunk_of_padding_writes_nothing():
    memory, x = build(chunk_size=WIDTH_), image()  # one chunk per row
    mask = torch.ones(BATCH, 1, HEIGHT_, WIDTH_)
    mask[:, :, -1] = 0
    torch.testing.assert_close(memory(x, mask)[:, :, :-1], memory(x[:, :, :-1]), rtol=0, atol=1e-12)


def test_permuting_tokens_permutes_the_read():
    memory, x = build(), image()
    order = torch.randperm(HEIGHT_ * WIDTH_, generator=torch.Generator().manual_seed(0))

    def permute(maps):
        return maps.flatten(2)[:, :, order].unflatten(2, (HEIGHT_, WIDTH_))

    torch.testing.assert_close(memory(permute(x)), permute(memory(x)), rtol=0, atol=1e-12)


def test_images_do_not_see_their_batch_mates():
    memory, x = build(), image()
    torch.testing.assert_close(memory(x)[:1], memory(x[:1]), rtol=0, atol=1e-12)


def test_start_is_neutral_also_after_the_backbone_initialised():
    for memory in (NeuralMemory(DIM), PublishedNeuralMemory(DIM)):
        assert memory(image().float()).abs().max() == 0
        torch.nn.init.ones_(memory.expand.weight)
        memory.init_weights()
        assert memory(image().float()).abs().max() == 0


def test_published_rates_start_small():
    """theta = sigmoid(-4) = 0.018, eta = 1/2, alpha = 0.018 for tokens of zero."""
    memory = PublishedNeuralMemory(DIM, memory_dim=6, num_heads=3, step=0.5)
    tokens = torch.zeros(2, 5, 7, 6)
    rule = memory.write_rule(tokens, torch.ones(2, 5, 7))
    assert rule.weights.shape == (2, 3, 5, 7) and (rule.weights == 1).all()
    for rate, value in (
        (rule.step, 0.5 * 0.0179862),
        (rule.momentum, 0.5),
        (rule.decay, 0.0179862),
    ):
        torch.testing.assert_close(rate, torch.full((2, 3, 5), value), rtol=0, atol=1e-7)


def test_inner_step_stays_in_float32_under_autocast(monkeypatch):
    memory = NeuralMemory(DIM, memory_dim=33, num_heads=3)
    torch.nn.init.normal_(memory.expand.weight)
    seen = set()
    inner = INNER_MODELS['ridge']

    def spy(weights, cross, curvature):
        seen.update(t.dtype for t in (*weights, cross, curvature))
        return inner.solve(weights, cross, curvature)

    monkeypatch.setitem(INNER_MODELS, 'ridge', inner._replace(solve=spy))
    x = image().float()
    with torch.autocast('cpu', torch.bfloat16):
        out = memory(x)
    assert seen == {torch.float32}
    # bfloat16 has 8 bits: the outer maps lose that much and the inner sum no more.
    expected = memory(x)
    torch.testing.assert_close(
        out.float(), expected, rtol=0, atol=2e-2 * expected.abs().max().item()
    )


def corner_response(**cfg) -> float:
    """How much the bottom-right corner of a ConvNeur changes when the top-left corner does."""
    torch.manual_seed(0)
    arch = dict(channels=(8, 16), depths=(1, 1), kernel_size=3)
    net = ConvNeur(arch, out_indices=(0, 1), **cfg).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 3, 131, 127, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, :11, :11] += 1
    return max(
        (a - b)[..., -3:, -3:].abs().max().item() for a, b in zip(net(x), net(changed), strict=True)
    )


def test_one_corner_reaches_the_opposite_one_through_the_memory_only():
    assert corner_response(global_mixer=None) == 0
    for inner_model in INNER_MODELS:
        cfg = dict(type='NeuralMemory', inner_model=inner_model)
        assert corner_response(global_mixer=cfg) > 1e-9  # float64 noise: 1e-15
    # Written after everybody has read: with one chunk nothing crosses the image.
    assert corner_response(global_mixer=dict(type='NeuralMemory', read='before')) == 0


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(inner_model='cubic'), 'ridge, linear, two_layer, gated'),
        (dict(read='during'), 'after, before'),
        (dict(gradient='later'), 'running, start'),
        (dict(chunk_size=7, gradient='start'), "needs gradient='running'"),
        (dict(memory_dim=10), 'num_heads=8 must divide memory_dim=10'),
        (dict(num_heads=0), 'num_heads=0'),
        (dict(chunk_size=0), 'chunk_size=0 must be positive'),
        (dict(chunk_size=-3), 'chunk_size=-3 must be positive'),
    ],
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        NeuralMemory(16, **cfg)
    assert '\n' not in str(error.value)
