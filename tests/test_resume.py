"""Runs that were stopped: where they continue, and that they end as if nothing had happened."""

from __future__ import annotations

import os
import random
import runpy
import shutil
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_and_resume import Moment, check_kept, final_state, train, write_config
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import OptimWrapper
from test_tools import TOOLS, failing, scalars
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmconvneur import UsageError
from mmconvneur.engine.batches import RepeatableBatches
from mmconvneur.engine.checkpoints import latest_checkpoint, read_training
from mmconvneur.engine.hooks import ResumeHook, stepped
from mmconvneur.weights import read_checkpoint

CHAINS = {
    ('segmentation', 2): [
        Moment('train', 3, signal.SIGTERM, group=True),
        Moment('save', 9, signal.SIGKILL),
        Moment('val', 24, signal.SIGINT),
    ],
    ('detection', 0): [
        Moment('train', 15, signal.SIGINT),
        Moment('val', 24, signal.SIGKILL, group=True),
    ],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def whole(folder, sample_dir) -> Path:
    """The work folder of a segmentor's training that was never stopped."""
    config = write_config(folder, 'segmentation', workers=2)
    assert train(sample_dir, config, folder / 'whole') == 0
    return folder / 'whole'


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / 'work')
    return tmp_path / 'work'


# ------------------------------------------------------------------------------------------- kills
@pytest.mark.slow
@pytest.mark.parametrize(('task', 'workers'), CHAINS)
def test_a_killed_run_ends_as_one_that_never_stopped(task, workers, whole, sample_dir, tmp_path):
    if task == 'detection':
        whole = tmp_path / 'whole'
        assert train(sample_dir, write_config(tmp_path, task, workers), whole) == 0
    config = write_config(tmp_path, task, workers)
    stopped = tmp_path / 'stopped'
    for moment in CHAINS[task, workers]:
        status = train(sample_dir, config, stopped, '--resume', moment=moment)
        caught = moment.number != signal.SIGKILL
        assert status == (128 + moment.number if caught else -moment.number)
        check_kept(stopped, moment)
    assert train(sample_dir, config, stopped, '--resume') == 0
    torch.testing.assert_close(final_state(stopped), final_state(whole), rtol=0, atol=0)
    # The validation that was cut off is made up, and no other is done twice.
    key = dict(detection='coco/bbox_mAP', segmentation='mIoU')[task]
    scores, expected = ([line[key] for line in scalars(f, key)] for f in (stopped, whole))
    assert scores == expected and len(scores) == dict(detection=2, segmentation=3)[task]

    before = latest_checkpoint(stopped).stat().st_mtime_ns
    assert train(sample_dir, config, stopped, '--resume') == 0
    assert 'This run is finished' in (stopped / 'printed.txt').read_text()
    assert len(scalars(stopped, key)) == len(scores)
    assert latest_checkpoint(stopped).stat().st_mtime_ns == before


def test_gradients_that_were_accumulated_are_not_lost():
    model = nn.Linear(2, 1)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=3)
    wrapper.initialize_count_status(model, 0, 8)
    steps = []
    for _ in range(8):
        wrapper.update_params(model(torch.ones(1, 2)).sum())
        steps.append(stepped(wrapper))
    assert steps == [False, False, True, False, False, True, False, True]


# ----------------------------------------------------------------------------------------- batches
class Draws(Dataset):
    """Its index and what each random generator gives; it notes what is loaded."""

    def __init__(self) -> None:
        self.loaded = []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple:
        self.loaded.append(index)
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def loader(sampler, batch_size: int = 2, **kwargs) -> DataLoader:
    return DataLoader(sampler.dataset, batch_size, sampler=sampler, collate_fn=tuple, **kwargs)


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_of_an_epoch_are_the_same_from_any_place_on(workers):
    every = loader(DefaultSampler(Draws(), seed=5))
    expected = list(RepeatableBatches(every, seed=3).loaded(20))
    assert len(expected) == 4 and len({values[1:] for batch in expected for values in batch}) == 7

    rest = loader(DefaultSampler(Draws(), seed=5), num_workers=workers)
    batches = RepeatableBatches(rest, seed=3)
    assert list(batches.loaded(20, skipped=3)) == expected[3:]
    if workers == 0:
        assert rest.dataset.loaded == [values[0] for values in expected[3]]
    later = list(batches.loaded(24))
    assert [[v[0] for v in batch] for batch in later] == [[v[0] for v in b] for b in expected]
    assert not {v[1] for batch in later for v in batch} & {v[1] for b in expected for v in b}


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_endless_batches_are_the_same_from_any_place_on(sampler):
    """A sampler that ends is started over, in the order of its next epoch."""
    every, rest = (loader(sampler(Draws(), seed=5)) for _ in range(2))
    expected = list(islice(RepeatableBatches(every, seed=3, endless=True).loaded(), 11))
    indices = [values[0] for batch in expected for values in batch]
    assert sorted(indices[:7]) == sorted(indices[7:14]) == list(range(7))
    assert indices[:7] != indices[7:14]
    rest = RepeatableBatches(rest, seed=3, endless=True).loaded(skipped=9)
    assert list(islice(rest, 2)) == expected[9:]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize(('batch_size', 'batches'), [
    (2, [[0, 1], [2, 3], [4]]), (None, [0, 1, 2, 3, 4])
])  # fmt: skip
def test_what_has_no_numbered_samples_is_loaded_to_the_place(batch_size, batches):
    def load(endless: bool, skipped: int) -> Iterator:
        loader = DataLoader(Stream(), batch_size, collate_fn=list if batch_size else None)
        return RepeatableBatches(loader, seed=3, endless=endless).loaded(skipped=skipped)

    assert list(load(endless=False, skipped=2)) == batches[2:]
    later = load(endless=True, skipped=len(batches) + 1)
    assert list(islice(later, 3)) == [*batches[1:], *batches][:3]


