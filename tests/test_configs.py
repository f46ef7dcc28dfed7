from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from steps import (
    CONFIGS,
    LEARNING_RATE,
    ROOT,
    SAMPLE_CONFIGS,
    build,
    sample_batch,
    train_step,
    wake_memory,
)

# But for classifiers: see test_classification.py.
SHIPPED = sorted(
    path.stem for path in CONFIGS.glob('*.py') if not path.stem.startswith('convneur_')
)
RESNETS = ['mask_rcnn_spatial_bias_r50_coco', 'upernet_spatial_bias_r50_ade20k']
# Another backbone, to compare with.
BASELINES = [
    'mask_rcnn_r18_sample',
    *(f'{task}_{name}_cue' for task in ('mask_rcnn', 'segformer') for name in ('r18', 'pvtv2_b0')),
    *RESNETS,
]
FULL_NAMES = dict(t='tiny', s='small', b='base', l='large')
DINOV3 = {
    f'{name}_{size}_dinov3_{data}': size
    for name, data in (('mask_rcnn_convneur', 'coco'), ('upernet_convneur', 'ade20k'))
    for size in 'tsbl'
}
ADAPTER = 'mask_rcnn_convneur_t_dinov3_adapter_coco'
PROMISED = [
    *(f'mask_rcnn_convneur_{size}_coco' for size in ('m1', 'm2', 'm3', 'm4', *'tsbl')),
    *(f'mask_rcnn_convneur_t_{mixer}_coco' for mixer in ('glmix', 'spatial_bias', 'attention')),
    'mask_rcnn_convneur_t_local_coco',
    *(f'mask_rcnn_convneur_{size}_3x_coco' for size in 'tsbl'),
    *(f'cascade_mask_rcnn_convneur_{size}_coco' for size in ('m2', 't')),
    *(f'upernet_convneur_{size}_ade20k' for size in ('m4', *'tsbl')),
    'semantic_fpn_convneur_m2_ade20k',
    'mask_rcnn_convneur_m1_sample',
    'upernet_convneur_m1_sample',
    'mask_rcnn_convneur_b_in21k_coco',
    'upernet_convneur_b_in21k_ade20k',
    *RESNETS,
    *DINOV3,
    ADAPTER,
]
GLNETS = [
    f'{name}_{size}_{data}'
    for name, data in (('mask_rcnn_glnet', 'coco'), ('upernet_glnet', 'ade20k'))
    for size in ('stl', '4g')
]
FAMILIES = {  # one config of each model family
    'mask_rcnn_convneur_m1_coco': 'mmdet',
    'cascade_mask_rcnn_convneur_m2_coco': 'mmdet',
    'upernet_convneur_m4_ade20k': 'mmseg',
    'semantic_fpn_convneur_m2_ade20k': 'mmseg',
    'mask_rcnn_glnet_stl_coco': 'mmdet',
    'upernet_glnet_4g_ade20k': 'mmseg',
}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def build_empty(cfg: Config) -> torch.nn.Module:
    """The model without memory for its weights."""
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def test_the_promised_configs_are_there():
    assert {*PROMISED, *GLNETS} <= set(SHIPPED)


@pytest.mark.parametrize('name', BASELINES)
def test_baselines_build(name):
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    assert sum(p.numel() for p in MODELS.build(cfg.model).parameters()) > 1e6


@pytest.mark.parametrize('name', RESNETS)
def test_resnets_start_from_torchvision_and_train_the_stages_of_the_bias(name):
    cfg = load(name)
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint='torchvision://resnet50'
    )
    assert cfg.optim_wrapper.optimizer.type == 'SGD'
    backbone = build_empty(cfg).backbone
    fixed = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert not any('layer' in name for name in fixed)


