import subprocess
import sys

import pytest
import torch
from mmdet.models import ResNet
from mmengine.registry import MODELS, DefaultScope
from reference import spatial_bias_maps
from torch import nn
from torch.nn import functional as F

from mmconvneur import SpatialBiasResNet, UsageError
from mmconvneur.models.backbones.spatial_bias_resnet import SpatialBiasBottleneck
from mmconvneur.weights.files import resolve
from mmconvneur.weights.loading import check_heads

pytestmark = pytest.mark.usefixtures('device')

NARROW = dict(depth=50, base_channels=8, stem_channels=8)
BLOCKS = {50: 13, 101: 30}  # in the first three stages


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter and statistic random, and no sum of 50 layers that overflows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith(('running_var', 'bn1.weight', 'bn2.weight', 'norm.weight')):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                value.normal_(std=value[0].numel() ** -0.5 / 2, generator=generator)
    return module


def narrow(**cfg) -> SpatialBiasResNet:
    return randomise(SpatialBiasResNet(**{**NARROW, **cfg})).double()


def plain(**cfg) -> ResNet:
    resnet = randomise(ResNet(**{**NARROW, **cfg})).double()
    resnet.eval()  # returns None
    return resnet


def image(batch: int = 2, height: int = 67, width: int = 101) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=generator)


