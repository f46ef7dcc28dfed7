"""What every global branch owes, and the values of those that are no memory."""

import pickle

import pytest
import reference
import torch
from reference import assert_equals_reference, randomise
from torch import nn

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.mixers.build import build_mixer
from mmconvneur.models.mixers.spatial_bias import SpatialBiasMaps
from mmconvneur.registry import MIXERS

pytestmark = pytest.mark.usefixtures('device')

BATCH, DIM, HEIGHT, WIDTH = 2, 13, 11, 7
CONFIGS = {
    'NeuralMemory': dict(memory_dim=6, num_heads=3),
    'ChunkedNeuralMemory': dict(memory_dim=6, num_heads=3, chunk_size=19),
    'PublishedNeuralMemory': dict(memory_dim=6, num_heads=3, chunk_size=19),
    'GLMix': dict(num_slots=4, num_heads=1),
    'SelfAttention': dict(bottleneck_dim=6, num_heads=3),
    'NonLocal': dict(bottleneck_dim=6),
    'CBAM': dict(bottleneck_dim=6),
    'SpatialBias': dict(),
}
REFERENCES = {
    'GLMix': reference.glmix,
    'SelfAttention': reference.self_attention,
    'NonLocal': reference.non_local,
    'CBAM': reference.cbam,
    'SpatialBias': reference.spatial_bias,
}
every_mixer = pytest.mark.parametrize('name', CONFIGS)


def build(name: str) -> nn.Module:
    """A mixer in float64 and in eval mode."""
    return randomise(build_mixer(dict(type=name, **CONFIGS[name]), DIM)).double().eval()


def image(batch: int = BATCH, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, DIM, height, width, dtype=torch.float64, generator=generator)


# ------------------------------------------------------------------------------- what each owes
@pytest.mark.parametrize('height, width', [(1, 1), (3, 5), (11, 7), (7, 29), (23, 13)])
@pytest.mark.parametrize('batch', [1, 3])
@every_mixer
def test_keeps_the_shape_of_any_map(name, batch, height, width):
    """One image, maps that are not square, maps smaller than a grid of 10 x 10."""
    out = build(name)(image(batch, height, width))
    assert out.shape == (batch, DIM, height, width) and out.isfinite().all()


@every_mixer
def test_layout_does_not_matter(name):
    x = image()
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(build(name)(last), build(name)(x), rtol=0, atol=1e-12)


# Not the published memory: with these weights its sum over a chunk diverges.
@pytest.mark.parametrize('name', [name for name in CONFIGS if name != 'PublishedNeuralMemory'])
def test_float32_on_a_map_of_many_rows(name):
    """More rows than a matrix product is taken for: the CPU's faster kernel computes the same."""
    mixer, x = build(name), image(2, 257, 5)
    expected = mixer(x)
    actual = mixer.float()(x.float()).double()
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * scale)


@every_mixer
def test_padding_does_not_reach_valid_pixels(name):
    """The valid part of a padded image is the image alone, each image with a size of its own."""
    mixer = build(name)
    x, mask = image(3), torch.zeros(3, 1, HEIGHT, WIDTH)
    sizes = [(11, 5), (7, 7), (11, 7)]
    for b, (height, width) in enumerate(sizes):
        mask[b, :, :height, :width] = 1
    out = mixer(torch.where(mask.bool(), x, torch.nan), mask)
    for b, (height, width) in enumerate(sizes):
        alone = mixer(x[b : b + 1, :, :height, :width])
        torch.testing.assert_close(out[b : b + 1, :, :height, :width], alone, rtol=0, atol=1e-10)
    with_padding = mixer(torch.where(mask.bool(), x, 3.0))
    assert (with_padding - out).abs().max() > 1e-3  # without the mask it does reach them


@every_mixer
def test_padding_gets_no_gradient_from_valid_pixels(name):
    mixer, x, mask = build(name), image().requires_grad_(), torch.ones(BATCH, 1, HEIGHT, WIDTH)
    mask[..., 5:] = 0
    mixer(torch.where(mask.bool(), x, torch.nan), mask)[..., :5].square().sum().backward()
    assert x.grad[..., 5:].abs().max() == 0 and x.grad[..., :5].abs().max() > 0
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@every_mixer
def test_starts_neutral_also_after_the_backbone_initialised(name):
    mixer = build_mixer(dict(type=name, **CONFIGS[name]), DIM)
    assert mixer(image().float()).abs().max() == 0
    randomise(mixer)
    mixer.init_weights()
    assert mixer(image().float()).abs().max() == 0


@every_mixer
def test_images_do_not_see_their_batch_mates_in_eval_mode(name):
    mixer, x = build(name), image(3)
    alone = mixer(x[1:2])
    # The published memory gives hundreds, of which float64 itself rounds off 1e-13.
    atol = max(1e-12, 1e-14 * alone.abs().max().item())
    torch.testing.assert_close(mixer(x)[1:2], alone, rtol=0, atol=atol)


