"""What is said of a run before its first iteration."""

from __future__ import annotations

import argparse
import copy
import errno
import functools
import json
import math
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.optim import LinearLR
from mmengine.registry import OPTIMIZERS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from PIL import Image
from steps import CONFIGS, ROOT
from torch.utils.data import DataLoader

from mmconvneur.checks import classes, folders, network, pictures, training
from mmconvneur.checks.data import Run, Split, open_split
from mmconvneur.checks.look import examine, look
from mmconvneur.engine.guards import FiniteHook, ScheduleHook
from mmconvneur.errors import UsageError, UsageErrors
from mmconvneur.utils.arguments import config_parser, parse, usage_message
from mmconvneur.utils.configs import load_config
from mmconvneur.utils.files import write_atomically

DETECTION, SEGMENTATION = 'mask_rcnn_convneur_m1_sample', 'upernet_convneur_m1_sample'
CLASSES = ('coin', 'star', 'triangle', 'ring', 'bar')


@pytest.fixture
def sample(sample_dir, tmp_path, monkeypatch) -> Path:
    """A copy of the sample data that a test may spoil; the working directory is above it."""
    shutil.copytree(sample_dir / 'data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data' / 'sample'


@functools.cache
def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def load(name: str, **options: object) -> Config:
    cfg = copy.deepcopy(read(name))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    init_default_scope(cfg.default_scope)
    return cfg


def run_of(cfg: Config, *splits: str, model: bool = False) -> Run:
    run = Run(cfg, [split for name in splits if (split := open_split(cfg, name))])
    if model:
        run.model = network.build_model(cfg)[0]
    return run


def said(check, run: Run) -> tuple[list[str], list[str]]:
    """Mistakes and doubts."""
    found = list(check(run))
    return [f.text for f in found if not f.is_doubt], [f.text for f in found if f.is_doubt]


def one(texts: list[str], *parts: str) -> None:
    assert len(texts) == 1, texts
    for part in parts:
        assert part in texts[0], texts[0]


def expect(found: tuple[list[str], list[str]], mistake: str | None, doubtful: str | None) -> None:
    """The one mistake and the one doubt, or none."""
    mistakes, doubts = found
    one(mistakes, mistake) if mistake else None
    one(doubts, doubtful) if doubtful else None
    assert (len(mistakes), len(doubts)) == (bool(mistake), bool(doubtful)), found


# ------------------------------------------------------------------------------------------ classes
WRAPPERS = {
    None: lambda inner: inner,
    'Repeat': lambda inner: dict(type='RepeatDataset', times=2, dataset=inner),
    'Concat': lambda inner: dict(type='ConcatDataset', datasets=[inner]),
    'Balanced': lambda inner: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner),
}


@pytest.mark.parametrize(
    ('names', 'wrapper', 'mistake', 'is_doubtful'),
    [
        (CLASSES, None, None, False),
        (('coin', 'triangle', 'bar'), 'Repeat', None, False),  # a part in order
        (CLASSES[::-1], None, ['another order', "'coin' counts as 'bar'", f'{CLASSES}'], False),
        (('star', 'coin'), 'Concat', ['another order', "classes=('coin', 'star'))"], False),
        (
            ('coin', 'staar', *CLASSES[2:]),
            'Balanced',
            ['staar are not in', 'did you mean star?', "'triangle' counts as 'staar'"],
            False,
        ),
        (('coin', 'star', 'triangle', 'ring', 'Bar'), None, ['did you mean bar?'], False),
        ((*CLASSES, 'cloud'), None, None, True),
        (('cloud', *CLASSES), 'Repeat', ['cloud', "'coin' counts as 'cloud'"], False),
        (tuple(f'c{i}' for i in range(95)) + CLASSES, None, ["'coin' counts as 'c0'"], False),
        (('coins', 'stars'), 'Concat', ['none of the train classes', 'did you mean coin?'], False),
        ('coin', None, ["classes=('coin',)"], False),
        (5, 'Concat', ['are 5: give a tuple of names'], False),
        (('coin', *CLASSES), None, ['has the classes coin more than once'], False),
    ],
)
def test_classes_are_those_of_the_annotation_file(names, wrapper, mistake, is_doubtful, sample):
    cfg = load(DETECTION)
    cfg.train_dataloader.dataset.metainfo = dict(classes=names)
    cfg.train_dataloader.dataset = WRAPPERS[wrapper](cfg.train_dataloader.dataset)
    mistakes, doubts = said(classes.check_names, run_of(cfg, 'train'))
    one(mistakes, *mistake) if mistake else None
    assert (len(mistakes), len(doubts)) == (int(bool(mistake)), int(is_doubtful)), (
        mistakes,
        doubts,
    )


def test_a_string_in_place_of_the_classes_of_a_segmentor(sample):
    cfg = load(SEGMENTATION, train_dataloader__dataset__metainfo__classes='coin')
    mistakes, _ = said(classes.check_names, run_of(cfg, 'train'))
    one(mistakes, "are the string 'coin'")


def test_training_and_validation_mean_the_same_by_a_label(sample):
    cfg = load(DETECTION)
    assert said(classes.check_same_classes, run_of(cfg, 'train', 'val')) == ([], [])
    cfg.val_dataloader.dataset.metainfo = dict(classes=CLASSES[::-1])
    mistakes, _ = said(classes.check_same_classes, run_of(cfg, 'train', 'val'))
    one(mistakes, "label 0 is 'coin' in the train data and 'bar' in the val data")


CASCADE = 'cascade_mask_rcnn_convneur_m2_coco'


@pytest.mark.parametrize(
    ('name', 'path', 'number'),
    [
        (DETECTION, 'roi_head.bbox_head', 4),
        (DETECTION, 'roi_head.mask_head', 80),
        (CASCADE, 'roi_head.bbox_head.1', 6),
        (SEGMENTATION, 'decode_head', 7),
        (SEGMENTATION, 'auxiliary_head', 150),
    ],
)
def test_heads_have_the_classes_of_the_data(name, path, number, sample):
    cfg = load(SEGMENTATION if name == SEGMENTATION else DETECTION)
    right = 8 if name == SEGMENTATION else 5
    if name == CASCADE:
        cfg.model = load(CASCADE).model
        for head in cfg.model.roi_head.bbox_head:
            head.num_classes = right
        cfg.model.roi_head.mask_head.num_classes = right
    run = run_of(cfg, 'train', 'val', model=True)
    assert said(classes.check_heads, run) == ([], [])
    run.model.get_submodule(path).num_classes = number
    mistakes, _ = said(classes.check_heads, run)
    one(mistakes, f'model.{path}.num_classes is {number}', 'train and val', f'set it to {right}')


