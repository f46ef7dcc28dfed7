"""Layer-wise learning-rate decay: against mmdet's and mmseg's own for ConvNeXt, and by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from steps import CONFIGS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmconvneur import ConvNeur, UsageError

pytestmark = pytest.mark.usefixtures('device')

LR, WEIGHT_DECAY = 0.1, 0.01
DETECTORS = {f'mask_rcnn_convneur_{size}_3x_coco': size for size in 'tsbl'}
SEGMENTORS = {f'upernet_convneur_{size}_ade20k': size for size in 'tsbl'}
TINY = dict(channels=(4, 8), depths=(2, 4), kernel_size=3)


class ConvNeXt(ConvNeur):
    """mmdet and mmseg know the layers of a backbone by the name of its class."""


class Model(nn.Module):
    """A backbone where no detector has it, a neck and a head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(dict(body=backbone))
        self.neck = nn.Conv2d(3, 5, 1)
        self.head = nn.Linear(5, 7)


def build(model: nn.Module, **paramwise_cfg) -> OptimWrapper:
    return build_optim_wrapper(
        model,
        dict(
            constructor='mmconvneur.LearningRateDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
            paramwise_cfg=paramwise_cfg,
        ),
    )


def by_name(model: nn.Module, optim_wrapper: OptimWrapper, *keys: str) -> dict[str, tuple]:
    """The options of each optimised parameter; each is in one group only."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    options = [
        (names[parameter], tuple(group[key] for key in keys or ('lr', 'weight_decay')))
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    ]
    assert len(options) == len(dict(options))
    return dict(options)


def shipped(name: str) -> tuple[Config, nn.Module]:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.type = ConvNeXt
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return cfg, MODELS.build(cfg.model)


# ------------------------------------------------------------------------------------------- depths
@pytest.mark.parametrize(
    ('arch', 'num_layers', 'depths'),
    [
        (
            't',
            8,
            {
                'downsample_layers.0.0.weight': 0,
                'downsample_layers.0.1.bias': 0,
                'stages.0.0.global_branch.qkv.weight': 1,
                'stages.0.2.local_branch.gamma': 1,
                'downsample_layers.1.1.weight': 2,
                'stages.1.0.local_branch.pointwise_conv1.weight': 2,
                'downsample_layers.2.0.weight': 3,
                'stages.2.2.local_branch.norm.weight': 3,
                'stages.2.3.local_branch.norm.weight': 4,
                'stages.2.8.local_branch.pointwise_conv2.bias': 5,
                'downsample_layers.3.1.bias': 6,
                'stages.3.2.local_branch.pointwise_conv1.weight': 6,
                'norm0.weight': 7,
                'norm3.bias': 7,
            },
        ),
        (
            's',
            14,
            {
                'downsample_layers.0.0.weight': 0,
                'stages.0.1.local_branch.pointwise_conv1.weight': 1,
                'stages.1.2.local_branch.pointwise_conv1.weight': 2,
                'downsample_layers.2.1.weight': 3,
                'stages.2.0.global_branch.qkv.weight': 3,
                'stages.2.14.local_branch.pointwise_conv1.weight': 7,
                'stages.2.26.local_branch.pointwise_conv1.weight': 11,
                'downsample_layers.3.0.bias': 12,
                'stages.3.0.local_branch.pointwise_conv1.weight': 12,
                'norm2.bias': 13,
            },
        ),
        (
            dict(channels=(4, 8), depths=(4, 7)),  # groups of 3, 1 and 3, 3, 1 blocks
            7,
            {
                'downsample_layers.0.0.weight': 0,
                'stages.0.2.local_branch.gamma': 1,
                'stages.0.3.local_branch.gamma': 2,
                'downsample_layers.1.0.weight': 3,
                'stages.1.0.local_branch.gamma': 3,
                'stages.1.5.local_branch.gamma': 4,
                'stages.1.6.local_branch.gamma': 5,
                'norm1.weight': 6,
            },
        ),
    ],
)
def test_depths_by_hand(arch, num_layers, depths):
    with torch.device('meta'):
        backbone = ConvNeur(arch, out_indices=-1 if isinstance(arch, dict) else (0, 1, 2, 3))
    assert set(depths) <= {name for name, _ in backbone.named_parameters()}
    for name, depth in depths.items():
        assert backbone.get_layer_depth(name) == (depth, num_layers), name
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, num_layers)
        assert backbone.get_layer_depth(f'teacher.{name}', 'backbone.')[0] == num_layers - 1


def test_stages_that_are_not_built_have_no_depth():
    with torch.device('meta'):
        backbone = ConvNeur('t', out_indices=(0, 1))
    assert backbone.get_layer_depth('stages.1.2.local_branch.gamma') == (2, 4)
    assert backbone.get_layer_depth('norm1.weight') == (3, 4)


# ---------------------------------------------------------------------------------- shipped configs
@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_shipped_configs_have_the_rates_of_mmdet_and_mmseg_for_a_convnext(name):
    size, rate = (DETECTORS | SEGMENTORS)[name], 0.95 if name in DETECTORS else 0.9
    cfg, model = shipped(name)
    found = by_name(model, build_optim_wrapper(model, cfg.optim_wrapper))
    peer = dict(
        cfg.optim_wrapper,
        constructor=f'{cfg.default_scope}.LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(
            decay_rate=rate, decay_type='layer_wise', num_layers=6 if size == 't' else 12
        ),
    )
    expected = by_name(model, build_optim_wrapper(model, peer))
    assert found == expected


def test_rates_of_the_three_times_schedule_by_hand():
    cfg, model = shipped('mask_rcnn_convneur_t_3x_coco')
    found = by_name(model, build_optim_wrapper(model, cfg.optim_wrapper))
    for name, expected in {
        'backbone.downsample_layers.0.0.weight': (0.698337e-4, 0.05),  # 0.95 ** 7
        'backbone.stages.0.0.local_branch.gamma': (0.735092e-4, 0.0),
        'backbone.stages.0.0.local_branch.depthwise_conv.weight': (0.735092e-4, 0.05),
        'backbone.stages.2.0.global_branch.qkv.weight': (0.814506e-4, 0.05),
        'backbone.stages.2.4.local_branch.pointwise_conv1.weight': (0.857375e-4, 0.05),
        'backbone.downsample_layers.3.1.weight': (0.95e-4, 0.05),
        'backbone.norm3.weight': (1e-4, 0.0),
        'neck.lateral_convs.0.conv.weight': (1e-4, 0.05),
        'roi_head.bbox_head.fc_cls.weight': (1e-4, 0.05),
        'roi_head.bbox_head.fc_cls.bias': (1e-4, 0.0),
    }.items():
        assert found[name] == pytest.approx(expected, rel=1e-5), name


def test_two_groups_per_depth_named_and_logged(caplog):
    cfg, model = shipped('upernet_convneur_t_ade20k')
    MMLogger.get_current_instance().addHandler(caplog.handler)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    MMLogger.get_current_instance().removeHandler(caplog.handler)
    names = [group['group_name'] for group in optim_wrapper.optimizer.param_groups]
    assert sorted(names) == sorted(
        f'layer_{i}_{kind}' for i in range(8) for kind in ('decay', 'no_decay')
    )
    # The stem: a convolution and a norm.
    assert 'layer_0_decay: lr 4.78e-05, weight decay 0.05, 1 tensors\n' in caplog.text
    assert 'layer_0_no_decay: lr 4.78e-05, weight decay 0, 3 tensors\n' in caplog.text


@pytest.mark.parametrize(
    'name',
    [
        'mask_rcnn_convneur_t_coco',
        'mask_rcnn_convneur_m1_sample',
        'upernet_convneur_m4_ade20k',
        'upernet_convneur_m1_sample',
        'segformer_convneur_cue',
    ],
)
def test_recipes_from_scratch_do_without(name):
    optim_wrapper = Config.fromfile(CONFIGS / f'{name}.py').optim_wrapper
    assert 'constructor' not in optim_wrapper
    assert set(optim_wrapper.paramwise_cfg) == {
        'norm_decay_mult',
        'bias_decay_mult',
        'flat_decay_mult',
    }


# ------------------------------------------------------------------------------------- weight decay
class Odd(nn.Module):
    """One parameter of every shape in question."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in dict(
            scalar=(), scale=(7,), gamma=(1, 7, 1, 1), one=(1, 1), table=(3, 5), kernel=(7, 1, 1, 3)
        ).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.norm, self.conv = nn.GroupNorm(2, 4), nn.Conv2d(3, 5, 1)
        self.position = nn.Parameter(torch.zeros(1, 5, 7))
        self.listed = nn.ParameterList([torch.zeros(3, 5), torch.zeros(5, 3)])

    def no_weight_decay(self) -> set[str]:
        return {'position', 'listed.1'}


