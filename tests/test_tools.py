"""The command-line tools, run as their users run them."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image
from processes import run_tool
from steps import CONFIGS, ROOT

from mmconvneur.engine.checkpoints import AtomicBackend, latest_checkpoint
from mmconvneur.engine.outputs import enlarge
from mmconvneur.evaluation.tta import unflip
from mmconvneur.utils.configs import find_config
from mmconvneur.weights import read_checkpoint

TOOLS = ROOT / 'tools'
ONE_THREAD = dict(os.environ, OMP_NUM_THREADS='1')  # sums in one order
DETECTION, SEGMENTATION = 'mask_rcnn_convneur_m1_sample', 'upernet_convneur_m1_sample'
# A run that is the same every time: no dropout, no random flips.
REPEATABLE = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmconvneur.ConvNeur',
        arch=dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
    ),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=8, dropout_ratio=0.0),
    auxiliary_head=dict(in_channels=24, channels=8, dropout_ratio=0.0),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
randomness = dict(seed=7)
"""


def command(tool: str, *args: object) -> list[str]:
    return [str(TOOLS / f'{tool}.py'), *map(str, args)]


def run(cwd: Path, tool: str, *args: object) -> str:
    """What a tool prints; it has to succeed."""
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder, 'printed'), Path(folder, 'errors')
        status = run_tool(cwd, command(tool, *args), printed, errors, {})
        assert status == 0, errors.read_text()[-3000:]
        return printed.read_text()