def leave_out(part: str, name: str):
    return lambda content: [item.pop(name) for item in content[part][2:]]


def write(part: str, name: str, value: object):
    return lambda content: content[part][1].update({name: value})


@pytest.mark.parametrize(
    ('spoil', 'problem'),
    [
        (leave_out('annotations', 'bbox'), 'annotations[2] has no bbox'),
        (leave_out('images', 'height'), 'images[2] has no height'),
        (write('annotations', 'bbox', [1, 2, 3]), "bbox is '[1, 2, 3]', but has to be x, y, width"),
        (write('annotations', 'area', None), "annotations[1].area is 'None', but has to be int or"),
        (write('annotations', 'id', 1), 'annotations[1].id=1 is there twice'),
        (
            write('annotations', 'segmentation', dict(size=[96], counts='1')),
            'annotations[1].segmentation',
        ),
        (write('images', 'file_name', 3), "images[1].file_name is '3', but has to be str"),
        (lambda content: content.update(images=3), 'no list of images: COCO has lists of images'),
        (lambda content: content['annotations'].insert(0, 'x'), 'annotations[0] is x, but has to'),
        ('{"images": [', 'is no JSON file'),
    ],
)
def test_what_is_wrong_in_an_annotation_file_is_named(spoil, problem, sample):
    file = sample / 'annotations' / 'instances_train.json'
    content = json.loads(file.read_text())
    if isinstance(spoil, str):
        file.write_text(spoil)
    else:
        spoil(content)
        file.write_text(json.dumps(content))
    run = run_of(load(DETECTION), 'train')
    mistakes = [finding.text for finding in run.splits[0].failed]
    if not mistakes:  # masks are looked at when they are loaded
        mistakes, _ = said(pictures.check_pipelines, run)
    one(mistakes, 'data/sample/annotations/instances_train.json', problem)


def test_the_file_of_the_evaluator_has_what_pycocotools_needs(sample):
    file = sample / 'annotations' / 'instances_val.json'
    content = json.loads(file.read_text())
    leave_out('annotations', 'iscrowd')(content)
    file.write_text(json.dumps(content))
    mistakes, _ = said(classes.check_evaluator, run_of(load(DETECTION), 'val'))
    one(mistakes, 'val_evaluator: data/sample/annotations/instances_val.json', 'has no iscrowd')


@pytest.mark.parametrize('kind', ['images', 'boxes', 'classes', 'fewer', 'zero', 'same'])
def test_the_evaluator_has_the_file_of_its_images(kind, sample):
    cfg = load(DETECTION)
    file = sample / 'annotations' / 'other.json'
    content = json.loads((sample / 'annotations' / 'instances_val.json').read_text())
    if kind == 'images':
        for image in content['images']:
            image['file_name'] = f'x{image["file_name"]}'
    elif kind == 'boxes':
        content = json.loads((sample / 'annotations' / 'instances_train.json').read_text())
    elif kind == 'classes':
        content['categories'] = content['categories'][:-1]
    elif kind == 'fewer':
        cfg.val_dataloader.dataset.indices = 3
    elif kind == 'zero':
        content['annotations'][0]['id'] = 0
    file.write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(file)
    mistakes, doubts = said(classes.check_evaluator, run_of(cfg, 'val'))
    wanted = dict(
        images='is of other images', boxes='none of the boxes', classes='has no bar: a prediction'
    )
    if kind in wanted:
        one(mistakes, str(file), wanted[kind])
    else:
        assert not mistakes
    if kind == 'fewer':
        one(doubts, 'has 6 images and the val data 3')
    elif kind == 'zero':
        one(doubts, 'has an annotation with id=0')
    elif kind == 'same':
        assert not doubts


def test_each_metric_of_several_data_sets_has_its_own(sample):
    cfg = load(DETECTION, default_hooks__checkpoint__save_best='b/coco/bbox_mAP')
    data, metric = [cfg.val_dataloader.dataset, cfg.train_dataloader.dataset], cfg.val_evaluator
    other = dict(metric, ann_file=str(sample / 'annotations' / 'instances_train.json'))
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=data)
    for given, refused in (([metric, other], False), ([other, metric], True)):
        cfg.val_evaluator = dict(
            type='MultiDatasetsEvaluator', metrics=given, dataset_prefixes=['a', 'b']
        )
        run = run_of(cfg, 'val')
        assert not said(training.check_best, run)[0] and not said(training.check_kinds, run)[0]
        mistakes, _ = said(classes.check_evaluator, run)
        assert len(mistakes) == 2 * refused, mistakes


@pytest.mark.parametrize('kind', ['no annotations', 'LVIS', 'numbers'])
def test_files_that_a_metric_reads_in_another_way(kind, sample):
    cfg = load(DETECTION)
    file = sample / 'annotations' / 'other.json'
    content = json.loads((sample / 'annotations' / 'instances_val.json').read_text())
    if kind == 'no annotations':  # a test set whose truth is on a server
        del content['annotations']
        cfg.val_evaluator.format_only = True
    for image in content['images'] if kind == 'LVIS' else ():
        cfg.val_evaluator.type = 'LVISMetric'
        image['coco_url'] = f'http://images.cocodataset.org/{image.pop("file_name")}'
    for box in content['annotations'] if kind == 'numbers' else ():
        box['iscrowd'] = 0.0
    file.write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(file)
    assert said(classes.check_evaluator, run_of(cfg, 'val')) == ([], [])


def test_a_broken_file_of_lvis_is_named(sample):
    cfg = load(DETECTION)
    file = sample / 'annotations' / 'broken.json'
    file.write_text('[')
    cfg.val_evaluator.update(type='LVISMetric', ann_file=str(file))
    mistakes, _ = said(classes.check_evaluator, run_of(cfg, 'val'))
    assert len(mistakes) == 1 and 'broken.json is no JSON file' in mistakes[0]


