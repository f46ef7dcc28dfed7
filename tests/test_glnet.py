import copy
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from reference import glnet as reference
from reference import gradients, layer_norm
from steps import ROOT
from torch.utils.flop_counter import FlopCounterMode

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models import GLNet
from mmconvneur.models.backbones.glnet import ARCHS
from mmconvneur.weights import recognise
from mmconvneur.weights.glnet import own_name, own_shape
from mmconvneur.weights.loading import check_heads, fit_state_dict

pytestmark = pytest.mark.usefixtures('device')

KEYS = Path(__file__).parent / 'published_keys'
PARAMETERS = {'stl': 30_296_786, '4g': 27_001_593, '9g': 60_010_617, '16g': 106_055_161}
MACS = {'stl': 4.4e9, '4g': 4.5e9, '9g': 9.7e9, '16g': 16.7e9}  # the paper's, at 224 x 224
# One block of each kind, and each way to take patches.
PLAIN = dict(channels=(8, 16, 24, 40), depths=(1, 1, 2, 1), head_dim=4)
HYBRID = dict(PLAIN, mixers=ARCHS['4g']['mixers'], overlap=True, mlp_ratio=3, layer_scale=0.7)
TINY = pytest.mark.parametrize('arch', [PLAIN, HYBRID], ids=['plain', 'hybrid'])


