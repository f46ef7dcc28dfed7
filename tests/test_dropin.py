"""The backbone in mmdet's and mmseg's own configs: two entries change, nothing else."""

from __future__ import annotations

from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from steps import build, sample_batch, train_step, wake_memory

from mmconvneur.models.backbones.convneur import ARCHS

# Config -> whose in_channels is set.
DETECTORS = {
    'retinanet/retinanet_r50_fpn_1x_coco': 'neck',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': 'neck',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': 'neck',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': 'neck',
    'dino/dino-4scale_r50_8xb2-12e_coco': 'neck',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': 'panoptic_head',
}
SEGMENTORS = {
    'upernet/upernet_r50_4xb4-160k_ade20k-512x512': 'decode_head',
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512': 'decode_head',
    'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512': 'neck',
}
# Maps of all four stages serve these; the detection transformers take the last three.
LAST_THREE = ('deformable_detr', 'dino')


def dropped_in(name: str) -> Config:
    """A config of mmdet or mmseg with ConvNeur-M1 for its backbone."""
    package, part = (mmdet, DETECTORS[name]) if name in DETECTORS else (mmseg, SEGMENTORS[name])
    cfg = Config.fromfile(Path(package.__file__).parent / '.mim' / 'configs' / f'{name}.py')
    stages = (1, 2, 3) if name.startswith(LAST_THREE) else (0, 1, 2, 3)
    channels = [ARCHS['m1']['channels'][i] for i in stages]
    cfg.model.backbone = dict(type='mmconvneur.ConvNeur', arch='m1', out_indices=stages)
    cfg.model[part].in_channels = channels
    if 'auxiliary_head' in cfg.model:
        cfg.model.auxiliary_head.in_channels = channels[cfg.model.auxiliary_head.in_index]
    if 'pretrained' in cfg.model:  # mmseg's way to load weights into the backbone
        cfg.model.pretrained = None
    return cfg


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_builds(name):
    cfg = dropped_in(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__ == 'mmconvneur.models.backbones.convneur'


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'retinanet/retinanet_r50_fpn_1x_coco',
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        *SEGMENTORS,
    ],
)
def test_one_step(name, sample_dir):
    cfg = dropped_in(name)
    if name in SEGMENTORS:
        cfg.model.data_preprocessor.size = (96, 96)
    else:
        cfg.model.data_preprocessor.pop('batch_augments', None)  # pads to 1024 pixels
    model = build(cfg)
    wake_memory(model.backbone)
    # RetinaNet's neck takes four maps and leaves out the first.
    unused = {f'norm{i}' for i in range(cfg.model.get('neck', {}).get('start_level', 0))}
    losses = train_step(model, sample_batch(cfg.default_scope, sample_dir, 'train'))
    assert losses and all(0 <= loss < 1000 for loss in losses.values()), losses
    for key, parameter in model.backbone.named_parameters():
        if key.split('.')[0] in unused:
            assert parameter.grad is None, key
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key