@pytest.mark.parametrize(
    ('labels', 'mistake', 'doubtful'),
    [
        ([0, 1, 2], None, None),
        ([0, 1, -1], None, 'is of the train classes c'),
        ([1, 2, 3], 'own.json has the labels 3, but the 3 train classes', None),
        (['a', 0, 1], "own.json has the labels 'a', but", None),
    ],
)
def test_labels_are_the_numbers_of_the_classes(labels, mistake, doubtful, tmp_path):
    boxes = [dict(bbox=[0, 0, 9, 9], bbox_label=label, ignore_flag=0) for label in labels]
    image = dict(img_path='a.png', img_id=0, height=9, width=9, instances=boxes)
    content = dict(metainfo=dict(classes=['a', 'b', 'c']), data_list=[image])
    (tmp_path / 'own.json').write_text(json.dumps(content))
    init_default_scope('mmdet')
    data = dict(type='BaseDetDataset', data_root=str(tmp_path), ann_file='own.json', pipeline=[])
    cfg = Config(dict(train_dataloader=dict(dataset=data)))
    expect(said(classes.check_labels, run_of(cfg, 'train')), mistake, doubtful)


@pytest.mark.parametrize(
    ('boxes', 'doubtful'),
    [
        (lambda x, y, w, h: [x, y, w, h], None),
        (lambda x, y, w, h: [x / 96, y / 96, w / 96, h / 96], 'no object of'),
        (lambda x, y, w, h: [x + 48, y + 48, w + 48, h + 48], 'reach beyond their images'),
        (None, None),  # images without annotations
    ],
)
def test_boxes_lie_in_their_images(boxes, doubtful, sample):
    file = sample / 'annotations' / 'instances_train.json'
    content = json.loads(file.read_text())
    if boxes is None:
        content['annotations'].clear()
    for box in content['annotations']:
        box['bbox'] = boxes(*box['bbox'])
    file.write_text(json.dumps(content))
    cfg = load(DETECTION, train_dataloader__dataset__filter_cfg=None)
    expect(said(classes.check_objects, run_of(cfg, 'train')), None, doubtful)


def test_objects_of_no_category(sample):
    file = sample / 'annotations' / 'instances_train.json'
    content = json.loads(file.read_text())
    for box in content['annotations'][:3]:
        box['category_id'] = 77
    file.write_text(json.dumps(content))
    expect(
        said(classes.check_names, run_of(load(DETECTION), 'train')),
        *(None, 'instances_train.json have a category_id (77)'),
    )


@pytest.mark.parametrize(('number', 'refused'), [(1, False), (8, False), (9, False), (19, True)])
def test_losses_have_a_weight_for_each_class(number, refused, sample):
    cfg = load(SEGMENTATION)
    cfg.model.decode_head.loss_decode.class_weight = [1.0] * number
    mistakes, _ = said(classes.check_heads, run_of(cfg, 'train', model=True))
    one(mistakes, f'decode_head.loss_decode.class_weight has {number}') if refused else None
    assert len(mistakes) == refused


def test_masks_where_they_are_needed(sample):
    file = sample / 'annotations' / 'instances_train.json'
    content = json.loads(file.read_text())
    for box in content['annotations']:
        del box['segmentation']
    file.write_text(json.dumps(content))
    mistakes, _ = said(pictures.check_masks, run_of(load(DETECTION), 'train'))
    one(mistakes, str(file).removeprefix(f'{Path.cwd()}/'), 'without masks', 'with_mask=False')
    cfg = load(DETECTION)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = False
    assert said(pictures.check_masks, run_of(cfg, 'train')) == ([], [])
    mistakes, _ = said(pictures.check_masks, run_of(cfg, 'train', model=True))
    one(mistakes, 'mask_head learns from masks', 'with_mask=True')


# --------------------------------------------------------------------------------------- pictures
SPOIL = {
    'missing': (lambda path: path.unlink(), 'No such file'),
    'empty': (lambda path: path.write_bytes(b''), 'is empty (0 bytes)'),
    'cut off': (lambda path: path.write_bytes(path.read_bytes()[:-200]), 'is cut off'),
    'a page': (lambda path: path.write_text('<!DOCTYPE html><html></html>'), 'is no picture'),
    'a folder': (lambda path: path.unlink() or path.mkdir(), 'is a folder'),
}


@pytest.mark.parametrize('how', SPOIL)
@pytest.mark.parametrize(
    ('name', 'file'),
    [
        (DETECTION, 'images/train/000003.png'),
        (SEGMENTATION, 'semantic/train/000003.png'),
    ],
)
def test_spoilt_files_are_named_before_and_while_they_are_loaded(how, name, file, sample):
    spoil, words = SPOIL[how]
    spoil(sample / file)
    run = run_of(load(name), 'train')
    mistakes, _ = said(pictures.check_files, run)
    one(mistakes, f'data/sample/{file}', words)
    dataset = run.splits[0].dataset
    pictures.name_files(dataset)
    with pytest.raises(UsageError) as caught:  # through a worker, as in training
        dataset = copy.deepcopy(dataset)  # as MMEngine does
        next(iter(DataLoader(dataset, sampler=[3], num_workers=1, collate_fn=list)))
    message = usage_message(caught.value)
    assert message.startswith(f'data/sample/{file} ') and words in message
    assert 'Traceback' not in message


def test_a_jpeg_without_its_end_that_opencv_reads_is_a_doubt(sample):
    file = sample / 'annotations' / 'instances_train.json'
    file.write_text(file.read_text().replace('000003.png', '000003.jpg'))
    jpeg = sample / 'images/train/000003.jpg'
    Image.new('RGB', (96, 96)).save(jpeg)
    run = run_of(load(DETECTION), 'train')
    assert said(pictures.check_files, run) == ([], [])
    jpeg.write_bytes(jpeg.read_bytes() + bytes(2000))
    mistakes, doubts = said(pictures.check_files, run)
    assert not mistakes
    one(doubts, '000003.jpg', 'is cut off')


def test_an_empty_folder_or_another_suffix(sample):
    cfg = load(SEGMENTATION)
    cfg.train_dataloader.dataset.img_suffix = '.jpg'
    run = run_of(cfg, 'train')
    assert run.splits[0].dataset is None and not run.splits[0].failed
    mistakes, _ = said(pictures.check_empty, run)
    one(mistakes, 'ends with .jpg', '24 x .png', 'img_suffix')


def test_sizes_that_differ_from_the_annotations(sample):
    Image.new('RGB', (96, 90)).save(sample / 'images/train/000000.png')
    mistakes, doubts = said(pictures.check_files, run_of(load(DETECTION), 'train'))
    assert not mistakes
    one(doubts, '000000.png is 96 x 90', '96 x 96 in the annotations')