def published(arch: str, width: float = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a published checkpoint, with channels times ``width``.

    9g and 16g have the names of 4g, 1.5 and 2 times its channels; 16g has layer scales too.
    """
    file = KEYS / f'glnet_{"stl" if arch == "stl" else "4g"}.tsv'
    width *= {'9g': 1.5, '16g': 2}.get(arch, 1)
    shapes = {}
    for line in file.read_text().splitlines():
        key, shape = line.split('\t')
        sizes = [int(size) for size in shape.split(',') if size]
        # Everything from 32 up but the classes is a number of channels.
        shapes[key] = tuple(int(n * width) if n >= 32 and n != 1000 else n for n in sizes)
    if arch == '16g':
        for key in [key for key in shapes if key.endswith('norm1.weight')]:
            (dim,), block = shapes[key], key.removesuffix('norm1.weight')
            tokens = f'{block}mha_op.in_proj_bias' in shapes
            shapes[f'{block}ls1.gamma'] = (dim,) if tokens else (1, dim, 1, 1)
            shapes[f'{block}ls2.gamma'] = (1, dim, 1, 1)
    return shapes


def checkpoint(arch: str) -> dict[str, torch.Tensor]:
    """A published checkpoint in an eighth of its width, in float64, with random values."""
    generator = torch.Generator().manual_seed(2)
    state = {}
    for key, shape in published(arch, 1 / 8).items():
        fan_in = math.prod(shape[1:]) if len(shape) in (2, 4) and 'gamma' not in key else 1
        value = torch.randn(shape, dtype=torch.float64, generator=generator) * fan_in**-0.5
        if key.endswith(('running_var', 'slot_scale')):
            value = value.abs() + 0.5
        if key.endswith('num_batches_tracked'):
            value = torch.tensor(7)
        state[key] = value
    return state


def narrow(arch: str) -> dict:
    """The arch of :func:`checkpoint`."""
    sizes = ARCHS[arch]
    return dict(sizes, channels=tuple(dim // 8 for dim in sizes['channels']), head_dim=4)


def tiny(arch: dict = PLAIN, **cfg) -> GLNet:
    net = GLNet(arch, **cfg)
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    for name, buffer in net.named_buffers():
        if 'running' in name:
            buffer.data.uniform_(0.5, 1.5, generator=generator)
    return net


def image(height: int = 67, width: int = 101, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------- sizes and names
@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_with_a_classifier_are_those_of_the_paper_exactly(arch):
    with torch.device('meta'):
        net = GLNet(arch, out_indices=(-1,))
    width = ARCHS[arch]['channels'][-1]
    classifier = 1000 * width + 1000
    assert sum(p.numel() for p in net.parameters()) + classifier == PARAMETERS[arch]
    assert (
        sum(
            math.prod(shape)
            for key, shape in published(arch).items()
            if not key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
        )
        == PARAMETERS[arch]
    )


@pytest.mark.parametrize('arch', ARCHS)
def test_multiplications_are_those_of_the_paper(arch):
    with torch.device('meta'):
        net, x = GLNet(arch), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert abs(counter.get_total_flops() / 2 / MACS[arch] - 1) < 0.02


@pytest.mark.parametrize('arch', ARCHS)
def test_published_names_and_shapes_are_all_of_ours_and_ours_all_of_theirs(arch):
    with torch.device('meta'):
        state = {key: torch.empty(shape) for key, shape in published(arch).items()}
        own = GLNet(arch, out_indices=(-1,)).state_dict()
    supplied = recognise(state)
    assert supplied.layout == 'GLNet (official repository)'
    assert supplied.unknown == [] and supplied.unused == ['head.weight', 'head.bias']
    assert len(supplied.tensors) == len(state) - 2  # no two fall on one name
    assert {key: value.shape for key, value in supplied.tensors.items()} == {
        key: value.shape for key, value in own.items()
    }


# --------------------------------------------------------------------------------------- the values
def expected_maps(state: dict, x: torch.Tensor) -> list[torch.Tensor]:
    """What a backbone returns: fresh norms but for the last map, which has the network's own."""
    *maps, last = reference(state, x, head_dim=4)
    fresh = [layer_norm(m.permute(0, 2, 3, 1), 1.0, 0.0).permute(0, 3, 1, 2) for m in maps[:-1]]
    return [*fresh, last]


@pytest.mark.parametrize('arch', ['stl', '16g'])
def test_a_converted_checkpoint_gives_the_maps_of_the_published_network(
    arch, tmp_path, monkeypatch, capsys
):
    state, source, converted = checkpoint(arch), tmp_path / 'in.pth', tmp_path / 'out.pth'
    torch.save(dict(model=state, epoch=3), source)
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', str(source), str(converted)])
    runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')
    assert f'{len(state) - 2} tensors, 2 left out' in capsys.readouterr().out
    meta = torch.load(converted, weights_only=True)['meta']
    assert meta['arch'] == {key: narrow(arch)[key] for key in ('channels', 'depths')}

    x = image(67, 45).double()
    expected = expected_maps(state, x)
    for file in (source, converted):
        init_cfg = dict(type='Pretrained', checkpoint=str(file))
        net = GLNet(narrow(arch), init_cfg=init_cfg).double().eval()
        net.init_weights()
        for actual, theirs in zip(net(x), expected, strict=True):
            torch.testing.assert_close(actual, theirs, rtol=0, atol=1e-10)


def test_gradients_are_those_of_the_published_network():
    # Two blocks of a stage are one of each kind in the third.
    state = {
        key: value.requires_grad_(value.is_floating_point())
        for key, value in checkpoint('16g').items()
        if not key.startswith('stages.') or int(key.split('.')[3]) < 2
    }
    net = GLNet(dict(narrow('16g'), depths=(2, 2, 2, 2)), out_indices=(-1,)).double()
    net.load_state_dict({key: value.detach() for key, value in state.items()})
    x = image(35, 50).double()
    direction = torch.randn(2, 128, 2, 2, dtype=torch.float64)
    (net(x)[0] * direction).sum().backward()
    expected = reference(state, x, head_dim=4, training=True)[-1]
    (expected * direction).sum().backward()
    ours = dict(net.named_parameters())
    theirs = {own_name(key): value.grad for key, value in state.items() if own_name(key)}
    assert set(ours) <= set(theirs)
    for name, parameter in ours.items():
        torch.testing.assert_close(
            parameter.grad, own_shape(name, theirs[name]), rtol=0, atol=1e-9, msg=name
        )


@TINY
def test_every_parameter_gets_a_gradient(arch):
    for name, gradient in gradients(tiny(arch).double(), image(131, 163).double()).items():
        assert gradient.abs().max() > 0, name


def test_images_do_not_see_their_batch_mates():
    net, x = tiny(HYBRID).double().eval(), image().double()
    for both, alone in zip(net(x), net(x[:1]), strict=True):
        torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-10)