def scalars(work_dir: Path, key: str) -> list[dict]:
    """The logged lines that hold a value, of all runs in a work folder, in order."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if key in line]


# ------------------------------------------------------------------------------ train, test, browse
@pytest.mark.slow
def test_detection_from_training_to_pictures(sample_dir, tmp_path):
    printed = run(
        *(sample_dir, 'train', DETECTION, '--work-dir', tmp_path, '--tensorboard', '--cfg-options'),
        *('train_cfg.max_epochs=1', 'model.test_cfg.rcnn.score_thr=0.0'),
    )
    (log,) = tmp_path.glob('*/*.log')
    for noise in ('paramwise_options', 'will be deprecated'):
        assert noise in log.read_text() and noise not in printed
    assert list(tmp_path.glob('*/vis_data/events.out.tfevents.*'))
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint.name == 'epoch_1.pth'
    (trained,) = scalars(tmp_path, 'coco/bbox_mAP')

    out, shown, tested, augmented = (tmp_path / name for name in ('out.pkl', 'shown', 't', 'tta'))
    common = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0')
    run(
        *(sample_dir, 'test', DETECTION, checkpoint, '--work-dir', tested, '--out', out),
        *('--show-dir', shown, *common),
    )
    (line,) = (json.loads(file.read_text()) for file in tested.glob('*/*.json'))
    assert {key: line[key] for key in trained if key.startswith('coco/')} == {
        key: trained[key] for key in trained if key.startswith('coco/')
    }
    with out.open('rb') as file:
        results = pickle.load(file)
    assert [Path(result['img_path']).name for result in results] == [
        f'{i:06}.png' for i in range(6)
    ]
    assert {mask['size'] == [96, 96] for r in results for mask in r['pred_instances']['masks']} == {
        True
    }
    assert sorted(path.name for path in shown.iterdir()) == [f'{i:06}.png' for i in range(6)]

    run(sample_dir, 'test', DETECTION, checkpoint, '--work-dir', augmented, '--tta', *common)
    (line,) = (json.loads(file.read_text()) for file in augmented.glob('*/*.json'))
    assert 0 <= line['coco/segm_mAP'] <= 1


@pytest.mark.slow
def test_segmentation_from_training_to_pictures(sample_dir, tmp_path):
    run(
        *(sample_dir, 'train', SEGMENTATION, '--work-dir', tmp_path, '--cfg-options'),
        *('train_cfg.max_iters=6', 'train_cfg.val_interval=6', 'param_scheduler=None'),
    )
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint.name == 'iter_6.pth'
    (trained,) = scalars(tmp_path, 'mIoU')

    out, shown, tested, augmented = (tmp_path / name for name in ('out', 'shown', 't', 'tta'))
    run(
        *(sample_dir, 'test', SEGMENTATION, checkpoint, '--work-dir', tested, '--out', out),
        *('--show-dir', shown),
    )
    (line,) = (json.loads(file.read_text()) for file in tested.glob('*/*.json'))
    assert {key: line[key] for key in ('aAcc', 'mIoU', 'mAcc')} == {
        key: trained[key] for key in ('aAcc', 'mIoU', 'mAcc')
    }
    # The label maps alone give the same accuracy: 0 is ignored, classes count from 1.
    hits = total = 0
    for i in range(6):
        predicted = np.asarray(Image.open(out / f'{i:06}.png'))
        truth = np.asarray(Image.open(sample_dir / f'data/sample/semantic/val/{i:06}.png'))
        hits += ((predicted == truth) & (truth > 0)).sum()
        total += (truth > 0).sum()
    assert line['aAcc'] == pytest.approx(100 * hits / total, abs=0.01)
    pictures = sorted(shown.glob('*.png'))
    assert len(pictures) == 6
    # Ground truth beside prediction, five times as large.
    assert Image.open(pictures[0]).size == (960, 480)

    run(sample_dir, 'test', SEGMENTATION, checkpoint, '--work-dir', augmented, '--tta')
    (line,) = (json.loads(file.read_text()) for file in augmented.glob('*/*.json'))
    assert line['mIoU'] == pytest.approx(trained['mIoU'], abs=15)


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION])
def test_browse_draws_the_training_images(config, sample_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(sample_dir)
    argv = ['browse_dataset.py', config, '--out-dir', str(tmp_path), '-n', '3']
    argv += ['--cfg-options', 'train_dataloader.dataset.pipeline.2.prob=0.0']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(TOOLS / 'browse_dataset.py'), run_name='__main__')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f'{i:04}_{i:06}.png' for i in range(3)
    ]
    drawn = np.asarray(Image.open(tmp_path / '0000_000000.png').convert('RGB')).astype(int)
    image = np.asarray(
        Image.open(sample_dir / 'data/sample/images/train/000000.png').convert('RGB')
    )
    image, _ = enlarge(image, BaseDataElement())
    changed = (np.abs(drawn - image) > 2).any(-1).mean()
    assert 0 < changed
    if config == DETECTION:
        assert changed < 0.9  # the background stays as it is: colours are not swapped


# --------------------------------------------------------------------------------- bad input
def test_predictions_are_kept_of_an_evaluator_of_several_data_sets(tmp_path):
    """mmdet's evaluates as many metrics as there are data sets, and ours stands after them."""
    evaluator = SimpleNamespace(metrics=[], dataset_prefixes=['a'])
    samples = [DetDataSample(img_id=i, pred_instances=InstanceData()).to_dict() for i in range(3)]
    runner = SimpleNamespace(
        rank=0,
        test_evaluator=evaluator,
        test_dataloader=SimpleNamespace(dataset=samples),
        test=lambda: evaluator.metrics[0].process({}, samples),
    )
    keep = runpy.run_path(str(TOOLS / 'test.py'))['test_and_dump']
    keep(runner, tmp_path / 'out.pkl', 'mmdet')
    kept = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert [sample['img_id'] for sample in kept] == [0, 1, 2]


def failing(monkeypatch, capsys, tool: str, *args: object) -> str:
    """The messages of a tool that stops with exit status 1, one line each."""
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
    assert stopped.value.code == 1
    printed = capsys.readouterr().err.strip()
    assert 'Traceback' not in printed
    lines = printed.splitlines()
    assert lines[-1].startswith('error: ')
    return '\n'.join(line for line in lines if line.startswith('error: '))