@pytest.mark.parametrize(
    ('values', 'number', 'reduce', 'mistake'),
    [
        ([0, 1, 2, 255], 3, False, None),
        ([0, 1, 2, 3], 3, True, None),
        ([0, 255], 1, False, None),
        ([0, 255], 2, False, 'write 1 in its pixels'),
        ([0, 255], 2, True, 'nothing but ignored pixels'),
        ([0, 1, 2, 3], 3, False, 'set reduce_zero_label=True'),
        ([0, 1, 2], 3, True, 'set reduce_zero_label=False'),
        ([0, 1, 7, 9], 3, False, 'holds 7, 9, but the 3 classes have the numbers 0 to 2'),
        ([255], 3, False, 'nothing but ignored pixels'),
        ('colour', 3, False, 'colour picture'),
        ([0, 1, 256], 3, False, 'the number 256'),
    ],
)
def test_label_maps_hold_the_numbers_of_the_classes(values, number, reduce, mistake, tmp_path):
    for folder in ('images', 'maps'):
        (tmp_path / folder).mkdir()
    Image.new('RGB', (16, 16)).save(tmp_path / 'images/a.jpg')
    if values == 'colour':
        Image.new('RGB', (16, 16)).save(tmp_path / 'maps/a.png')
    else:
        labels = np.resize(values, (16, 16)).astype(np.uint8 if max(values) < 256 else np.uint16)
        Image.fromarray(labels).save(tmp_path / 'maps/a.png')
    init_default_scope('mmseg')
    data = dict(
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        metainfo=dict(classes=[f'c{i}' for i in range(number)]),
        reduce_zero_label=reduce,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    cfg = Config(dict(train_dataloader=dict(dataset=data)))
    mistakes, doubts = said(pictures.check_label_maps, run_of(cfg, 'train'))
    one(mistakes, mistake) if mistake else None
    assert len(mistakes) == bool(mistake) and not doubts


@pytest.mark.parametrize(
    ('name', 'steps', 'problem'),
    [
        (DETECTION, [0, -1], 'the train pipeline loads no boxes'),
        (DETECTION, [0, 1], 'the train pipeline gives no inputs: end it with PackDetInputs'),
        (SEGMENTATION, [0, -1], 'the train pipeline loads no label map'),
        (SEGMENTATION, [0, 1], 'the train pipeline gives no inputs: end it with PackSegInputs'),
    ],
)
def test_pipelines_give_what_models_need(name, steps, problem, sample):
    cfg = load(name)
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [pipeline[i] for i in steps]
    mistakes, _ = said(pictures.check_pipelines, run_of(cfg, 'train', model=True))
    one(mistakes, problem)


# --------------------------------------------------------------------- loops, workers, schedules


@pytest.mark.parametrize(
    ('name', 'options', 'check', 'mistake', 'doubtful'),
    [
        (DETECTION, {}, training.check_loaders, None, None),
        (SEGMENTATION, {}, training.check_loaders, None, None),
        (
            *(DETECTION, dict(train_dataloader__sampler__type='InfiniteSampler')),
            *(training.check_loaders, 'never ends, so that an epoch does not', None),
        ),
        (
            *(SEGMENTATION, dict(val_dataloader__sampler__type='InfiniteSampler')),
            *(training.check_loaders, 'an evaluation does not', None),
        ),
        (
            *(SEGMENTATION, dict(train_dataloader__num_workers=0)),
            *(training.check_loaders, 'train_dataloader.persistent_workers=True needs', None),
        ),
        (
            *(SEGMENTATION, dict(train_dataloader__samples_per_gpu=2)),
            *(training.check_loaders, 'has the unknown options samples_per_gpu', None),
        ),
        (
            *(SEGMENTATION, dict(train_dataloader__shuffle=True)),
            *(training.check_loaders, 'shuffle is for a loader without sampler', None),
        ),
        (
            *(DETECTION, dict(train_dataloader__drop_last=True)),
            *(training.check_loaders, 'drop_last is for a loader without batch_sampler', None),
        ),
        (
            *(DETECTION, dict(val_dataloader__batch_size=7, val_dataloader__drop_last=True)),
            *(training.check_loaders, 'leaves no batch of 7 of the 6 images', None),
        ),
        (DETECTION, dict(param_scheduler__0__end=20), training.check_schedule, None, None),
        (SEGMENTATION, {}, training.check_schedule, None, None),
        (
            *(DETECTION, dict(train_cfg__max_epochs=12, param_scheduler__0__end=20)),
            *(training.check_schedule, None, 'ends at epoch 6 (CosineAnnealingLR)'),
        ),
        (
            *(SEGMENTATION, dict(train_cfg__max_iters=600)),
            *(training.check_schedule, None, 'goes on to iteration 7200 (PolyLR)'),
        ),
        (
            *(DETECTION, dict(param_scheduler__0__end=5000)),
            *(training.check_schedule, None, 'LinearLR warms up until 5000'),
        ),
        (
            *(DETECTION, dict(param_scheduler=[dict(type='MultiStepLR', milestones=[3, 8])])),
            *(training.check_schedule, None, None),
        ),
        (
            *(DETECTION, dict(param_scheduler=[dict(type='MultiStepLR', milestones=[8, 11])])),
            *(training.check_schedule, None, 'milestones=[8, 11], all of them after the end'),
        ),
        (
            *(SEGMENTATION, dict(param_scheduler__1__by_epoch=True)),
            *(training.check_schedule, None, 'never steps'),
        ),
        (SEGMENTATION, {}, training.check_saving, None, None),
        (SEGMENTATION, dict(train_cfg__max_iters=2400.0), training.check_numbers, None, None),
        (
            *(DETECTION, dict(train_dataloader__batch_size=0)),
            *(training.check_numbers, 'train_dataloader.batch_size=0: give a whole', None),
        ),
        (
            *(DETECTION, dict(train_cfg__max_epochs='many')),
            *(training.check_numbers, "train_cfg.max_epochs='many': give a whole", None),
        ),
        (
            *(SEGMENTATION, dict(train_cfg__val_interval=0)),
            *(training.check_numbers, 'train_cfg.val_interval=0: give a whole', None),
        ),
        (DETECTION, {}, training.check_parts, None, None),
        (
            *(DETECTION, dict(val_evaluator=None)),
            *(training.check_parts, 'no val_evaluator, but val_dataloader and val_cfg', None),
        ),
        (
            *(SEGMENTATION, dict(optim_wrapper__optimizer=None)),
            *(training.check_parts, 'optim_wrapper has no optimizer', None),
        ),
        (DETECTION, {}, training.check_decay, None, None),
        (
            DETECTION,
            dict(
                optim_wrapper__optimizer__weight_decay=None,
                optim_wrapper__paramwise_cfg=dict(norm_decay_mult=0.0),
            ),
            *(training.check_decay, 'paramwise_cfg.norm_decay_mult scales the weight decay', None),
        ),
        (
            SEGMENTATION,
            dict(
                optim_wrapper__optimizer__weight_decay=None,
                optim_wrapper__paramwise_cfg=dict(
                    _delete_=True, custom_keys=dict(gamma=dict(decay_mult=0.0))
                ),
            ),
            *(training.check_decay, "custom_keys['gamma'] scales the weight decay", None),
        ),
        (
            SEGMENTATION,
            dict(
                optim_wrapper__optimizer__weight_decay=None,
                optim_wrapper__paramwise_cfg=dict(
                    _delete_=True, custom_keys=dict(gamma=dict(lr_mult=0.1))
                ),
            ),
            *(training.check_decay, None, None),
        ),
        (DETECTION, {}, training.check_kinds, None, None),
        (
            *(DETECTION, dict(custom_hooks=[dict(type='EMAHok')])),
            *(training.check_kinds, 'type=EMAHok is no hook: did you mean EMAHook', None),
        ),
        (
            *(DETECTION, dict(custom_hooks=[dict(type='EmptyCacheHook', priority=9)])),
            *(training.check_kinds, None, None),
        ),
        (
            *(SEGMENTATION, dict(val_evaluator__type='IouMetric')),
            *(training.check_kinds, 'val_evaluator.type=IouMetric is no metric', None),
        ),
        (
            *(DETECTION, dict(train_dataloader__collate_fn=dict(type='default_collate'))),
            *(training.check_kinds, None, None),
        ),
        (
            *(DETECTION, dict(val_evaluator__classwize=True)),
            *(training.check_kinds, 'CocoMetric has no option classwize; did you mean', None),
        ),
        (
            *(SEGMENTATION, dict(optim_wrapper__constructor='LayerDecay')),
            *(training.check_kinds, 'constructor.type=LayerDecay is no optim', None),
        ),
        (
            *(SEGMENTATION, dict(optim_wrapper__optimizer__type='AdamX')),
            *(training.check_kinds, 'type=AdamX is no optimizer: did you mean Adam', None),
        ),
        (
            *(DETECTION, dict(default_hooks__checkpoint__save_best='coco/segm_mAP')),
            *(training.check_best, None, None),
        ),
        (
            *(DETECTION, dict(default_hooks__checkpoint__save_best='coco/bbox_map')),
            *(training.check_best, 'save_best=coco/bbox_map is no metric', None),
        ),
        (
            *(SEGMENTATION, dict(default_hooks__checkpoint__save_best='miou')),
            *(training.check_best, 'save_best=miou is no metric of val_evaluator', None),
        ),
        (DETECTION, {}, training.check_metrics, None, None),
        (
            *(SEGMENTATION, dict(val_evaluator__iou_metrics='mDice')),
            *(training.check_metrics, None, None),
        ),
        (
            *(DETECTION, dict(val_evaluator__metric=['bbox', 'segmm'])),
            *(training.check_metrics, 'val_evaluator.metric has segmm: choose of bbox, segm', None),
        ),
        (
            *(SEGMENTATION, dict(val_evaluator__iou_metrics=['mIou'])),
            *(training.check_metrics, 'iou_metrics has mIou: choose of mIoU, mDice', None),
        ),
        (
            *(SEGMENTATION, dict(default_hooks__checkpoint__by_epoch=True)),
            *(training.check_saving, None, 'nothing is saved before the end'),
        ),
        (
            *(DETECTION, dict(default_hooks__checkpoint=dict(interval=100, save_last=False))),
            *(training.check_saving, None, 'saves nothing (interval=100, save_last=False)'),
        ),
        (
            *(DETECTION, dict(default_hooks__checkpoint=dict(interval=6, save_last=False))),
            *(training.check_saving, None, None),
        ),
        (
            *(DETECTION, dict(param_scheduler__1__T_maxx=5)),
            *(training.check_kinds, 'has no option T_maxx; did you mean T_max?', None),
        ),
        (DETECTION, dict(param_scheduler__1__eta_min=1e-5), training.check_kinds, None, None),
    ],
)
def test_loops_samplers_workers_and_schedules(name, options, check, mistake, doubtful, sample):
    expect(said(check, run_of(load(name, **options), 'train', 'val')), mistake, doubtful)


def test_a_schedule_in_epochs_needs_no_data_beside_a_warm_up_in_iterations(sample):
    run = run_of(load(DETECTION, train_cfg__max_epochs=12), 'train')
    run.splits[0].dataset = None
    expect(said(training.check_schedule, run), None, 'ends at epoch 6 (CosineAnnealingLR)')


def test_the_files_that_a_training_starts_from(sample, tmp_path):
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
    cfg = load(DETECTION, load_from=str(tmp_path / 'detector.pth'))
    cfg.model.backbone.init_cfg = start
    run = run_of(cfg, 'train', model=True)
    mistakes, _ = said(network.check_start, run)
    assert len(mistakes) == 2 and 'detector.pth does not exist' in mistakes[0]
    assert 'backbone.pth does not exist' in mistakes[1] and 'init_cfg=None' in mistakes[1]
    run.resumes = True  # from another file
    one(said(network.check_start, run)[0], 'backbone.pth')
    for file in ('backbone.pth', 'detector.pth'):
        torch.save({}, tmp_path / file)
    run.resumes = False
    assert said(network.check_start, run) == ([], [])
    run.cfg.load_from = DETECTION  # the name of a released model
    assert said(network.check_start, run) == ([], [])


@pytest.mark.parametrize(
    ('name', 'option', 'places'),
    [
        (DETECTION, 'max_epochs', ['train_cfg.max_epochs', 'param_scheduler.1.end']),
        (DETECTION, 'data_root', ['train_dataloader.dataset.data_root', 'val_evaluator.ann_file']),
        (SEGMENTATION, 'train_pipeline', ['train_dataloader.dataset.pipeline']),
        (SEGMENTATION, 'train_cfg.max_iters', None),
        (DETECTION, 'load_from', None),
        (DETECTION, 'auto_scale_lr.enable', None),
    ],
)
def test_helper_variables_on_the_command_line(name, option, places):
    run = Run(load(name), options={option: 'x'}, original=load(name))
    mistakes, _ = said(training.check_variables, run)
    one(mistakes, f'--cfg-options {option} changes nothing', *places) if places else None
    assert len(mistakes) == bool(places)


def test_dicts_on_the_command_line(monkeypatch):
    def parsed(value: str) -> object:
        monkeypatch.setattr(sys, 'argv', ['train.py', 'c.py', '--cfg-options', f'a.b={value}'])
        return parse(config_parser('')).cfg_options['a.b']

    weights = dict(type='Pretrained', checkpoint='a b/x.pth')
    assert parsed("dict(type='Pretrained',checkpoint='a b/x.pth')") == weights
    assert parsed("[dict(type='Pretrained', checkpoint='a b/x.pth'), {'n': (1, -2.5)}]") == [
        weights,
        dict(n=(1, -2.5)),
    ]
    assert parsed('[1,2]') == [1, 2] and parsed('None') is None
    for bad in ('dict(type=Pretrained)', 'dict(a=open(1))', "dict(a='"):
        with pytest.raises(UsageError, match='no Python value'):
            parsed(bad)


def test_dicts_in_the_place_of_none(monkeypatch):
    def merged(*options: str) -> Config:
        monkeypatch.setattr(sys, 'argv', ['train.py', DETECTION, '--cfg-options', *options])
        return load_config(parse(config_parser('')))

    weights = dict(type='Pretrained', checkpoint='x.pth')
    for options in (
        ["model.backbone.init_cfg=dict(type='Pretrained', checkpoint='x.pth')"],
        ["model.backbone.init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='x.pth')"],
        ["model.backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth'))"],
        ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=x.pth'],
    ):
        assert merged(*options).model.backbone.init_cfg == weights
    neck = merged("model.neck.init_cfg=dict(_delete_=True, type='Xavier', layer='Conv2d')")
    assert neck.model.neck.init_cfg == dict(type='Xavier', layer='Conv2d')
    keys = merged("optim_wrapper.paramwise_cfg.custom_keys={'a.b': dict(lr_mult=0.5)}")
    assert keys.optim_wrapper.paramwise_cfg.custom_keys == {'a.b': dict(lr_mult=0.5)}
    step = "train_dataloader.dataset.pipeline.0.backend_args=dict(backend='local')"
    assert merged(step).train_dataloader.dataset.pipeline[0].backend_args == dict(backend='local')


def test_what_mmengine_cannot_build_is_named_with_its_options():
    optimizer = dict(type='SGD', lr=-1, momentum=0.9)
    with pytest.raises(ValueError) as error:
        OPTIMIZERS.build(dict(optimizer, params=[torch.zeros(1, requires_grad=True)]))
    message = usage_message(error.value)
    assert message.startswith('SGD cannot be built with ') and 'lr=-1, momentum=0.9' in message
    assert 'ValueError: Invalid learning rate: -1 (sgd.py, line' in message


def test_a_depth_map_is_a_truth_too():
    model = torch.nn.Module()
    model.data_preprocessor, model.decode_head = SegDataPreProcessor(), torch.nn.Identity()
    for name, missing in (('gt_depth_map', False), ('other', True)):
        truth = SegDataSample()
        truth.set_field(PixelData(data=torch.zeros(1, 2, 3)), name)
        sample = dict(inputs=torch.zeros(3, 2, 3), data_samples=truth)
        problem = pictures.what_is_missing(Split('train', ConfigDict()), sample, model)
        assert bool(problem) == missing


def test_heads_may_ignore_another_number(sample):
    for file in (sample / 'semantic/train').iterdir():
        labels = np.asarray(Image.open(file))
        Image.fromarray(np.where(labels, labels - 1, 250).astype(np.uint8)).save(file)
    cfg = load(SEGMENTATION, train_dataloader__dataset__reduce_zero_label=False)
    mistakes, _ = said(pictures.check_label_maps, run_of(cfg, 'train', model=True))
    one(mistakes, 'holds 250')
    cfg.model.decode_head.ignore_index = cfg.model.auxiliary_head.ignore_index = 250
    run = run_of(cfg, 'train', model=True)
    assert said(pictures.check_label_maps, run) == ([], [])


@pytest.mark.parametrize(
    ('name', 'change', 'problem'),
    [
        (
            *(SEGMENTATION, lambda cfg: cfg.model.data_preprocessor.update(size=None)),
            'train data do not pass model.data_preprocessor, SegDataPreProcessor: AssertionError',
        ),
        (
            *(SEGMENTATION, lambda cfg: cfg.model.backbone.update(in_channels=4)),
            'data have 3 channels, and model.backbone.in_channels is 4',
        ),
        (
            DETECTION,
            lambda cfg: cfg.train_dataloader.dataset.pipeline[0].update(color_type='grayscale'),
            'train data do not pass model.data_preprocessor, DetDataPreprocessor: IndexError',
        ),
        (
            DETECTION,
            lambda cfg: cfg.val_dataloader.dataset.pipeline[-1].update(meta_keys=['img_shape']),
            'the val pipeline gives no ori_shape: add it to meta_keys',
        ),
    ],
)
def test_images_and_their_meta_data_suit_the_model(name, change, problem, sample):
    cfg = load(name)
    change(cfg)
    splits = ('val',) if 'val' in problem else ('train',)
    mistakes, _ = said(pictures.check_pipelines, run_of(cfg, *splits, model=True))
    one(mistakes, problem)


def test_files_that_are_no_png_in_spite_of_their_name(sample):
    for file, kind in ('images/train/000003.png', 'BMP'), ('semantic/train/000003.png', 'GIF'):
        Image.open(sample / file).convert('L').save(sample / file, kind)
        assert pictures.damage(str(sample / file)) is None


SLIDING = dict(mode='slide', crop_size=(96, 64), stride=(64, 48))


@pytest.mark.parametrize(
    ('name', 'options', 'check', 'mistake', 'doubtful'),
    [
        (DETECTION, {}, network.check_strides, None, None),
        (
            *(DETECTION, dict(model__rpn_head__anchor_generator__strides=[8, 16, 32, 64, 128])),
            *(network.check_strides, None, 'rpn_head=[8, 16, 32, 64, 128], but the maps have str'),
        ),
        (
            *(DETECTION, dict(model__roi_head__mask_roi_extractor__featmap_strides=[4, 8, 16, 16])),
            *(network.check_strides, None, 'mask_roi_extractor.featmap_strides=[4, 8, 16, 16]'),
        ),
        (SEGMENTATION, {}, network.check_window, None, None),
        (SEGMENTATION, dict(model__test_cfg=SLIDING), network.check_window, None, None),
        (
            *(SEGMENTATION, dict(model__test_cfg__mode='slide')),
            *(network.check_window, 'crop_size is None: give height and width', None),
        ),
        (
            *(SEGMENTATION, dict(model__test_cfg=dict(SLIDING, stride=(64, 65)))),
            *(network.check_window, 'stride=(64, 65) leaves out pixels', None),
        ),
    ],
)
def test_strides_and_windows_suit_the_maps(name, options, check, mistake, doubtful):
    run = Run(load(name, **options))
    run.model, _ = network.build_model(run.cfg)
    expect(said(check, run), mistake, doubtful)


def test_what_only_training_gives_is_not_missed(sample):
    """Batch augmentations ask for the iteration, branches of other data sets are empty."""
    cfg = load(DETECTION)
    resize = dict(type='BatchSyncRandomResize', random_size_range=(64, 96))
    cfg.model.data_preprocessor.batch_augments = [resize]
    run = run_of(cfg, 'train', model=True)
    assert said(pictures.check_pipelines, run) == ([], [])
    run.splits[0].dataset = [dict(inputs=dict(sup=torch.zeros(3, 2, 2)), data_samples={})] * 2
    assert said(pictures.check_pipelines, run) == ([], [])


def test_a_test_does_not_ask_for_what_trains(sample):
    cfg = load(SEGMENTATION, optim_wrapper__optimizer__type='Absent')
    cfg.val_evaluator = dict(type='Absent')
    assert said(training.check_kinds, run_of(cfg, 'test')) == ([], [])


def test_a_few_images_need_not_show_every_class(sample):
    split = run_of(load(SEGMENTATION), 'val').splits[0]
    counts = np.zeros(256, np.int64)
    counts[[0, 6, 255]] = 7
    for name, certain in (('val', False), ('train', True)):
        split.name = name
        (found,) = pictures.judge(split, split.leaves[0], counts, None, 8, all_read=True)
        assert 'no pixel of the last class' in found.text and found.is_doubt != certain


# ----------------------------------------------------------------------------------------- network
@functools.cache
def segmentor() -> torch.nn.Module:
    return network.build_model(load(SEGMENTATION))[0]


@pytest.mark.parametrize(
    ('batch', 'images', 'drop_last', 'by_epoch', 'refused'),
    [
        (1, 6, False, False, 'train_dataloader.batch_size=1 is one image'),
        (2, 5, False, True, 'the last batch of an epoch (5 images'),
        (2, 5, True, True, None),
        (2, 5, False, False, None),
        (2, 6, False, True, None),
    ],
)
def test_batch_norm_over_one_pixel(batch, images, drop_last, by_epoch, refused, sample):
    cfg = load(SEGMENTATION)
    cfg.train_dataloader.update(batch_size=batch, drop_last=drop_last)
    cfg.train_dataloader.dataset.indices = images
    if by_epoch:
        cfg.train_cfg = dict(max_epochs=1)
    run = run_of(cfg, 'train')
    run.model, run.input_shape = segmentor(), (3, 96, 96)
    mistakes, _ = said(network.check_batch_norm, run)
    one(mistakes, refused, 'psp_modules.0.1.bn') if refused else None
    assert len(mistakes) == bool(refused)


def test_layers_that_wait_for_the_other_processes(monkeypatch):
    cfg = load(SEGMENTATION)
    cfg.model.auxiliary_head.norm_cfg = dict(type='MMSyncBN')
    _, findings = network.build_model(cfg)
    one([finding.text for finding in findings], 'process group has not been initialized')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert network.build_model(cfg) == (None, [])


def test_memory_that_autograd_keeps():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Sigmoid(), torch.nn.Linear(5, 7))
    model = torch.nn.Module()
    model.layers, model.extract_feat = layers, layers.forward
    # The input of the first layer, and the output of the sigmoid, once, though two layers keep it.
    assert network.kept_bytes(model, (2, 3)) == 4 * 2 * (3 + 5)