@every_mixer
def test_learns_from_its_neutral_start(name):
    """Of the start as it is only the last layer is moved: what stands before it must not be dead.

    The published memory reads nothing that its last chunk wrote, but it has four here.
    """
    torch.manual_seed(0)
    mixer = build_mixer(dict(type=name, **CONFIGS[name]), DIM).double()
    last = [mixer.out_proj.weight, mixer.out_proj.bias]
    target = image(height=23, width=13).flip(0)
    (mixer(image(height=23, width=13)) - target).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in last)
    mixer.zero_grad()
    nn.init.normal_(mixer.out_proj.weight, std=0.1)
    (mixer(image(height=23, width=13)) - target).square().mean().backward()
    for key, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@every_mixer
def test_one_corner_reaches_the_opposite_one(name):
    """CBAM by what it pools over all pixels; nothing here convolves so far."""
    mixer, x = build(name), image(1, 23, 29)
    changed = x.clone()
    changed[..., :3, :3] += 1
    assert (mixer(changed) - mixer(x))[..., -1, -1].abs().max() > 1e-7


@pytest.mark.parametrize('placement', ['stage', 'block', (1,)], ids=str)
@pytest.mark.parametrize('fusion', ['gate', 'add', 'concat'])
@every_mixer
def test_works_in_a_backbone_with_each_fusion_and_placement(name, fusion, placement):
    arch = dict(channels=(8, 16), depths=(2, 1), mlp_ratio=2, kernel_size=3)
    options = dict(memory_dim=8, bottleneck_dim=8, num_heads=2, chunk_size=101)
    options = {key: value for key, value in options.items() if key in CONFIGS[name]}
    cfg = dict(arch=arch, out_indices=(1,), global_mixer=dict(type=name, **options))
    net = ConvNeur(**cfg, fusion=fusion, placement=placement).double().eval()
    blocks = dict(net.named_modules())
    branches = {path for path in blocks if path.endswith('global_branch')}
    places = {'stage': ['0.0', '1.0'], 'block': ['0.0', '0.1', '1.0'], (1,): ['1.0']}[placement]
    assert branches == {f'stages.{place}.global_branch' for place in places}

    x = torch.randn(1, 3, 67, 101, dtype=torch.float64)
    neutral = net(x)[0]
    if fusion != 'gate':
        for path in branches:  # neutral: the local branch alone
            blocks[path.replace('global_branch', 'fusion')].forward = lambda local, context: local
        torch.testing.assert_close(net(x)[0], neutral, rtol=0, atol=1e-10)
        for path in branches:
            del blocks[path.replace('global_branch', 'fusion')].forward
    for path in branches:
        randomise(blocks[path].out_proj)
        randomise(blocks[path.replace('global_branch', 'fusion')])
    assert (net(x)[0] - neutral).abs().max() > 1e-3
    net.train()(x)[0].square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_every_registered_mixer_is_tested_here():
    assert set(CONFIGS) <= set(MIXERS.module_dict)
    ours = {n for n, c in MIXERS.module_dict.items() if c.__module__.startswith('mmconvneur')}
    assert ours == set(CONFIGS)


@every_mixer
def test_runs_under_autocast_and_in_bfloat16(name):
    mixer, x = build(name).float(), image().float()
    expected = mixer(x)
    scale = expected.abs().max().item()
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(mixer(x).float(), expected, rtol=0, atol=5e-2 * scale)
    assert mixer.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize('name', REFERENCES)
def test_exports_with_dynamic_height_and_width(name):
    if torch.__version__ < '2.2':
        pytest.skip('PyTorch before 2.2 has no torch.export.Dim')
    arch = dict(channels=(8, 16), depths=(1, 1), kernel_size=3)
    net = ConvNeur(arch, out_indices=(0, 1), global_mixer=dict(type=name))
    net = randomise(net).double().eval()
    sizes = {2: torch.export.Dim('height', min=64), 3: torch.export.Dim('width', min=64)}
    example = torch.randn(2, 3, 67, 101, dtype=torch.float64)
    program = torch.export.export(net, (example,), dynamic_shapes=(sizes,)).module()
    for height, width in [(64, 64), (71, 173), (131, 97)]:
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        x[1, :, -9:] = 0.5  # padding
        for a, b in zip(program(x), net(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# --------------------------------------------------------------------------------------- values
@pytest.mark.parametrize('name', REFERENCES)
def test_equals_its_slow_reference(name):
    def slow(mixer, x, mask):
        return REFERENCES[name](mixer, x)

    assert_equals_reference(slow, build(name), image())


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('size, out', [((11, 17), (11, 17)), ((13, 23), (7, 12)), ((3, 5), (3, 5))])
def test_spatial_bias_maps_equal_their_reference(batch, size, out):
    """Also for one image (a squeeze would lose its axis) and maps that are not square."""
    module = randomise(SpatialBiasMaps(DIM)).double().eval()
    x = image(batch, *size)
    expected = reference.spatial_bias_maps(module, x, out)
    torch.testing.assert_close(module(x, out), expected, rtol=0, atol=1e-10)


def test_spatial_bias_normalises_valid_pixels_only_while_training():
    """With a mask the statistics are those of the batch without its padding."""
    padded, alone = build('SpatialBias').train(), build('SpatialBias').train()
    x, mask = image(), torch.ones(BATCH, 1, HEIGHT, WIDTH)
    mask[..., 5:] = 0
    out = padded(torch.where(mask.bool(), x, 100.0), mask)[..., :5]
    torch.testing.assert_close(out, alone(x[..., :5]), rtol=0, atol=1e-10)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[key], value, rtol=0, atol=1e-10, msg=key)


def test_cbam_has_at_least_eight_hidden_channels():
    assert [build_mixer(dict(type='CBAM'), d).channel[0].out_features for d in (40, 768)] == [8, 24]


# --------------------------------------------------------------------------------------- contract
@MIXERS.register_module()
class Halving(nn.Module):
    def __init__(self, dim):
        super().__init__()

    def forward(self, x, mask=None):
        return x[..., ::2]


@MIXERS.register_module()
class FixedWidth(Halving):
    def __init__(self, dim):
        super().__init__(dim)
        self.conv = nn.Conv2d(64, 64, 1)

    def forward(self, x, mask=None):
        return self.conv(x)


@MIXERS.register_module()
class Listing(Halving):
    def forward(self, x, mask=None):
        return [x]


@MIXERS.register_module()
class Noisy(Halving):
    """Everything that a check must leave alone: random numbers, statistics, parameters."""

    def __init__(self, dim):
        super().__init__(dim)
        self.norm, self.scale = nn.BatchNorm2d(dim), nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x, mask=None):
        return nn.functional.dropout(self.norm(x) * self.scale) + torch.randn_like(x)