@pytest.mark.parametrize(
    ('tool', 'args', 'parts'),
    [
        ('train', ['configs/nothing.py'], ['configs/nothing.py does not exist', SEGMENTATION]),
        ('train', [DETECTION, '--cfg-options', 'oops'], ['--cfg-options', 'key=value']),
        ('train', [DETECTION, '--resume', 'no.pth'], ['no.pth does not exist']),
        ('train', [DETECTION, '--cfg-options', 'load_from=no.pth'], ['no.pth does not exist']),
        ('test', [DETECTION, 'no.pth'], ['no.pth does not exist']),
        ('test', [DETECTION, CONFIGS, '--out', 'x.json'], [f'{CONFIGS} is a folder']),
        ('train', ['mask_rcnn_convneur_t_coco'], ['data/coco/', 'make_sample_data.py']),
        ('train', ['upernet_convneur_t_ade20k'], ['data/ade/', 'make_sample_data.py']),
        (
            'train',
            [DETECTION, '--cfg-options', 'model.roi_head.type=mmseg.UPerHead'],
            ['model.roi_head is mmseg.UPerHead', 'segmentation', 'detection'],
        ),
        (
            'train',
            [DETECTION, '--cfg-options', 'model.type=EncoderDecoder'],
            ['model is EncoderDecoder', 'segmentation', 'detection'],
        ),
        (
            'train',
            [SEGMENTATION, '--cfg-options', 'default_scope=mmdet'],
            ['model is EncoderDecoder', "default_scope='mmdet'"],
        ),
        (
            'test',
            [SEGMENTATION, 'x.pth', '--cfg-options', 'test_evaluator.type=CocoMetric'],
            ['test_evaluator is CocoMetric', 'detection', 'segmentation'],
        ),
        (
            'browse_dataset',
            [
                *(DETECTION, '--out-dir', 'x', '--cfg-options'),
                'train_dataloader.dataset.type=ADE20KDataset',
            ],
            ['train_dataset is ADE20KDataset', 'segmentation'],
        ),
        ('train', [DETECTION, '--cfg-options', 'default_scope=x'], ["'x'", "'mmdet' or 'mmseg'"]),
        (
            'train',
            [DETECTION, '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
            ['auto_scale_lr.base_batch_size'],
        ),
        ('train', [DETECTION, '--launcher', 'pytorch'], ['torchrun']),
        (
            'train',
            [DETECTION, '--cfg-options', 'modle.backbone.arch=t'],
            ['the config has no modle', 'did you mean model?'],
        ),
        (
            'train',
            [DETECTION, '--cfg-options', 'model.backbone.depth=3'],
            ["unexpected keyword argument 'depth'", 'check the spelling'],
        ),
        (
            'train',
            [DETECTION, '--cfg-options', 'model.backbone.arch=t'],
            ['model.neck.in_channels=[40, 80, 160, 320]', 'gives [96, 192, 384, 768]'],
        ),
        (
            'train',
            [
                'segformer_convneur_cue',
                '--cfg-options',
                'train_dataloader.dataset.data_root=no/cue',
            ],
            ['no/cue', 'python tools/make_sample_data.py --task cue'],
        ),
        (
            'train',
            [DETECTION, '--cfg-options', 'model.backbone.arch=m9'],
            ["unknown arch 'm9'", 'm1, m2, m3, m4, t, s, b'],
        ),
        (
            'train',
            [DETECTION, '--cfg-options', 'model.backbone.type=mmconvneur.ConvNuer'],
            ['mmconvneur.ConvNuer is not in the'],
        ),
    ],
)
def test_bad_input_is_one_line(tool, args, parts, sample_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(sample_dir)
    if tool == 'train':
        args = [args[0], '--work-dir', tmp_path, *args[1:]]
    message = failing(monkeypatch, capsys, tool, *args)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', None], ids=['empty', 'text', 'cut'])
def test_damaged_checkpoints_are_named(content, sample_dir, tmp_path, monkeypatch, capsys):
    good, bad = tmp_path / 'epoch_1.pth', tmp_path / 'epoch_2.pth'
    torch.save(dict(state_dict=dict(weight=torch.zeros(1000))), good)
    bad.write_bytes(good.read_bytes()[:-100] if content is None else content)
    monkeypatch.chdir(sample_dir)
    message = failing(monkeypatch, capsys, 'test', DETECTION, bad, '--work-dir', tmp_path / 'work')
    assert f'checkpoint {bad} is damaged or not a checkpoint' in message


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_a_flipped_view_comes_back_in_place(direction):
    """A box and its mask at rows 1-2 and columns 3-6 of a 5 x 11 image."""
    mask = torch.zeros(1, 5, 11, dtype=torch.bool)
    mask[:, 1:3, 3:7] = True
    left, top, right, bottom = 3.0, 1.0, 7.0, 3.0
    axes = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1))[direction]
    if -1 in axes:
        left, right = 11 - right, 11 - left
    if -2 in axes:
        top, bottom = 5 - bottom, 5 - top
    sample = DetDataSample(metainfo=dict(flip=True, flip_direction=direction, ori_shape=(5, 11)))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[left, top, right, bottom]]), masks=mask.flip(axes)
    )
    back = unflip(sample)
    assert back.bboxes.tolist() == [[3.0, 1.0, 7.0, 3.0]]
    assert (back.masks == mask).all()