# ----------------------------------------------------------------------------- folders and guards
def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    assert not list(folders.check_folder('--work-dir', tmp_path / 'new' / 'folder'))
    assert not list(tmp_path.glob('.writable*')) and not (tmp_path / 'new').exists()
    (found,) = folders.check_folder('--work-dir', tmp_path / 'file' / 'below')
    assert f'{tmp_path / "file"} is a file' in found.text
    (found,) = folders.check_file('--out', tmp_path)
    assert 'is a folder' in found.text

    def read_only(**kwargs):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', read_only)
    (found,) = folders.check_file('--out', tmp_path / 'out.pkl')
    assert f'--out {tmp_path} cannot be written to: Read-only file system' in found.text


def test_files_and_folders_that_the_config_names(sample, tmp_path):
    (tmp_path / 'file').write_text('')
    cfg = load(DETECTION)
    cfg.default_hooks.checkpoint.out_dir = str(tmp_path / 'file')
    cfg.val_evaluator.outfile_prefix = str(tmp_path / 'file' / 'boxes')
    run = run_of(cfg, 'train', 'val')
    mistakes, _ = said(folders.check_outputs, run)
    assert [text.split()[0] for text in mistakes] == [
        'default_hooks.checkpoint.out_dir',
        'val_evaluator.outfile_prefix',
    ]
    cfg.default_hooks.checkpoint.out_dir = 's3://bucket/checkpoints'
    cfg.val_evaluator.outfile_prefix = str(tmp_path / 'boxes')
    assert said(folders.check_outputs, run) == ([], [])