def test_no_decay_by_name():
    model = Model(ConvNeur(TINY, out_indices=1))
    model.odd = Odd()
    found = by_name(model, build(model, layer_decay_rate=0.5))
    assert {name: found[f'odd.{name}'] for name, _ in model.odd.named_parameters()} == {
        'scalar': (LR, 0.0),
        'scale': (LR, 0.0),
        'gamma': (LR, 0.0),
        'one': (LR, 0.0),
        'table': (LR, WEIGHT_DECAY),
        'kernel': (LR, WEIGHT_DECAY),
        'norm.weight': (LR, 0.0),
        'norm.bias': (LR, 0.0),
        'conv.weight': (LR, WEIGHT_DECAY),
        'conv.bias': (LR, 0.0),
        'position': (LR, 0.0),
        'listed.0': (LR, WEIGHT_DECAY),
        'listed.1': (LR, 0.0),
    }


@pytest.mark.parametrize(
    'mixer, own',
    [
        (dict(type='NeuralMemory'), 'short_conv'),
        (dict(type='ChunkedNeuralMemory', inner_model='gated'), None),
    ],
)
def test_decaying_parameters_of_a_convneur(mixer, own):
    backbone = ConvNeur(
        dict(channels=(16,), depths=(1,)),
        out_indices=0,
        global_mixer=mixer,
    )
    found = by_name(backbone, build(backbone, layer_decay_rate=1.0))
    matrices = filter(None, ('in_proj', own, 'qkv', 'write_logits', 'out_proj'))
    assert {name for name, (_, decay) in found.items() if decay} == {
        'downsample_layers.0.0.weight',
        *(
            f'stages.0.0.local_branch.{m}.weight'
            for m in ('depthwise_conv', 'pointwise_conv1', 'pointwise_conv2')
        ),
        *(f'stages.0.0.global_branch.{m}.weight' for m in matrices),
    }