def assert_equal_maps(a: nn.Module, b: nn.Module, x: torch.Tensor, atol: float = 1e-12) -> None:
    for out, expected in zip(a(x), b(x), strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(out, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('depth, added', [(50, 429_588), (101, 1_015_544)])
def test_exact_number_of_parameters(depth, added):
    """Per block of P planes: 5 P (1x1), 10 (norm), 30,100 (conv1d), 6 (norm 2), 12 P (W_3)."""
    with torch.device('meta'):
        net, resnet = SpatialBiasResNet(depth), ResNet(depth)
    blocks = [m for m in net.modules() if isinstance(m, SpatialBiasBottleneck)]
    assert len(blocks) == BLOCKS[depth]
    assert sum(17 * block.planes + 30_116 for block in blocks) == added
    count = [sum(p.numel() for p in m.parameters()) for m in (net, resnet)]
    assert count[0] - count[1] == added


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('batch', [1, 2])
def test_bottleneck_equals_the_figure(batch, stride):
    """One image, maps that are not square, a stride that changes their size."""
    downsample = nn.Sequential(nn.Conv2d(7, 20, 1, stride, bias=False), nn.BatchNorm2d(20))
    block = SpatialBiasBottleneck(7, 5, stride=stride, downsample=downsample)
    block = randomise(block).double().eval()
    x = image(batch, 11, 17)[:, :1].repeat(1, 7, 1, 1) * torch.arange(1.0, 8)[:, None, None]

    def norm(x, layer):
        shape = (-1, 1, 1)
        x = (x - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + 1e-5).sqrt()
        return x * layer.weight.view(shape) + layer.bias.view(shape)

    a = norm(F.conv2d(x, block.conv1.weight), block.bn1).clamp(min=0)
    local = F.conv2d(a, block.conv2.weight, stride=stride, padding=1)
    bias = spatial_bias_maps(block.spatial_bias, a, local.shape[-2:])
    both = norm(torch.cat([local, bias], 1), block.bn2).clamp(min=0)
    out = norm(F.conv2d(both, block.conv3.weight), block.bn3)
    identity = norm(F.conv2d(x, downsample[0].weight, stride=stride), downsample[1])
    expected = (out + identity).clamp(min=0)
    actual = block(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    direction, inputs = torch.randn_like(actual), list(block.parameters())
    grads = torch.autograd.grad(actual, inputs, direction)
    for a, e in zip(grads, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------ weights of a ResNet
FILES = {
    'torchvision': lambda state: state | {'fc.weight': torch.ones(3, 5), 'fc.bias': torch.ones(3)},
    'mmdet, a detector': lambda state: {
        'state_dict': {f'backbone.{k}': v for k, v in state.items()}
        | {'neck.lateral_convs.0.conv.weight': torch.ones(1)},
        'meta': dict(epoch=12),
    },
    'DDP': lambda state: {f'module.{k}': v for k, v in state.items()},
    'without counters': lambda state: {
        k: v for k, v in state.items() if not k.endswith('num_batches_tracked')
    },
}


@pytest.mark.parametrize('source', FILES)
def test_starts_as_the_resnet_whose_weights_it_gets(source, tmp_path):
    resnet = plain()
    torch.save(FILES[source](resnet.state_dict()), tmp_path / 'resnet.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    net = SpatialBiasResNet(**NARROW, init_cfg=init_cfg).double()
    net.init_weights()
    assert_equal_maps(net.eval(), resnet, image())
    assert_equal_maps(net.eval(), resnet, image(1, 100, 167))
    # The bias itself is awake: only the columns behind it are zero, and they get a gradient.
    net.train()
    sum(out.square().mean() for out in net(image())).backward()
    for name, block in net.named_modules():
        if isinstance(block, SpatialBiasBottleneck):
            columns = block.conv3.weight[:, -3:]
            assert (columns == 0).all() and block.conv3.weight.grad[:, -3:].abs().max() > 0, name
            assert (block.norm2.weight[-3:] == 1).all() and (block.norm2.bias[-3:] == 0).all()


@pytest.mark.parametrize(
    'cfg',
    [
        dict(depth=101),
        dict(style='caffe'),
        dict(deep_stem=True, avg_down=True),
        dict(num_stages=3, out_indices=(0, 2), strides=(1, 2, 1), dilations=(1, 1, 2)),
        dict(base_channels=8, stem_channels=16),
    ],
    ids=str,
)
def test_every_kind_of_resnet_starts_its_own(cfg):
    resnet, net = plain(**cfg), narrow(**cfg).eval()
    net.load_state_dict(resnet.state_dict())
    assert_equal_maps(net, resnet, image())


def test_starts_as_the_resnet_in_a_detector():
    def detector(backbone):
        return nn.ModuleDict(dict(backbone=backbone, head=nn.Conv2d(3, 5, 1)))

    resnet, ours = detector(plain()), detector(narrow().eval())
    ours.load_state_dict(resnet.state_dict())
    assert_equal_maps(ours.backbone, resnet.backbone, image())
    assert check_heads(ours, resnet.state_dict(), complete=True).complete


def test_own_weights_come_back_as_they_were(tmp_path):
    source, net = narrow().eval(), narrow().eval()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    net.load_state_dict(source.state_dict())
    assert_equal_maps(net, source, image(), atol=0)


@pytest.mark.parametrize(
    'state, problem',
    [
        (lambda: plain(depth=101).state_dict(), 'does not fit SpatialBiasResNet of depth 50'),
        (lambda: plain(deep_stem=True).state_dict(), 'missing'),
        (lambda: plain(base_channels=16).state_dict(), 'choose depth, deep_stem and base_channels'),
        (lambda: ResNet(18, base_channels=8).state_dict(), 'does not fit'),
        (lambda: {'a.weight': torch.ones(1)}, 'holds no ResNet with bottlenecks'),
        (
            lambda: {f'{n}.{k}': v for n in 'ab' for k, v in plain().state_dict().items()},
            "several ResNets: set init_cfg.prefix to 'a.', 'b.'",
        ),
    ],
)
def test_other_weights_are_refused(state, problem, tmp_path):
    torch.save(state(), tmp_path / 'other.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth'))
    with pytest.raises(UsageError, match=problem) as error:
        SpatialBiasResNet(**NARROW, init_cfg=init_cfg).init_weights()
    assert '\n' not in str(error.value)


def test_prefix_chooses_among_several(tmp_path):
    first, second = plain(), narrow().eval()
    states = {'a': first.state_dict(), 'b': second.state_dict()}
    torch.save({f'{n}.{k}': v for n in states for k, v in states[n].items()}, tmp_path / 'two.pth')
    for prefix, expected in [('a.', first), ('b', second)]:
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'two.pth'), prefix=prefix)
        net = SpatialBiasResNet(**NARROW, init_cfg=init_cfg).double().eval()
        net.init_weights()
        assert_equal_maps(net, expected, image())


def test_names_of_weights_are_those_of_openmmlab():
    torchvision = 'https://download.pytorch.org/models/'
    assert resolve('torchvision://resnet50') == torchvision + 'resnet50-0676ba61.pth'
    assert resolve('torchvision://resnet101') == torchvision + 'resnet101-63fe2227.pth'
    for name in ('detectron2/resnet50_caffe', 'resnet50_caffe', 'resnet101_v1c'):
        assert resolve(f'open-mmlab://{name}').startswith('https://')
    assert resolve('folder/file.pth') == 'folder/file.pth'
    with pytest.raises(UsageError, match="unknown model of torchvision:// 'resnet51'.*resnet50"):
        resolve('torchvision://resnet51')


# -------------------------------------------------------------------------- the contract of ResNet
def test_from_scratch_it_is_initialised_as_a_resnet():
    net = SpatialBiasResNet(**NARROW)
    net.init_weights()
    assert (net.layer1[0].norm3.weight == 0).all() and (net.layer4[2].norm3.weight == 0).all()
    assert (net.layer1[0].norm2.weight == 1).all()
    assert net.layer1[0].conv3.weight[:, -3:].abs().min() > 0


def test_out_indices_and_sizes():
    for size in [(67, 101), (100, 167), (32, 33)]:
        x = image(1, *size)
        maps, some = narrow().eval()(x), narrow(out_indices=(1, 3)).eval()(x)
        expected = plain()(x)
        assert [m.shape for m in maps] == [m.shape for m in expected]
        for out, stage in zip(some, (1, 3), strict=True):
            torch.testing.assert_close(out, maps[stage], rtol=0, atol=0)


@pytest.mark.parametrize(
    'cfg, problem',
    [(dict(out_indices=(7,)), 'distinct stages'), (dict(frozen_stages=9), 'choose -1')],
)
def test_stages_that_do_not_exist_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        narrow(**cfg)
    assert '\n' not in str(error.value)


def test_frozen_stages_and_norm_eval():
    net = narrow(frozen_stages=2)
    net.requires_grad_(True)
    assert net.eval() is net and net.train() is net
    fixed = {n.split('.')[0] for n, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {'conv1', 'bn1', 'layer1', 'layer2'}
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)  # mmdet's default
    net = narrow(norm_eval=False).train()
    assert all(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_checkpointing_gives_equal_gradients_and_reaches_every_parameter():
    grads = []
    for with_cp in (False, True):
        net = narrow(with_cp=with_cp)
        calls = []
        net.layer2[1].spatial_bias.register_forward_hook(lambda *_, c=calls: c.append(1))
        sum(out.square().mean() for out in net(image())).backward()
        assert len(calls) == 1 + with_cp  # computed twice
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for name, expected in grads[0].items():
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_images_do_not_see_their_batch_mates_in_eval_mode():
    net, x = narrow().eval(), image(3)
    for together, alone in zip(net(x), net(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


def test_one_corner_reaches_the_opposite_one_in_the_first_stage():
    x = image(1, 131, 163)
    changed = x.clone()
    changed[..., :11, :11] += 1
    for build, reached in ((narrow, True), (plain, False)):
        net = build(num_stages=1, out_indices=(0,), strides=(1,), dilations=(1,))
        net.eval()
        change = (net(x)[0] - net(changed)[0])[..., -3:, -3:].abs().max()
        assert (change > 1e-9) == reached


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
def test_short_and_scoped_name_build_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        for name in ('mmconvneur.SpatialBiasResNet', 'SpatialBiasResNet'):
            assert isinstance(MODELS.build(dict(type=name, **NARROW)), SpatialBiasResNet)


WITHOUT_MMDET = """
import sys
sys.modules['mmdet'] = None
import torch
from mmengine.registry import MODELS
torch.manual_seed(0)
net = MODELS.build(dict(type='mmconvneur.SpatialBiasResNet', base_channels=8)).train()
print(type(net).__mro__[1].__module__, *(out.double().std().item() for out in net(
    torch.linspace(-1, 1, 3 * 67 * 101).view(1, 3, 67, 101))))
"""


@pytest.mark.slow
def test_without_mmdet_it_is_the_same_on_mmseg():
    outputs = []
    for code in (WITHOUT_MMDET, WITHOUT_MMDET.replace("sys.modules['mmdet'] = None", '')):
        run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        outputs.append(run.stdout.split())
    assert outputs[0][0].startswith('mmseg.') and outputs[1][0].startswith('mmdet.')
    assert outputs[0][1:] == outputs[1][1:] and len(outputs[0]) == 5


@pytest.mark.parametrize(
    'cfg, problem',
    [
        (dict(depth=18), 'no depth 18: choose 50 or 101'),
        (dict(dcn=dict(type='DCN')), 'no dcn and no plugins'),
        (dict(plugins=[dict(cfg=dict(type='ContextBlock'))]), 'no dcn and no plugins'),
        (dict(norm_cfg=dict(type='GN', num_groups=4)), 'no group norm'),
        (dict(norm_cfg=dict()), r'ResNet cannot be built from .*norm_cfg'),
        (dict(depth='50'), "depth='50' of SpatialBiasResNet: it has to be int"),
        (dict(strides=(1, 2, 0, 2)), r'strides=\(1, 2, 0, 2\): give positive'),
        (dict(num_stages=3, strides=(1, 2, 2)), r'dilations=\(1, 1, 1, 1\): .*of num_stages=3'),
        (dict(stylle='caffe'), 'ResNet cannot be built from .*stylle'),
    ],
    ids=str,
)
def test_bad_settings_are_named(cfg, problem):
    with pytest.raises(UsageError, match=problem) as error:
        SpatialBiasResNet(**cfg)
    assert '\n' not in str(error.value)