def test_a_work_folder_with_checkpoints_of_another_run(tmp_path):
    assert not list(folders.check_unused(tmp_path / 'new'))
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    (found,) = folders.check_unused(tmp_path)
    assert found.is_doubt and 'add --resume' in found.text


def test_a_full_disk(tmp_path, monkeypatch):
    run = Run(load(DETECTION), model=torch.nn.Linear(1000, 1000))
    assert not list(folders.check_room(run, tmp_path / 'new'))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**6))
    (found,) = folders.check_room(run, tmp_path / 'new')
    assert 'GiB left' in found.text and not found.is_doubt

    def disk_full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', disk_full)
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / 'epoch_1.pth', b'x')
    assert usage_message(caught.value) == f'{tmp_path}/epoch_1.pth: No space left on device'
    assert not list(tmp_path.iterdir())


def test_a_work_folder_is_of_one_training(tmp_path):
    held = multiprocessing.get_context('fork').Event()
    other = multiprocessing.get_context('fork').Process(target=hold_and_wait, args=(tmp_path, held))
    other.start()
    held.wait()
    with pytest.raises(UsageError, match=f'running in {tmp_path} .process {other.pid} on'):
        folders.hold(tmp_path)
    other.kill()
    other.join()
    folders.hold(tmp_path)