# ----------------------------------------------------------------- MMEngine's options, any backbone
def test_options_of_mmengine_multiply():
    model = Model(ConvNeur(TINY, out_indices=(0, 1)))
    found = by_name(
        model,
        build(
            model,
            layer_decay_rate=0.5,
            bias_lr_mult=2.0,
            norm_decay_mult=3.0,
            custom_keys={
                'encoder': dict(lr_mult=0.1),
                'encoder.body.stages.1': dict(lr_mult=0.3, decay_mult=0.7),
                'head.weight': dict(decay_mult=0.0),
            },
        ),
    )
    # 0 stem; 1 both blocks of stage 0; 2, 3 the four of stage 1; 4 the rest.
    for name, expected in {
        'encoder.body.downsample_layers.0.0.weight': (LR * 0.1 * 0.5**4, WEIGHT_DECAY),
        'encoder.body.downsample_layers.0.1.weight': (LR * 0.1 * 0.5**4, 0.0),
        'encoder.body.stages.0.1.local_branch.pointwise_conv1.bias': (LR * 0.1 * 0.5**3, 0.0),
        'encoder.body.stages.1.2.local_branch.pointwise_conv1.weight': (
            LR * 0.3 * 0.5**2,
            WEIGHT_DECAY * 0.7,
        ),
        'encoder.body.stages.1.3.local_branch.pointwise_conv1.weight': (
            LR * 0.3 * 0.5,
            WEIGHT_DECAY * 0.7,
        ),
        'encoder.body.stages.1.3.local_branch.gamma': (LR * 0.3 * 0.5, 0.0),
        'neck.weight': (LR, WEIGHT_DECAY),
        'neck.bias': (LR * 2.0, 0.0),
        'head.weight': (LR, 0.0),
    }.items():
        assert found[name] == pytest.approx(expected), name


def test_custom_options_reach_the_optimizer_and_the_name():
    model = Model(ConvNeur(TINY, out_indices=1))
    wrapper = build(model, layer_decay_rate=0.5, custom_keys={'head': dict(eps=1e-3, lr_mult=2.0)})
    options = by_name(model, wrapper, 'group_name', 'lr', 'eps')
    assert options['head.weight'] == ('layer_4_decay, eps=0.001, lr_mult=2.0', 2 * LR, 1e-3)
    assert options['neck.weight'] == ('layer_4_decay', LR, 1e-8)


@pytest.mark.parametrize('bypass', [True, False])
def test_shared_parameters_are_taken_once_by_their_first_name(bypass):
    model = Model(ConvNeur(TINY, out_indices=1))
    model.twin = model.head
    model.decoder = nn.ModuleDict(dict(stem=model.encoder.body.downsample_layers[0]))
    wrapper = build(
        model,
        layer_decay_rate=0.5,
        bypass_duplicate=bypass,
        custom_keys=dict(twin=dict(lr_mult=3.0), head=dict(lr_mult=5.0)),
    )
    found = by_name(model, wrapper)
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())
    assert found['head.weight'][0] == pytest.approx(5 * LR)
    assert found['encoder.body.downsample_layers.0.0.weight'][0] == pytest.approx(LR * 0.5**4)


def test_frozen_parameters_are_left_out():
    free = Model(ConvNeur(TINY, out_indices=(0, 1)))
    frozen = Model(ConvNeur(TINY, out_indices=(0, 1), frozen_stages=1))
    expected = {
        name: options
        for name, options in by_name(free, build(free, layer_decay_rate=0.5)).items()
        if not name.startswith(
            tuple(f'encoder.body.{part}.' for part in ('downsample_layers.0', 'stages.0', 'norm0'))
        )
    }
    assert by_name(frozen, build(frozen, layer_decay_rate=0.5)) == expected


