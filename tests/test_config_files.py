"""Configs of a user's own folder: on a base of ours, or in pure Python."""

from __future__ import annotations

import runpy
import sys
from argparse import Namespace
from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config
from steps import CONFIGS
from test_tools import DETECTION, TOOLS

from mmconvneur import UsageError
from mmconvneur.engine.checkpoints import latest_checkpoint
from mmconvneur.utils.configs import load_config

HEAD = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.evaluation import CocoMetric
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.models import FPN, DetDataPreprocessor, FCOS, FCOSHead
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.nn import GroupNorm
from torch.optim import AdamW

from mmconvneur import ConvNeur

default_scope = None
"""
PURE = (
    HEAD
    + """
model = dict(
    type=FCOS,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[0.0] * 3, std=[255.0] * 3),
    backbone=dict(
        type=ConvNeur,
        arch=dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
        out_indices=(1, 2, 3),
        init_cfg=None,
    ),
    neck=dict(
        type=FPN,
        in_channels=[16, 24, 32],
        out_channels=8,
        num_outs=5,
        add_extra_convs='on_output',
        norm_cfg=dict(type=GroupNorm, num_groups=4),
    ),
    bbox_head=dict(type=FCOSHead, num_classes=5, in_channels=8, feat_channels=64, stacked_convs=1),
    test_cfg=dict(nms_pre=9, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=9),
)
classes = ('coin', 'star', 'triangle', 'ring', 'bar')
load = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(96, 96)),
]
data = dict(type=CocoDataset, data_root='data/sample', metainfo=dict(classes=classes), indices=4)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/train'),
        pipeline=[*load, dict(type=RandomFlip, prob=0.5), dict(type=PackDetInputs)],
        **data,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val'),
        pipeline=[*load, dict(type=PackDetInputs, meta_keys=keys)],
        test_mode=True,
        **data,
    ),
)
test_evaluator = dict(
    type=CocoMetric, ann_file='data/sample/annotations/instances_val.json', metric='bbox'
)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_dataloader, val_evaluator, val_cfg = None, None, None
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4))
default_hooks = dict(visualization=dict(type=DetVisualizationHook))
visualizer = dict(type=DetLocalVisualizer, vis_backends=[], name='visualizer')
"""
)


def load(path, text: str, **options) -> Config:
    path.write_text(text)
    return load_config(Namespace(config=str(path), cfg_options=options))


def test_a_base_of_ours_from_any_folder(tmp_path):
    text = "_base_ = 'mmconvneur::{}'\nrandomness = dict(seed=5)\n"
    cfg = load(tmp_path / 'mine.py', text.format(f'{DETECTION}.py'))
    assert cfg.model == Config.fromfile(CONFIGS / f'{DETECTION}.py').model
    assert cfg.randomness.seed == 5
    model = Config.fromfile(CONFIGS / '_base_/models/mask_rcnn_convneur.py').model
    (tmp_path / 'other.py').write_text(text.format('_base_/models/mask_rcnn_convneur.py'))
    assert Config.fromfile(tmp_path / 'other.py').model == model
    for wrong, choice in (
        (DETECTION, f'{DETECTION}.py'),
        ('_base_/models/no.py', '_base_/models/mask_rcnn_convneur.py'),
        ('no/no.py', f'{DETECTION}.py'),
        ('', f'{DETECTION}.py'),
    ):
        with pytest.raises(UsageError, match=f"_base_='mmconvneur::{wrong}' does not.* {choice}"):
            load(tmp_path / 'mine.py', text.format(wrong))


def test_a_base_of_mmseg_whatever_its_package_is_called(tmp_path):
    name = '_base_/models/upernet_r50.py'
    cfg = load(tmp_path / 'mine.py', f"_base_ = 'mmseg::{name}'\ndefault_scope = 'mmseg'\n")
    stock = Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs' / name).model
    assert cfg.model.type == stock.type and cfg.model.decode_head.channels == 512
    with pytest.raises(UsageError, match=r'mine\.py cannot be read'):
        load(tmp_path / 'mine.py', "_base_ = 'mmseg::no.py'")


def test_pure_python_configs_are_checked_as_others(tmp_path):
    cfg = load(tmp_path / 'pure.py', PURE, **{'model.backbone.with_cp': True})
    assert cfg.default_scope == 'mmdet' and cfg.model.backbone.with_cp
    assert cfg.model.backbone.type == 'mmconvneur.ConvNeur'
    with pytest.raises(UsageError, match='is for segmentation'):
        text = PURE.replace(
            'import CocoMetric', 'import CocoMetric\nfrom mmseg.evaluation import IoUMetric'
        )
        load(tmp_path / 'pure.py', text.replace('type=CocoMetric', 'type=IoUMetric'))


@pytest.mark.slow
def test_pure_python_configs_in_the_tools(sample_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(sample_dir)
    config = tmp_path / 'pure.py'
    config.write_text(PURE)

    def run(tool, *args):
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')

    run('train', config, '--work-dir', tmp_path / 'train')
    checkpoint = latest_checkpoint(tmp_path / 'train')
    assert checkpoint.name == 'epoch_1.pth'
    dumped = tmp_path / 'train' / 'pure.py'
    assert Config.fromfile(dumped).train_cfg.type == 'mmconvneur.ResumableEpochLoop'
    run('check', dumped)
    run('test', config, checkpoint, '--work-dir', tmp_path / 'test', '--tta')
    run('browse_dataset', config, '--out-dir', tmp_path / 'drawn', '-n', '1')
    assert len(list((tmp_path / 'drawn').iterdir())) == 1
    images = sample_dir / 'data/sample/images/val'
    run(
        'demo', images, '--model', config, '--checkpoint', checkpoint, '--out-dir', tmp_path / 'out'
    )
    assert len(list((tmp_path / 'out').iterdir())) == len(list(images.iterdir()))