@pytest.mark.parametrize('name', sorted(set(SHIPPED) - set(BASELINES)))
def test_builds_with_the_widths_of_its_arch(name):
    cfg = load(name)
    model = build_empty(cfg)
    arch = cfg.model.backbone.arch
    widths = model.backbone.resolve_arch(arch)['channels']
    stages = model.backbone.out_indices
    channels = [widths[i] for i in stages]
    assert [getattr(model.backbone, f'norm{i}').weight.numel() for i in stages] == channels
    assert cfg.model['neck' if model.with_neck else 'decode_head'].in_channels == channels
    auxiliary = cfg.model.get('auxiliary_head')
    assert auxiliary is None or auxiliary.in_channels == channels[auxiliary.in_index]
    if name in PROMISED or name in GLNETS:
        assert f'_{type(model.backbone).__name__.lower()}_{arch}_' in name


@pytest.mark.parametrize('name', [*PROMISED, *GLNETS])
def test_is_a_delta_with_a_header(name):
    lines = (CONFIGS / f'{name}.py').read_text().splitlines()
    header = [line for line in lines if line.startswith('#')]
    text = '\n'.join(header)
    assert f'configs/{name}.py' in text
    assert re.search(r'^# Hardware: \S', text, re.M)
    assert re.search(r'^# Result: +(not trained (yet|here)|\d)', text, re.M)
    assert len(lines) - len(header) <= 15
    assert 'http' not in ''.join(lines)


@pytest.mark.parametrize('name', [*PROMISED, *GLNETS])
def test_learning_rate_is_meant_for_the_batch_of_the_header(name):
    cfg = load(name)
    gpus = re.search(r'# Hardware: (\d+) GPUs x 2 images', (CONFIGS / f'{name}.py').read_text())
    batch_size = cfg.train_dataloader.batch_size * (int(gpus[1]) if gpus else 1)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=batch_size)


@pytest.mark.parametrize('name', DINOV3)
def test_dinov3_starts_from_its_own_file_which_is_asked_for_and_learns_slowly(name):
    cfg, size = load(name), FULL_NAMES[DINOV3[name]]
    url, file = cfg.model.backbone.init_cfg.checkpoint.rsplit('/', 1)
    assert url.endswith(f'/dinov3/dinov3_convnext_{size}')
    assert re.fullmatch(rf'dinov3_convnext_{size}_pretrain_lvd1689m-[0-9a-f]{{8}}\.pth', file)
    assert cfg.optim_wrapper.constructor == 'mmconvneur.LearningRateDecayOptimWrapperConstructor'
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.9)
    header = (CONFIGS / f'{name}.py').read_text().split('_base_')[0]
    assert 'under the DINOv3 License; ask for them at' in header
    plain = load(name.replace('_dinov3', ''))
    del cfg.model.backbone['init_cfg'], plain.model.backbone['init_cfg']
    assert cfg.model == plain.model


def test_an_adapter_trains_global_branches_norms_neck_and_heads_at_one_rate():
    cfg, plain = load(ADAPTER), load(ADAPTER.replace('_adapter', ''))
    plain.model.backbone.frozen_trunk = True
    assert cfg.model == plain.model
    assert cfg.custom_hooks == [dict(type='mmconvneur.LearnedPartHook')]
    wrapper = build_optim_wrapper(build_empty(cfg), cfg.optim_wrapper)
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {1e-4}


@pytest.mark.parametrize('name', sorted(set(PROMISED) - {*RESNETS, *DINOV3, ADAPTER}))
def test_sizes_of_convnext_start_from_its_weights_and_the_others_from_scratch(name):
    backbone = load(name).model.backbone
    header = (CONFIGS / f'{name}.py').read_text().split('_base_')[0]
    if backbone.arch not in FULL_NAMES:
        assert backbone.get('init_cfg') is None and 'ConvNeXt' not in header
        return
    assert backbone.init_cfg.type == 'Pretrained'
    file = backbone.init_cfg.checkpoint.rsplit('/', 1)[1]
    in21k = backbone.arch == 'l' or '_in21k_' in name
    kind = '_3rdparty_in21k_' if in21k else '_3rdparty_32xb128-noema_in1k_'
    assert file.startswith(f'convnext-{FULL_NAMES[backbone.arch]}{kind}')
    images = 'ImageNet-21K' if in21k else 'ImageNet-1K'
    assert f'starts from ConvNeXt-{backbone.arch.upper()} of {images}' in header