def test_wrapped_models():
    model = Model(ConvNeur(TINY, out_indices=1))
    expected = by_name(model, build(model, layer_decay_rate=0.5))
    assert by_name(model, build(nn.DataParallel(model), layer_decay_rate=0.5)) == expected


class Steps(nn.Module):
    """A backbone of ``num_steps`` layers and what follows them, after mmpretrain's interface."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(3, 5) for _ in range(num_steps))
        self.last = nn.Linear(5, 7)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        if not param_name.startswith(f'{prefix}steps.'):
            return len(self.steps), len(self.steps) + 1
        return int(param_name.removeprefix(prefix).split('.')[1]), len(self.steps) + 1


class Classifier(nn.Module):
    """mmpretrain's classifier answers for its backbone, and takes the name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Steps(2), nn.Linear(7, 11)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        return self.backbone.get_layer_depth(param_name, 'backbone.')


def test_backbones_of_other_packages():
    model = Classifier()
    found = by_name(model, build(model, layer_decay_rate=0.5))
    weights = {name: lr for name, (lr, _) in found.items() if name.endswith('weight')}
    assert weights == {
        'backbone.steps.0.weight': LR * 0.25,
        'backbone.steps.1.weight': LR * 0.5,
        'backbone.last.weight': LR,
        'head.weight': LR,
    }


def test_several_backbones():
    model = nn.ModuleDict(dict(image=Steps(3), depth=nn.Sequential(Steps(1)), head=nn.Linear(2, 3)))
    found = by_name(model, build(model, layer_decay_rate=0.5), 'group_name', 'lr')
    weights = {name: options for name, options in found.items() if name.endswith('weight')}
    assert weights == {
        'image.steps.0.weight': ('layer_0_decay', LR * 0.125),
        'image.steps.1.weight': ('layer_1_decay', LR * 0.25),
        'image.steps.2.weight': ('layer_2_decay', LR * 0.5),
        'image.last.weight': ('layer_3_decay', LR),
        'depth.0.steps.0.weight': ('layer_0_decay', LR * 0.5),
        'depth.0.last.weight': ('layer_1_decay', LR),
        'head.weight': ('layer_3_decay', LR),
    }


# -------------------------------------------------------------------------------------------- types
def test_found_by_its_name_under_another_default_scope():
    code = (
        'import sys\n'
        'from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope\n'
        'init_default_scope("mmdet")\n'
        'assert not any(name.startswith("mmconvneur") for name in sys.modules)\n'
        'constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(\n'
        '    type="mmconvneur.LearningRateDecayOptimWrapperConstructor",\n'
        '    optim_wrapper_cfg=dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1)),\n'
        '    paramwise_cfg=dict(layer_decay_rate=0.9)))\n'
        'print(type(constructor).__module__)\n'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout.endswith('mmconvneur.engine.optim\n'), run.stderr[-2000:]


# ------------------------------------------------------------------------------------------- errors
def test_a_model_without_depths():
    with pytest.raises(UsageError, match='nothing in Linear has get_layer_depth; take ConvNeur or'):
        build(nn.Linear(3, 5), layer_decay_rate=0.9)


def test_unknown_keys():
    with pytest.raises(
        UsageError, match='no key decay_type, num_layers with .* takes layer_decay_rate,'
    ):
        build(nn.Linear(3, 5), layer_decay_rate=0.9, num_layers=6, decay_type='layer_wise')


@pytest.mark.parametrize('rate', [0, -0.5, 1.01, '0.9', None])
def test_rates_out_of_range(rate):
    with pytest.raises(
        UsageError, match=f'layer_decay_rate is {rate}: set it above 0 and at most 1'
    ):
        build(nn.Linear(3, 5), layer_decay_rate=rate)


def test_no_paramwise_cfg():
    with pytest.raises(UsageError, match='layer_decay_rate is None'):
        build(nn.Linear(3, 5))


@pytest.mark.parametrize('missing', ['lr', 'weight_decay'])
def test_optimizer_without_rate_or_decay(missing):
    optimizer = dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY)
    del optimizer[missing]
    cfg = dict(
        constructor='mmconvneur.LearningRateDecayOptimWrapperConstructor',
        optimizer=optimizer,
        paramwise_cfg=dict(layer_decay_rate=0.9),
    )
    with pytest.raises(UsageError, match='set both in optimizer'):
        build_optim_wrapper(nn.Linear(3, 5), cfg)


def test_fsdp():
    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # a real one needs a GPU
    with pytest.raises(UsageError, match='in FSDP: train with DDP'):
        build(sharded, layer_decay_rate=0.9)