# -------------------------------------------------------------------------------------- as backbone
@pytest.mark.parametrize('size', [(32, 32), (33, 47), (63, 95), (67, 101)])
def test_sizes_floor_with_disjoint_patches_and_ceil_with_overlapping_ones(size):
    for arch, rounded in [(PLAIN, math.floor), (HYBRID, math.ceil)]:
        for i, out in enumerate(tiny(arch).eval()(image(*size))):
            height, width = (rounded(side / (4 * 2**i)) for side in size)
            assert out.shape == (2, PLAIN['channels'][i], height, width)
            assert out.is_contiguous() and out.isfinite().all()


def test_out_indices_choose_maps_and_build_nothing_else():
    full, x = tiny().eval(), image()
    maps = full(x)
    for indices, stages in [((0, 2), (0, 2)), (-1, (3,)), ((1, -2), (1, 2))]:
        net = GLNet(PLAIN, out_indices=indices).eval()
        net.load_state_dict(full.state_dict())
        for out, stage in zip(net(x), stages, strict=True):
            torch.testing.assert_close(out, maps[stage], rtol=0, atol=0)
        assert len(net.stages) == len(net.downsample_layers) == stages[-1] + 1


def test_short_and_scoped_name_build_from_every_scope():
    for scope in ('mmengine', 'mmdet', 'mmseg'):
        with DefaultScope.overwrite_default_scope(scope):
            for name in ('GLNet', 'mmconvneur.GLNet'):
                assert isinstance(MODELS.build(dict(type=name, arch=PLAIN)), GLNet)


@TINY
def test_checkpointing_gives_equal_gradients(arch):
    plain, saving = tiny(arch, drop_path_rate=0.3), tiny(arch, drop_path_rate=0.3, with_cp=True)
    calls = []
    saving.stages[2][1].mlp.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(7)
    expected = gradients(plain, image())
    torch.manual_seed(7)
    actual = gradients(saving, image())
    assert len(calls) == 2
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-6, msg=name)


def test_frozen_stages_keep_parameters_and_statistics():
    net = tiny(HYBRID, frozen_stages=2)
    assert net.train() is net
    parts = ('downsample_layers.0.', 'downsample_layers.1.', 'stages.0.', 'stages.1.',
             'norm0.', 'norm1.')  # fmt: skip
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(parts), name
    before = copy.deepcopy(dict(net.named_buffers()))
    net(image())
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(parts), name