@pytest.mark.parametrize('name', FAMILIES)
def test_no_decay_on_norms_biases_and_scales(name):
    cfg = load(name)
    model = build_empty(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {group['params'][0]: group['weight_decay'] for group in optimizer.param_groups}
    for key, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim == 1 else 0.05
        assert decay[parameter] == expected, key


def test_three_times_the_schedule():
    once, thrice = load('mask_rcnn_convneur_t_coco'), load('mask_rcnn_convneur_t_3x_coco')
    assert (once.train_cfg.max_epochs, thrice.train_cfg.max_epochs) == (12, 36)
    assert once.param_scheduler[1].milestones == [8, 11]
    assert thrice.param_scheduler[1].milestones == [27, 33]
    steps = thrice.train_dataloader.dataset.pipeline
    choice = next(step for step in steps if step.type == 'RandomChoice')
    assert [short for short, _ in choice.transforms[0][0].scales] == list(range(480, 801, 32))


def on_sample_data(name: str) -> Config:
    """A shipped config with the classes of the sample data and its small images."""
    cfg, scope = load(name), FAMILIES[name]
    classes = len(Config.fromfile(SAMPLE_CONFIGS[scope]).metainfo.classes)

    def set_classes(node):
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, (dict, list)):
                set_classes(value)
        if isinstance(node, dict) and 'num_classes' in node:
            node.num_classes = classes

    set_classes(cfg.model)
    if scope == 'mmseg':
        cfg.model.data_preprocessor.size = (96, 96)
    else:
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 50
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_one_test_step_and_one_train_step(name, sample_dir):
    scope = FAMILIES[name]
    model = build(on_sample_data(name))
    wake_memory(model.backbone)

    model.eval()
    with torch.no_grad():
        results = model.test_step(sample_batch(scope, sample_dir, 'val'))
    assert len(results) == 2
    for result in results:
        if scope == 'mmdet':
            found = result.pred_instances
            assert len(found) > 0 and found.masks.shape == (len(found), 96, 96)
            assert found.bboxes.min() >= 0 and found.bboxes.max() <= 96
            assert ((0 <= found.labels) & (found.labels < 5)).all()
            assert ((0.05 < found.scores) & (found.scores <= 1)).all()
        else:
            logits, labels = result.seg_logits.data, result.pred_sem_seg.data
            assert logits.shape == (8, 96, 96)
            assert torch.equal(labels[0], logits.argmax(0))

    before = copy.deepcopy(model.state_dict())
    losses = train_step(model, sample_batch(scope, sample_dir, 'train'))
    assert all(0 < loss < 20 for loss in losses.values()), losses
    for key, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        stepped = before[f'backbone.{key}'] - LEARNING_RATE * parameter.grad
        torch.testing.assert_close(parameter.detach(), stepped, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(('scope', 'absent'), [('mmseg', 'mmdet'), ('mmdet', 'mmseg')])
def test_trains_where_the_other_family_is_not_installed(scope, absent, sample_dir, tmp_path):
    code = (
        'import runpy, sys\n'
        f'sys.modules[{absent!r}] = None\n'
        'sys.argv = sys.argv[1:]\n'
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    one_step = dict(
        mmdet=['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4'],
        mmseg=['train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1'],
    )[scope]
    run = subprocess.run(
        [sys.executable, '-c', code, ROOT / 'tools' / 'train.py', SAMPLE_CONFIGS[scope]]
        + ['--work-dir', tmp_path, '--cfg-options', *one_step],
        cwd=sample_dir,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert Path((tmp_path / 'last_checkpoint').read_text()).is_file()


@pytest.mark.parametrize('name', [n for n in PROMISED + GLNETS if 'rcnn' not in n])
def test_segmentation_configs_inherit_nothing_of_mmdet(name):
    def bases(path: Path) -> set[Path]:
        text = path.read_text()
        assert '::' not in text
        listed = re.search(r'^_base_ = (\[.*?\]|\S+)', text, re.M | re.S)
        names = re.findall(r"'([^']+)'", listed[1]) if listed else []
        return {path}.union(*(bases((path.parent / name).resolve()) for name in names))

    assert len(bases(CONFIGS / f'{name}.py')) >= 5