def hold_and_wait(folder: Path, held: multiprocessing.Event) -> None:
    folders.hold(folder)
    held.set()
    time.sleep(1000)


def runner_of(model: torch.nn.Module, loss: float, **more: object) -> SimpleNamespace:
    hub = MessageHub(f'guards {id(model)}')
    hub.update_scalar('train/loss', loss)
    hooks = [CheckpointHook(interval=2, by_epoch=False)]
    return SimpleNamespace(model=model, message_hub=hub, hooks=hooks, iter=1, **more)


def test_a_loss_that_is_not_finite_ends_the_training():
    model, hook = torch.nn.Linear(2, 3), FiniteHook(patience=2)
    for loss in (math.nan, math.inf):
        with pytest.raises(UsageError, match=f'the loss is {loss} in iteration 2'):
            FiniteHook().after_train_iter(runner_of(model, loss, optim_wrapper=None), 0)
    scaled = SimpleNamespace(loss_scaler=None)
    for loss in (math.inf, math.inf, 1.0, math.inf, math.inf):  # steps that a scaler leaves out
        hook.after_train_iter(runner_of(model, loss, optim_wrapper=scaled), 0)
    with pytest.raises(UsageError, match='the loss is inf'):
        hook.after_train_iter(runner_of(model, math.inf, optim_wrapper=scaled), 0)