# ------------------------------------------------------------------------------- which to continue
def save(path: Path, iteration: int, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(epoch=0, iter=iteration) | more.pop('meta', {})
    torch.save(dict(meta=meta, state_dict={}, message_hub={}, optimizer={}) | more, path)
    return path


def test_the_newest_checkpoint_was_written_last_whatever_its_date(tmp_path, capsys):
    work, elsewhere = tmp_path / 'work', tmp_path / 'elsewhere' / 'work'
    assert latest_checkpoint(work, elsewhere) is None
    old = save(work / 'epoch_3.pth', 30)
    new = save(elsewhere / 'mine_10.pth', 40)
    os.utime(new, (1000, 1000))  # the other was copied later
    torch.save(dict(meta=dict(epoch=5, iter=50), state_dict={}), work / 'best_mIoU_iter_50.pth')
    (work / 'epoch_6.pth').write_bytes(old.read_bytes()[:-50])
    (work / 'epoch_7.pth.partial').write_bytes(old.read_bytes())
    assert latest_checkpoint(work, elsewhere) == new
    assert f'passes over {work / "epoch_6.pth"}' in capsys.readouterr().err
    # A run that was continued from an earlier place.
    for path, iteration, saved in (('a', 120, 7.0), ('b', 20, 8.0)):
        newest = save(work / f'{path}.pth', iteration, meta=dict(saved=saved))
    assert latest_checkpoint(work, elsewhere) == newest


@pytest.mark.parametrize(('content', 'parts'), [
    (dict(state_dict={}), ['no state of a training', 'load_from={path}']),
    (dict(meta=dict(mmconvneur_version='1')), ['no state of a training']),
    (dict(meta=dict(epoch=2, iter=8)), ['of iteration 8, holds no optimizer', 'load_from={path}']),
])  # fmt: skip
def test_what_holds_no_training_is_not_resumed(content, parts, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(content, path)
    with pytest.raises(UsageError) as error:
        read_training(path)
    for part in parts:
        assert part.format(path=path) in str(error.value)


def test_resume_of_a_released_model_says_how_to_start_from_it(sample_dir, monkeypatch, capsys):
    monkeypatch.chdir(sample_dir)
    name = 'upernet_convneur_m1_sample'
    message = failing(monkeypatch, capsys, 'train', name, '--resume', name)
    assert 'no state of a training' in message and 'load_from=' in message


def test_a_run_without_a_seed_of_its_own_is_resumed_with_the_first(copied):
    train_tool = runpy.run_path(str(TOOLS / 'train.py'))
    cfg = Config(dict(work_dir=str(copied)))
    train_tool['resume'](cfg, 'auto')
    assert cfg.resume and cfg.load_from == str(latest_checkpoint(copied))
    assert cfg.randomness.seed == read_checkpoint(cfg.load_from)['meta']['seed']


# -------------------------------------------------------------------------- files that run code
def test_the_config_in_a_resumed_checkpoint_is_not_run(
    copied, folder, sample_dir, tmp_path, monkeypatch
):
    trace = tmp_path / 'trace'
    state = read_checkpoint(latest_checkpoint(copied))
    state['meta']['config'] = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    torch.save(state, tmp_path / 'evil.pth')
    config = folder / 'segmentation_2_1.py'
    train_args = (sample_dir, config, copied, '--resume', str(tmp_path / 'evil.pth'))
    assert train(*train_args) == 0
    assert 'This run is finished' in (copied / 'printed.txt').read_text()
    assert not trace.exists()
    assert train(*train_args, '--trust-checkpoint') == 0
    assert trace.exists()  # what was held off


def test_a_resumed_checkpoint_names_no_file_to_delete_but_of_its_run(tmp_path):
    work, out = str(tmp_path / 'work'), str(tmp_path / 'out')
    hook = CheckpointHook(save_best='mIoU', out_dir=out)
    runner = SimpleNamespace(work_dir=work, hooks=[EMAHook(), hook])
    own = dict(
        best_ckpt=f'{work}/best_mIoU_iter_8.pth',
        best_ckpt_mAcc=f'{out}/work/best_mAcc_iter_8.pth',
        keep_ckpt_ids=[8, 16],
        last_ckpt=f'{work}/iter_8.pth',
    )
    foreign = dict(
        best_ckpt_file='/etc/best_hosts',
        best_ckpt_out=f'{work}/best_/../../best_x.pth',
        best_ckpt_other=f'{work}/resume.pth',
        best_ckpt_relative='best_x.pth',
    )
    for infos in (own | foreign, own | foreign | dict(keep_ckpt_ids=['/../x'])):
        hub = dict(runtime_info=infos)
        ResumeHook().after_load_checkpoint(runner, dict(message_hub=hub))
        numbers = all(isinstance(number, int) for number in infos.get('keep_ckpt_ids', []))
        assert numbers and {**infos, 'keep_ckpt_ids': [8, 16]} == own
    ResumeHook().after_load_checkpoint(runner, dict(state_dict={}))  # of weights alone
