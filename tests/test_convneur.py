import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS, DefaultScope
from reference import gradients, randomise
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.backbones.convneur import ARCHS
from mmconvneur.models.layers import tiles
from mmconvneur.models.layers.tokens import pool_tokens, spread_tokens

pytestmark = pytest.mark.usefixtures('device')

TINY = dict(channels=(8, 16, 24, 40), depths=(1, 2, 1, 1), mlp_ratio=2, kernel_size=5)
MEMORY = dict(type='NeuralMemory', num_heads=2)
PARAMETERS = {'m1': 4.3e6, 'm2': 6.1e6, 'm3': 10.6e6, 'm4': 18.1e6}  # the paper's
OURS = {'t': 30.0e6, 's': 51.7e6, 'b': 91.1e6, 'l': 203.3e6, 'xl': 360.0e6}
CONVNEXT = {'t': 28.59e6, 's': 50.22e6, 'b': 88.59e6, 'l': 197.77e6, 'xl': 350.20e6}


def tiny(**cfg) -> ConvNeur:
    return randomise(ConvNeur(**{'arch': TINY, 'global_mixer': MEMORY, **cfg}))


def image(height: int = 67, width: int = 101, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('arch, expected', (PARAMETERS | OURS).items())
def test_parameters_with_a_classifier_are_within_three_percent(arch, expected):
    with torch.device('meta'):
        net = ConvNeur(arch, out_indices=(-1,))
    width = ARCHS[arch]['channels'][-1]
    count = sum(p.numel() for p in net.parameters()) + 1000 * width + 1000
    assert abs(count / expected - 1) < 0.03


@pytest.mark.parametrize('arch, expected', CONVNEXT.items())
def test_parameters_without_a_memory_are_those_of_convnext(arch, expected):
    with torch.device('meta'):
        net = ConvNeur(arch, out_indices=(-1,), global_mixer=None)
    width = ARCHS[arch]['channels'][-1]
    count = sum(p.numel() for p in net.parameters()) + 1000 * width + 1000
    assert round(count / 1e6, 2) == expected / 1e6


def conv_next(net: ConvNeur, x: torch.Tensor) -> list[torch.Tensor]:
    """The network without its memory, written with the functions of the ConvNeXt paper's figure."""

    def norm(x, layer):
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-6).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def conv1x1(x, layer):
        return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    outs = []
    for i, (downsample, stage) in enumerate(zip(net.downsample_layers, net.stages, strict=True)):
        if i == 0:
            x = norm(F.conv2d(x, downsample[0].weight, downsample[0].bias, stride=4), downsample[1])
        else:
            x = norm(x, downsample[0])
            x = F.conv2d(x, downsample[1].weight, downsample[1].bias, stride=2)
        for block in stage:
            branch = block.local_branch
            conv = branch.depthwise_conv
            f = F.conv2d(x, conv.weight, conv.bias, padding=2, groups=x.size(1))
            f = conv1x1(
                F.gelu(conv1x1(norm(f, branch.norm), branch.pointwise_conv1)),
                branch.pointwise_conv2,
            )
            x = x + 0.5 * branch.gamma[:, None, None] * f
        outs.append(norm(x, getattr(net, f'norm{i}')))
    return outs


def test_neutral_start_of_each_fusion_is_the_local_network():
    """With G = 0 a gated block is half its local branch, and add and concat change nothing."""
    x = image().double()
    local = tiny(global_mixer=None).double().eval()
    for fusion in ('gate', 'add', 'concat'):
        net = ConvNeur(TINY, global_mixer=MEMORY, fusion=fusion, placement='block').double().eval()
        missing = net.load_state_dict(local.state_dict(), strict=False)
        assert not missing.unexpected_keys
        net_outs, local_outs = net(x), conv_next(net, x)
        if fusion != 'gate':
            local_outs = local(x)
        for out, expected in zip(net_outs, local_outs, strict=True):
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('fusion', ['gate', 'add', 'concat'])
def test_the_neutral_start_can_be_left(fusion):
    net = ConvNeur(TINY, global_mixer=MEMORY, fusion=fusion)
    found = gradients(net, image())
    for stage in range(4):
        assert found[f'stages.{stage}.0.global_branch.out_proj.weight'].abs().max() > 0