def test_drop_path_rises_linearly():
    net = tiny(drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in net.stages for block in stage]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-12)
    net.eval()
    for a, b in zip(net(image()), tiny().eval()(image()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_batch_norms_are_those_of_norm_cfg():
    net = tiny(HYBRID, norm_cfg=dict(type='SyncBN'))
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 6 and all(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)


def test_start_is_that_of_pytorch_with_layer_scales_of_the_paper():
    with torch.device('meta'):
        blocks = {arch: GLNet(arch).stages[0][0] for arch in ('4g', '16g')}
    assert isinstance(blocks['4g'].scale1, torch.nn.Identity)
    net = GLNet(dict(PLAIN, layer_scale=1e-4))
    net.init_weights()
    for stage, dim in zip(net.stages, PLAIN['channels'], strict=True):
        assert (stage[0].scale1.weight == 1e-4).all() and (stage[0].scale2.weight == 1e-4).all()
        assert 0.9 * dim**-0.5 < stage[0].mlp[0].weight.abs().max() <= dim**-0.5


def test_depths_for_layer_wise_decay():
    with torch.device('meta'):
        net = GLNet('4g')  # groups of three blocks: 2, 2, 6, 2
    for name, depth in {
        'downsample_layers.0.1.weight': 0,
        'stages.0.0.mlp.0.weight': 1,
        'stages.0.3.position.weight': 2,
        'downsample_layers.2.0.weight': 5,
        'stages.2.17.mixing.attention.qkv.weight': 10,
        'stages.3.3.norm2.bias': 12,
        'norm0.weight': 13,
    }.items():
        assert name in net.state_dict()
        assert net.get_layer_depth(name) == (depth, 14), name


@TINY
def test_autocast_stays_near_float32(arch):
    net, x = tiny(arch).eval(), image()
    with torch.autocast('cpu', torch.bfloat16):
        outs = net(x)
    for a, b in zip(outs, net(x), strict=True):
        # Relative to the size of the map: bfloat16 keeps 8 bits of each product.
        assert ((a.float() - b).norm() / b.norm()).item() < 2e-2


@pytest.mark.slow
def test_compile_has_no_graph_break_and_export_takes_any_size():
    if torch.__version__ < '2.2':
        pytest.skip('PyTorch before 2.2 has no torch.export.Dim')
    arch = dict(HYBRID, channels=(8, 16), depths=(1, 1), mixers=(('glmix',), ('attention',)))
    net, x = tiny(arch, out_indices=(0, 1)).double().eval(), image().double()
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
    sizes = {2: torch.export.Dim('height', min=64), 3: torch.export.Dim('width', min=64)}
    program = torch.export.export(net, (x,), dynamic_shapes=(sizes,)).module()
    other = image(131, 97).double()
    for outs, expected in [(compiled(x), net(x)), (program(other), net(other))]:
        for a, b in zip(outs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------ loading
def test_loads_as_the_backbone_of_another_model_and_reports():
    model = torch.nn.ModuleDict(dict(backbone=GLNet(narrow('stl'))))
    state = {f'backbone.{key}': value for key, value in checkpoint('stl').items()}
    report = fit_state_dict(model.backbone, dict(state), 'backbone.')
    # Norms of the first three maps are new, and the classifier stays.
    assert len(report.matched) == len(state) - 2 and report.complete
    assert set(report.new) == {f'norm{i}.{part}' for i in range(3) for part in ('weight', 'bias')}
    assert len(report.unused) == 2
    model.load_state_dict(state)
    assert check_heads(model, state, complete=True).missing == []
    assert torch.equal(
        model.state_dict()['backbone.stages.1.0.mixing.clustering.affinity.scale'],
        state['backbone.stages.1.blocks.0.slot_scale'].float()[None],
    )
    trained = copy.deepcopy(model)
    torch.nn.init.constant_(model.backbone.norm1.weight, 3.0)
    trained.load_state_dict(model.state_dict())  # under our own names
    for key, value in model.state_dict().items():
        assert torch.equal(trained.state_dict()[key], value), key


@pytest.mark.parametrize(
    'make, problem',
    [
        (lambda: checkpoint('4g'), r'fits \d+% of this GLNet.*\(4, 4, 18, 4\).*choose arch as'),
        (lambda: ConvNeur(dict(channels=(12, 24, 48, 96), depths=(2, 2, 6, 2))).state_dict(),
         r'\(ConvNeur\) fits 6% of this GLNet'),
        (lambda: {'layer1.0.conv1.weight': torch.zeros(3)}, r'GLNet \(official repository\)'),
    ],
    ids=['larger', 'another network', 'unknown'],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(make, problem):
    with pytest.raises(UsageError, match=problem) as error:
        GLNet(narrow('stl')).load_state_dict(make())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(arch='tiny'), "unknown arch 'tiny': choose one of stl, 4g, 9g, 16g"),
        (dict(arch=dict(PLAIN, mixers=[('glmix',)])), 'mixers for 1 stages and 4 depths'),
        (
            dict(arch=dict(PLAIN, mixers=[('mha',)] * 4)),
            "entry of mixers 'mha': choose one of glmix, attention",
        ),
        (dict(arch=dict(PLAIN, mixers=['glmix'] * 4)), "kinds 'glmix' of a stage"),
        (dict(arch=dict(PLAIN, mixers=[()] * 4)), r'kinds \(\) of a stage'),
        (dict(arch=dict(PLAIN, head_dim=16)), 'head_dim=16 must divide the channels 8'),
        (dict(arch=dict(PLAIN, head_dim=0)), 'head_dim=0 must divide'),
        (dict(arch=dict(PLAIN, mixers=3)), 'mixers=3 of arch: it has to be Sequence'),
        (dict(norm_cfg=dict(type='Norm')), "norm_cfg={'type': 'Norm'} makes no norm"),
        (dict(batch_invariant='no'), "batch_invariant='no' of GLNet: it has to be bool"),
    ],
    ids=str,
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        GLNet(**{'arch': PLAIN, **cfg})
    assert '\n' not in str(error.value)