@MIXERS.register_module()
class Deciding(Halving):
    """Looks at the values of its map, which the check does not have."""

    def forward(self, x, mask=None):
        return x if x.max().item() > 0 else -x


@pytest.fixture(scope='module', autouse=True)
def forget_these():
    yield
    for name in ('Halving', 'FixedWidth', 'Listing', 'Noisy', 'Deciding'):
        MIXERS.module_dict.pop(name)


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize(
    'name, problem',
    [
        ('Halving', r'global mixer Halving maps \(1, 13, 11, 13\) to \(1, 13, 11, 7\)'),
        ('FixedWidth', r'global mixer FixedWidth fails on a map of \(1, 13, 11, 13\)'),
        ('Listing', r'global mixer Listing maps \(1, 13, 11, 13\) to list'),
    ],
)
def test_a_mixer_that_breaks_the_contract_is_named(name, problem, device):
    with torch.device(device), pytest.raises(UsageError, match=problem) as error:
        build_mixer(dict(type=name), DIM)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['Noisy', *CONFIGS])
def test_the_check_leaves_no_trace(name):
    cfg = dict(type=name, **CONFIGS.get(name, {}))
    torch.manual_seed(0)
    unchecked = MIXERS.get(name)(DIM, **CONFIGS.get(name, {}))
    random_state = torch.get_rng_state()
    torch.manual_seed(0)
    checked = build_mixer(cfg, DIM)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert checked.training and all(p.grad is None for p in checked.parameters())
    for key, value in unchecked.state_dict().items():
        found = checked.state_dict()[key]
        assert type(found) is torch.Tensor and torch.equal(found, value), key
    assert pickle.dumps(checked)


@pytest.mark.parametrize('name', ['Noisy', *CONFIGS])
def test_the_check_works_on_the_meta_device(name):
    with torch.device('meta'):
        mixer = build_mixer(dict(type=name, **CONFIGS.get(name, {})), DIM)
    assert all(p.is_meta for p in mixer.parameters())


def test_a_mixer_that_looks_at_values_is_taken_as_it_is():
    assert isinstance(build_mixer(dict(type='Deciding'), DIM), Deciding)


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(type='Attention'), 'CBAM, .*NeuralMemory, .*NonLocal, .*SelfAttention, SpatialBias'),
        (dict(type='SelfAttention', heads=2), 'takes bottleneck_dim, num_heads'),
        (dict(type='NonLocal', num_heads=2), 'NonLocal has no option num_heads'),
        (dict(type='CBAM', num_heads=2), 'takes bottleneck_dim'),
        (dict(type='SpatialBias', grid=7), 'SpatialBias has no option grid: it takes norm_cfg'),
        (dict(type='SelfAttention', bottleneck_dim=10), 'num_heads=4 must divide bottleneck_dim'),
        (dict(type='SelfAttention', num_heads=0), 'num_heads=0 must divide'),
        (dict(type='NonLocal', bottleneck_dim=0), 'bottleneck_dim=0 must be positive'),
        (dict(type='CBAM', bottleneck_dim='x'), "global mixer CBAM cannot be built from .*'x'"),
        (dict(type='PublishedNeuralMemory', lr='x'), "Memory with {'lr': 'x'} fails on a map of"),
        (dict(type=['CBAM']), r"unknown global mixer \['CBAM'\]"),
        ({'type': 'CBAM', 3: 4}, 'CBAM has no option 3: it takes'),
    ],
    ids=str,
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        build_mixer(cfg, DIM)
    assert '\n' not in str(error.value)