@pytest.mark.parametrize('fusion', ['gate', 'add', 'concat'])
def test_block_equals_the_figure(fusion):
    net = tiny(fusion=fusion, token_stride=16).double()
    block = net.stages[1][0]
    x = torch.randn(2, 16, 7, 11, dtype=torch.float64)
    tokens = block.token_size
    context = spread_tokens(block.global_branch(pool_tokens(x, tokens)[0]), (7, 11))
    local = block.local_branch(x)
    if fusion == 'gate':
        fused = local / (1 + torch.exp(-context))
    elif fusion == 'add':
        fused = local + context
    else:
        both = torch.cat([local, context], 1)
        fused = torch.einsum('oc,bchw->bohw', block.fusion.merge.weight, both)
        fused = fused + block.fusion.merge.bias[:, None, None]
    torch.testing.assert_close(block(x), x + fused, rtol=0, atol=1e-12)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (63, 95), (67, 101)])
def test_sizes_floor_as_in_convnext(size):
    height, width = size
    for i, out in enumerate(tiny()(image(*size))):
        stride = 4 * 2**i
        assert out.shape == (2, TINY['channels'][i], height // stride, width // stride)
        assert out.isfinite().all()


def test_out_indices_choose_maps_and_build_nothing_else():
    full = tiny()
    x = image()
    maps = full(x)
    for indices, stages in [((0, 2), (0, 2)), ((-1,), (3,)), ((1, -2), (1, 2)), ([-4], (0,))]:
        net = ConvNeur(TINY, out_indices=indices, global_mixer=MEMORY)
        names = set(net.state_dict())
        net.load_state_dict({k: v for k, v in full.state_dict().items() if k in names})
        outs = net(x)
        assert len(outs) == len(stages)
        for out, stage in zip(outs, stages, strict=True):
            torch.testing.assert_close(out, maps[stage], rtol=0, atol=0)
        assert len(net.stages) == len(net.downsample_layers) == stages[-1] + 1
        assert {n.split('.')[0] for n in names if n.startswith('norm')} == {
            f'norm{i}' for i in stages
        }


def test_short_and_scoped_name_build_from_every_scope():
    cfg = dict(arch=TINY, global_mixer=MEMORY)
    for scope in ('mmengine', 'mmdet', 'mmseg'):
        with DefaultScope.overwrite_default_scope(scope):
            for name in ('ConvNeur', 'mmconvneur.ConvNeur'):
                assert isinstance(MODELS.build(dict(type=name, **cfg)), ConvNeur)


def chunked(**cfg) -> dict:
    return dict(global_mixer=dict(type='ChunkedNeuralMemory', num_heads=2, **cfg))


@pytest.mark.parametrize(
    'cfg',
    [
        *(chunked(inner_model=name) for name in ('linear', 'two_layer', 'gated')),
        *(dict(token_stride=stride) for stride in (1, 8, 16)),
        dict(fusion='add'),
        dict(fusion='concat', placement='block'),
        dict(placement=[1, 3]),
        dict(global_mixer=None),
        dict(global_mixer=[None, MEMORY, None, MEMORY]),
        dict(out_indices=(1,)),
        chunked(chunk_size=5),
        chunked(chunk_size=5, read='before'),
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(cfg):
    for name, gradient in gradients(tiny(**cfg).double(), image(131, 163).double()).items():
        assert gradient.abs().max() > 0, name


def test_gradients_that_vanish_in_the_published_form():
    """With one chunk in a stage only M_0 is read; the last chunk is never read anywhere."""
    mixer = dict(type='PublishedNeuralMemory', num_heads=2, chunk_size=196)
    net = tiny(global_mixer=mixer, token_stride=1).double()
    # 131 x 163: maps of 32 x 40, 16 x 20, 8 x 10 and 4 x 5: 7, 2, 1 and 1 chunks.
    grads = gradients(net, image(131, 163).double())
    vanished = {name for name, g in grads.items() if g.abs().max() == 0}
    assert vanished == {
        f'stages.{i}.0.global_branch.rates.{kind}' for i in (2, 3) for kind in ('weight', 'bias')
    }
    for i, stage in enumerate(net.stages):
        dim = stage[0].global_branch.bottleneck_dim
        for kind in ('weight', 'bias'):
            query, key, value = grads[f'stages.{i}.0.global_branch.qkv.{kind}'].split(dim)
            assert query.abs().max() > 0
            assert (key.abs().max() > 0) == (value.abs().max() > 0) == (i < 2)


@pytest.mark.parametrize('with_cp', [True, [True, False, True, False]])
def test_checkpointing_gives_equal_gradients(with_cp):
    plain, saving = tiny(drop_path_rate=0.3), tiny(drop_path_rate=0.3, with_cp=with_cp)
    torch.manual_seed(7)
    expected = gradients(plain, image())
    torch.manual_seed(7)
    actual = gradients(saving, image())
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-6, msg=name)


def test_checkpointing_is_really_used():
    """A checkpointed block is computed twice."""
    net = tiny(with_cp=[True, False, False, False])
    calls = []
    for i in (0, 1):
        net.stages[i][0].local_branch.register_forward_hook(lambda *_, i=i: calls.append(i))
    gradients(net, image())
    assert calls.count(0) == 2 and calls.count(1) == 1


def test_frozen_stages_stay_frozen_in_train():
    for frozen, parts in [
        (0, ['downsample_layers.0.']),
        (2, ['downsample_layers.0.', 'downsample_layers.1.', 'stages.0.', 'stages.1.',
             'norm0.', 'norm1.']),
    ]:  # fmt: skip
        net = tiny(frozen_stages=frozen)
        net.requires_grad_(True)
        assert net.train() is net and net.eval() is net and net.train(True) is net
        fixed = {n for n, p in net.named_parameters() if not p.requires_grad}
        assert fixed == {
            n for n, _ in net.named_parameters() if any(n.startswith(p) for p in parts)
        }
        for name, module in net.named_modules():
            assert module.training != any(f'{name}.'.startswith(p) for p in parts), name
    assert all(p.requires_grad for p in tiny().train().parameters())


def test_drop_path_rises_linearly_and_is_off_in_eval():
    net = tiny(drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in net.stages for block in stage]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-12)
    net.eval()
    for a, b in zip(net(image()), tiny().eval()(image()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize('grad', [True, False])
def test_every_layer_is_called_once_with_the_whole_batch(grad, monkeypatch):
    """Recorders, adapters and Grad-CAM hear each layer once, also where a CPU works in tiles."""
    monkeypatch.setattr(tiles, 'TILE', 11)
    net, calls = tiny().eval(), {}
    with torch.set_grad_enabled(grad):
        expected = net(image())
        for name, module in net.named_modules():
            module.register_forward_hook(
                lambda m, i, out, name=name: calls.setdefault(name, []).append(out)
            )
        outs = net(image())
    for a, b in zip(outs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    silent = {n for n, m in net.named_modules() if isinstance(m, (nn.ModuleList, nn.Identity))}
    assert set(calls) == {name for name, _ in net.named_modules()} - silent
    for name, outputs in calls.items():
        assert len(outputs) == 1, name
        assert name == '' or outputs[0].size(0) == 2, name


def test_a_hook_can_change_what_a_layer_returns():
    net = tiny().eval()
    before = net(image())[0]
    for part in ('pointwise_conv1', 'act'):
        layer = getattr(net.stages[0][0].local_branch, part)
        with layer.register_forward_hook(lambda m, i, out: 0 * out):
            changed = net(image())[0]
        assert (changed - before).abs().max() > 1e-3
    torch.testing.assert_close(net(image())[0], before, rtol=0, atol=0)


def test_flops_are_counted_by_mmengine():
    """Products of every layer and of the memory; of its inner steps, d x d, it knows none."""
    net, x = ConvNeur('m1').eval(), torch.zeros(1, 3, 224, 224)
    found = FlopAnalyzer(net, x).unsupported_ops_warnings(False).by_operator()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    products = sum(count for name, count in found.items() if 'norm' not in name)
    assert products == pytest.approx(counter.get_total_flops() / 2, rel=0.001)


def test_layer_scale_of_archs_and_override():
    with torch.device('meta'):
        nets = {a: ConvNeur(a) for a in ('m1', 't')}
    assert {a: ARCHS[a]['layer_scale'] for a in ARCHS} == {
        'm1': 1.0, 'm2': 1.0, 'm3': 1.0, 'm4': 1.0, 't': 1e-6, 's': 1e-6, 'b': 1e-6,
        'l': 1e-6, 'xl': 1e-6
    }  # fmt: skip
    assert len(nets['m1'].stages[2]) == len(nets['t'].stages[2]) == 9
    net = ConvNeur(TINY, layer_scale_init_value=0.25, global_mixer=None)
    assert (net.stages[0][0].local_branch.gamma == 0.25).all()


def test_init_weights_keeps_the_neutral_start_and_fills_the_rest():
    net = tiny(init_cfg=ConvNeur(TINY).init_cfg)
    net.init_weights()
    for module in net.modules():
        if hasattr(module, 'write_logits'):
            assert (module.out_proj.weight == 0).all()
            # Written selectively from the start: logits of standardised tokens deviate by 4.
            spread = module.write_logits(torch.randn(module.bottleneck_dim, 1009)).std(1)
            assert 3 < spread.mean() < 5
    assert (net.norm0.weight == 1).all() and (net.norm0.bias == 0).all()
    assert net.stages[0][0].local_branch.pointwise_conv1.weight.abs().max() < 0.1


def test_state_dict_round_trip_and_pretrained_with_prefix(tmp_path):
    source = tiny()
    x = image()
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in source.state_dict().items()}},
               tmp_path / 'detector.pth')  # fmt: skip
    init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'detector.pth'), prefix='backbone.'
    )
    net = MODELS.build(
        dict(type='mmconvneur.ConvNeur', arch=TINY, global_mixer=MEMORY, init_cfg=init_cfg)
    )
    net.init_weights()
    for a, b in zip(net(x), source(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_channels_last_and_contiguous_inputs_give_the_same():
    net = tiny()
    for a, b in zip(
        net(image()), net(image().contiguous(memory_format=torch.channels_last)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_outputs_are_laid_out_as_mmcv_operators_read_them():
    """RoIAlign takes a map's memory for contiguous whatever its strides say."""
    from mmcv.ops import RoIAlign

    roi_align = RoIAlign(5, spatial_scale=0.25, sampling_ratio=2)
    rois = torch.tensor([[0, 3.0, 5.0, 61.0, 43.0], [1, 7.0, 2.0, 29.0, 37.0]])
    out = tiny()(image().contiguous(memory_format=torch.channels_last))[0]
    copy = torch.tensor(out.tolist())
    torch.testing.assert_close(roi_align(out, rois), roi_align(copy, rois), rtol=0, atol=0)


def test_autocast_stays_near_float32():
    net, x = tiny().eval(), image()
    with torch.autocast('cpu', torch.bfloat16):
        outs = net(x)
    for a, b in zip(outs, net(x), strict=True):
        # Normalised maps are of order 1, and bfloat16 keeps 8 bits of each product.
        torch.testing.assert_close(a.float(), b, rtol=0, atol=2e-2)


@pytest.mark.parametrize('mixer', ['NeuralMemory', 'PublishedNeuralMemory'])
def test_bfloat16_weights_train_and_stay_near_float32(mixer):
    net = tiny(global_mixer=dict(type=mixer, num_heads=2))
    half = copy.deepcopy(net).bfloat16()
    outs = half(image().bfloat16())
    for a, b in zip(outs, net(image()), strict=True):
        # The whole network is rounded to 8 bits, its residual stream too.
        torch.testing.assert_close(a.float(), b, rtol=0, atol=8e-2)
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


def test_whole_networks_can_be_pickled():
    net = tiny()
    copied = pickle.loads(pickle.dumps(net))
    for a, b in zip(copied(image()), net(image()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    'mixer, backend',
    [(MEMORY, 'inductor'), (dict(type='PublishedNeuralMemory', num_heads=2), 'aot_eager')],
    ids=['default', 'published'],
)
def test_compile_has_no_graph_break_and_equals_eager(mixer, backend):
    arch = dict(channels=(8, 16), depths=(1, 1), kernel_size=3)
    net = tiny(arch=arch, out_indices=(0, 1), global_mixer=mixer, placement=[1]).double()
    x = image(45, 61).double()
    expected = gradients(net, x)
    outs = torch.compile(net, fullgraph=True, backend=backend)(x)
    for a, b in zip(outs, net(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    net.zero_grad()
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('since', 'multiple', 'example', 'others'),
    [
        ('2.2', 32, (96, 128), [(64, 64), (160, 352)]),
        ('2.13', 1, (67, 101), [(64, 64), (71, 173), (131, 97)]),
    ],
)
def test_export_with_dynamic_height_and_width(since, multiple, example, others):
    if torch.__version__ < since:
        pytest.skip(f'needs PyTorch {since}: dynamic sizes that are multiples of {multiple}')
    net = tiny().double().eval()
    # Under 64 pixels the last map is one pixel wide, a size that export always fixes.
    sides = [multiple * torch.export.Dim(name, min=64 // multiple) for name in ('height', 'width')]
    sizes = dict(enumerate(sides, start=2))
    program = torch.export.export(net, (image(*example).double(),), dynamic_shapes=(sizes,))
    for height, width in others:
        x = image(height, width).double()
        for a, b in zip(program.module()(x), net(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(arch='xxl'), 'm1, m2, m3, m4, t, s, b, l, xl'),
        (dict(arch=dict(channels=(8, 16))), 'takes channels and depths'),
        (dict(arch=dict(channels=(8, 16), depths=(1,))), '2 channels and 1 depths'),
        (dict(arch=dict(channels=(8,), depths=(1,), width=3)), 'width'),
        (dict(fusion='multiply'), 'gate, add, concat'),
        (dict(global_mixer=dict(type='Mamba')), 'NeuralMemory, .*PublishedNeuralMemory'),
        (dict(global_mixer=[MEMORY]), 'global_mixer has 1 entries: give one, or 4'),
        (dict(global_mixer=dict(type='NeuralMemory', num_heads=3)), 'num_heads=3 must divide'),
        (dict(placement='nowhere'), "'stage', 'block' or a list"),
        (dict(placement=[4]), 'from 0 to 3'),
        (dict(placement=1), 'unknown placement 1'),
        (dict(global_mixer='NeuralMemory'), 'give a config'),
        (
            dict(global_mixer=dict(type='NeuralMemory', chunk=3)),
            'no option chunk: it takes memory_dim',
        ),
        (dict(token_stride=0), 'choose one of 1, 2, 4, 8, 16, 32 pixels; with 1 every position'),
        (dict(token_stride=28), 'token_stride=28: choose one of'),
        (dict(token_stride=64), 'token_stride=64'),
        (dict(out_indices=(4,)), 'from -4 to 3'),
        (dict(out_indices=()), 'distinct stages'),
        (dict(out_indices=(3, -1)), 'distinct stages'),
        (dict(frozen_stages=5), 'frozen_stages=5'),
        (dict(with_cp=[True]), 'with_cp has 1 entries'),
        (dict(arch=dict(TINY, depths=2)), r'depths=2 of arch: it has to be Sequence\[int\]'),
        (dict(arch=dict(TINY, depths=(1, 0, 1, 1))), r'depths=\(1, 0, 1, 1\): give positive'),
        (dict(arch=dict(TINY, mlp_ratio=0)), 'mlp_ratio=0 of arch'),
        (dict(arch=dict(TINY, kernel_size=4)), 'kernel_size=4 of arch: give an odd number'),
        (dict(arch={**TINY, 3: 1}), 'arch has the keys .*, 3: it takes'),
        (dict(out_indices='all'), r"out_indices='all' of ConvNeur: it has to be int | Sequence"),
        (dict(out_indices=[[0]]), r'out_indices=\[\[0\]\] of ConvNeur'),
        (dict(frozen_stages=None), 'frozen_stages=None of ConvNeur: it has to be int'),
        (dict(drop_path_rate=1), 'drop_path_rate=1: give 0 to less than 1'),
        (dict(in_channels=0), 'in_channels=0 must be positive'),
        (dict(global_mixer=dict(num_heads=2)), "global_mixer={'num_heads': 2}: give a config"),
        (dict(init_cfg=[3]), r'init_cfg=\[3\]: write init_cfg=dict'),
    ],
    ids=str,
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        ConvNeur(**{'arch': TINY, **cfg})
    assert '\n' not in str(error.value)


def test_bad_images_are_named():
    with pytest.raises(UsageError, match='ConvNeur was built for 3 channels and got 4'):
        tiny()(torch.zeros(1, 4, 64, 64))
    with pytest.raises(UsageError, match=r'takes \(B, C, H, W\)'):
        tiny()(torch.zeros(3, 64, 64))
    with pytest.raises(UsageError, match='ConvNeur needs images .* 32 x 32 pixels and got 31 x 64'):
        tiny()(torch.zeros(1, 3, 31, 64))
    five = ConvNeur(dict(channels=(8,) * 5, depths=(1,) * 5), out_indices=-1)
    with pytest.raises(UsageError, match='at least 64 x 64 pixels and got 63 x 64'):
        five(torch.zeros(1, 3, 63, 64))
