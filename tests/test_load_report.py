"""What the tools say of a checkpoint, and what they refuse."""

from __future__ import annotations

import copy
import logging
import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from steps import SAMPLE_CONFIGS, build, two_iterations
from test_tools import DETECTION, SEGMENTATION, TOOLS, failing
from test_weights import Touch, counts, logged

from mmconvneur import UsageError
from mmconvneur.engine.hooks import LoadReportHook
from mmconvneur.weights.reading import load_safely, read_checkpoint


@pytest.fixture(scope='module')
def detector():
    return build(Config.fromfile(SAMPLE_CONFIGS['mmdet']))


class OneRunner:
    """As much of a Runner as a hook sees while it loads."""

    def __init__(self, model) -> None:
        self.model, self.logger = model, logging.getLogger('report')
        self.cfg = dict()


def report(model, state: dict, caplog) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, 'report'):
        LoadReportHook().after_load_checkpoint(OneRunner(model), dict(state_dict=state))
    (record,) = caplog.records
    return record.getMessage()


def test_neck_and_heads_are_counted_apart_from_the_backbone(detector, caplog):
    state = detector.state_dict()
    heads = [name for name in state if not name.startswith('backbone.')]
    line = report(detector, {f'module.{k}': v for k, v in state.items()}, caplog)
    assert line.startswith('MaskRCNN, neck and heads: ')
    assert counts(line) == [len(heads), 0, 0, 0, 0, 0]

    other_classes = copy.deepcopy(state)  # fine-tuning: another number of classes
    for name in ('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits'):
        for part in ('weight', 'bias'):
            key = f'roi_head.{name}.{part}'
            other_classes[key] = other_classes[key][:-1]
    line = report(detector, other_classes, caplog)
    assert counts(line) == [len(heads) - 6, 0, 0, 0, 6, 0]
    assert caplog.records[0].levelname == 'WARNING'


def test_in_testing_nothing_may_stay_at_random(detector):
    state = dict(detector.state_dict())
    key = 'roi_head.bbox_head.fc_cls.weight'
    for changed in ({**state, key: state[key][:-1]}, {k: v for k, v in state.items() if k != key}):
        for complete in (False, True):
            hook, runner = LoadReportHook(complete), OneRunner(detector)
            if complete:
                with pytest.raises(UsageError, match=key):
                    hook.after_load_checkpoint(runner, changed)
            else:
                hook.after_load_checkpoint(runner, changed)


def test_a_backbone_alone_starts_a_training_with_a_warning(detector, caplog):
    state = {k: v for k, v in detector.state_dict().items() if k.startswith('backbone.')}
    assert counts(report(detector, state, caplog))[0] == 0
    assert caplog.records[0].levelname == 'WARNING'
    with pytest.raises(UsageError, match=r'not belong to the model of the config.*init_cfg='):
        LoadReportHook(complete=True).after_load_checkpoint(
            OneRunner(detector), dict(state_dict=state)
        )


@pytest.mark.parametrize(
    ('make', 'parts'),
    [
        (lambda tmp: dict(state_dict={'a': Touch(tmp / 'made')}), ['posix.system', '--trust-']),
        (
            lambda tmp: dict(state_dict={'layer1.0.conv1.weight': torch.zeros(3)}),
            ['layer1.0.conv1'],
        ),
        (
            lambda tmp: dict(
                state_dict=build(Config.fromfile(SAMPLE_CONFIGS['mmseg'])).state_dict()
            ),
            ['neck and heads', 'decode_head.conv_seg'],
        ),
    ],
    ids=['malicious', 'resnet', 'segmentor'],
)
def test_test_py_refuses(make, parts, sample_dir, tmp_path, monkeypatch, capsys):
    torch.save(make(tmp_path), tmp_path / 'a.pth')
    monkeypatch.chdir(sample_dir)
    message = failing(
        monkeypatch, capsys, 'test', DETECTION, tmp_path / 'a.pth', '--work-dir', tmp_path / 'work'
    )
    for part in parts:
        assert part in message, message
    assert not (tmp_path / 'made').exists()


def test_trust_checkpoint_is_the_way_out(detector, sample_dir, tmp_path, monkeypatch, capsys):
    made, file = tmp_path / 'made', tmp_path / 'a.pth'
    torch.save(dict(state_dict=detector.state_dict(), args=Touch(made)), file)
    monkeypatch.chdir(sample_dir)
    args = (DETECTION, file, '--work-dir', tmp_path / 'work')
    assert '--trust-checkpoint' in failing(monkeypatch, capsys, 'test', *args)
    assert not made.exists()
    monkeypatch.setattr(sys, 'argv', ['test.py', *map(str, args), '--trust-checkpoint'])
    runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    assert made.exists()


@pytest.mark.parametrize(
    ('checkpoint', 'part'),
    [
        ('https://127.0.0.1:9/a.pth', 'cannot be downloaded'),
        ('nowhere.pth', 'nowhere.pth does not exist'),
    ],
)
def test_train_py_says_how_to_start_without_pretrained_weights(
    checkpoint, part, sample_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(sample_dir)
    message = failing(
        *(monkeypatch, capsys, 'train', SEGMENTATION, '--work-dir', tmp_path, '--cfg-options'),
        *('model.backbone.init_cfg._delete_=True', 'model.backbone.init_cfg.type=Pretrained'),
        f'model.backbone.init_cfg.checkpoint={checkpoint}',
    )
    assert part in message and '--cfg-options model.backbone.init_cfg=None' in message


def test_the_moving_averages_of_a_training_are_loaded_and_reported(
    sample_dir, tmp_path, monkeypatch
):
    """A run with EMAHook is tested; its file holds two sets of weights."""
    cfg = two_iterations(tmp_path, channels=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    cfg.custom_hooks, cfg.experiment_name = [dict(type='EMAHook', momentum=0.5)], 'ema'
    monkeypatch.chdir(sample_dir)
    load_safely(trust=False)
    Runner.from_cfg(cfg).train()
    file = read_checkpoint(tmp_path / 'iter_2.pth')
    assert {'state_dict', 'ema_state_dict'} <= set(file)

    cfg.load_from, cfg.experiment_name = str(tmp_path / 'iter_2.pth'), 'ema_test'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(LoadReportHook())
    with logged() as lines:
        runner.test()
    assert len(lines) == 2  # the weights of the training, and their averages
    assert all(line.endswith('0 shape mismatched, 0 unused') for line in lines)
    (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    for name, value in ema.ema_model.module.state_dict().items():
        assert torch.equal(value, file['state_dict'][name]), name