def test_weights_that_are_not_finite_are_never_saved():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    runner = runner_of(model, 1.0, optim_wrapper=None)
    FiniteHook().after_train_iter(runner, 1)
    FiniteHook().before_save_checkpoint(runner, {})
    model[1].running_var[1] = math.inf
    for call in (
        lambda hook: hook.after_train_iter(runner, 1),  # before a checkpoint every 2 iterations
        lambda hook: hook.after_train_epoch(runner),
        lambda hook: hook.before_save_checkpoint(runner, {}),
    ):
        with pytest.raises(UsageError, match=r'weights of 1\.running_var are not finite'):
            call(FiniteHook())


def test_the_schedule_of_a_checkpoint_that_is_resumed():
    def schedule(end: int) -> LinearLR:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return LinearLR(optimizer, by_epoch=True, begin=0, end=end)

    told = []
    runner = SimpleNamespace(
        cfg=dict(resume=True),
        param_schedulers=[schedule(12)],
        logger=SimpleNamespace(warning=told.append),
    )
    hook = ScheduleHook()
    hook.after_load_checkpoint(runner, dict(param_schedulers=[schedule(12).state_dict()]))
    assert not told
    hook.after_load_checkpoint(runner, dict(param_schedulers=[schedule(6).state_dict()]))
    (message,) = told
    assert 'end 6 and not 12' in message and 'load_from' in message


# ------------------------------------------------------------------------------------ all together
def arguments(name: str, **options: object) -> argparse.Namespace:
    file = str(CONFIGS / f'{name}.py')
    return argparse.Namespace(config=file, cfg_options=options, resume=None)


@pytest.mark.parametrize('name', [DETECTION, SEGMENTATION])
def test_the_shipped_configs_pass(name, sample):
    cfg = load(name, param_scheduler__0__end=20)  # a warm-up for so few images
    run, findings = examine(cfg, arguments(name), 'train', 'val', 'test')
    assert not findings
    assert run.input_shape == (3, 96, 96)
    assert all(split.dataset is not None for split in run.splits)


def test_a_config_without_data_to_train_on(sample, tmp_path):
    cfg = load(SEGMENTATION, work_dir=str(tmp_path))
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = None
    with pytest.raises(UsageError, match='has no train_dataloader, train_cfg and optim_wrapper'):
        look(cfg, arguments(SEGMENTATION), 'train')


def test_everything_is_said_at_once(sample, tmp_path):
    cfg = load(SEGMENTATION, train_dataloader__num_workers=0, model__decode_head__num_classes=9)
    cfg.val_dataloader.dataset.data_prefix.img_path = 'images/nothing'
    cfg.work_dir = str(tmp_path / 'work')
    (sample / 'semantic/train/000001.png').write_bytes(b'')
    with pytest.raises(UsageErrors) as caught:
        look(cfg, arguments(SEGMENTATION), 'train', 'val')
    parts = ['images/nothing is missing', 'persistent_workers', 'num_classes is 9', '000001.png']
    assert len(caught.value.messages) == len(parts)
    assert all(any(part in text for text in caught.value.messages) for part in parts)


def test_the_tool_prints_tables_and_all_mistakes(sample, monkeypatch, capsys):
    def check(*options: str) -> None:
        monkeypatch.setattr(sys, 'argv', ['check.py', DETECTION, *options])
        runpy.run_path(str(ROOT / 'tools' / 'check.py'), run_name='__main__')

    monkeypatch.setenv('COLUMNS', '160')
    check()
    printed = capsys.readouterr().out
    for part in ('CocoDataset', '24', 'triangle', '96 x 96', 'CosineAnnealingLR', 'activations'):
        assert part in printed
    with pytest.raises(SystemExit) as stopped:
        check(
            *('--cfg-options', 'max_epochs=1', 'model.roi_head.bbox_head.num_classes=3'),
            *('train_cfg.max_epochs=many', 'val_dataloader.dataset.ann_file=[a]'),
        )
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert 'training_table was left out' in printed.out
    errors = [x for x in printed.err.splitlines() if x.startswith('error: ')]
    parts = ['CocoDataset cannot be built', 'max_epochs changes', "max_epochs='many'", 'bbox_head']
    assert len(errors) == 4 and all(x in y for x, y in zip(parts, errors, strict=True))