def test_amp_without_a_gpu(sample_dir, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.chdir(sample_dir)
    assert 'needs a GPU' in failing(monkeypatch, capsys, 'train', DETECTION, '--amp')


def test_out_for_detection_is_a_pickle(sample_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(sample_dir)
    checkpoint = tmp_path / 'x.pth'
    torch.save({}, checkpoint)
    message = failing(monkeypatch, capsys, 'test', DETECTION, checkpoint, '--out', 'x.json')
    assert '.pkl' in message


def test_unknown_errors_keep_their_traceback(sample_dir, monkeypatch):
    monkeypatch.chdir(sample_dir)
    monkeypatch.setattr(sys, 'argv', ['train.py', DETECTION])

    def fail(self) -> None:
        raise ValueError('nobody foresaw this')

    monkeypatch.setattr(Runner, 'train', fail)
    with pytest.raises(ValueError, match='nobody foresaw this'):
        runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')


# ------------------------------------------------------------------------------------ interruptions
@pytest.mark.slow
def test_torchrun_trains_in_two_processes(sample_dir, tmp_path):
    config = tmp_path / 'repeatable.py'
    config.write_text(REPEATABLE.format(base=str(CONFIGS / f'{SEGMENTATION}.py')))
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    options = [
        'train_cfg.max_iters=4',
        'train_cfg.val_interval=4',
        'default_hooks.logger.interval=1',
    ]
    done = subprocess.run(
        [sys.executable, *launch, *command('train', config), '--work-dir', str(tmp_path)]
        + ['--launcher', 'pytorch', '--cfg-options', *options],
        cwd=sample_dir,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line['step'] for line in scalars(tmp_path, 'loss')] == [1, 2, 3, 4]
    (score,) = scalars(tmp_path, 'mIoU')
    assert 0 <= score['mIoU'] <= 100
    state = read_checkpoint(latest_checkpoint(tmp_path))
    assert state['meta']['iter'] == 4
    assert all(weight.isfinite().all() for weight in state['state_dict'].values())


def test_half_a_file_never_has_the_final_name(tmp_path, monkeypatch):
    path, backend = tmp_path / 'epoch_1.pth', AtomicBackend()
    whole = io.BytesIO()
    torch.save(dict(epoch=1), whole)
    backend.put(whole.getvalue(), path)

    def disk_full(descriptor):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', disk_full)
    with pytest.raises(OSError, match='disk full'):
        backend.put(b'other', path)
    assert path.read_bytes() == whole.getvalue()


def test_shipped_configs_are_found_by_name():
    assert find_config(DETECTION).samefile(CONFIGS / f'{DETECTION}.py')
    assert find_config(f'elsewhere/{DETECTION}.py').samefile(CONFIGS / f'{DETECTION}.py')
