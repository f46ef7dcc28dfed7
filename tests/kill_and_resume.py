"""Kills trainings at random moments, resumes them, and compares the weights to the bit:

    python tests/kill_and_resume.py --seed 0 --kills 20

Detection by epochs and segmentation by iterations, with moving averages, drop path, dropout and
random flips; in one process and, under torchrun, in two; loading in the main process and in two
workers; SIGINT, SIGTERM and SIGKILL, to one process or to the whole group, while it trains,
validates or saves. Not part of the tests: it takes minutes. ``test_resume.py`` does some of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from processes import run_tool

ROOT = Path(__file__).parent.parent
TRAIN = str(ROOT / 'tools' / 'train.py')
MOMENT = 'MOMENT_TO_KILL'
TINY = """
custom_imports = dict(imports=['kill_and_resume'], allow_failed_imports=False)
randomness = dict(seed=7)
custom_hooks = [dict(type='EMAHook', momentum=0.3), dict(type='KillHook')]
backbone = dict(
    _delete_=True,
    type='mmconvneur.ConvNeur',
    arch=dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
    drop_path_rate=0.5,
)
loader = dict(num_workers={workers}, persistent_workers={workers} > 0)
train_dataloader = dict(batch_size=2, **loader)
val_dataloader = dict(batch_size=1, **loader)
"""
TASKS = dict(
    detection="""
_base_ = {root!r} + '/configs/mask_rcnn_convneur_m1_sample.py'
{tiny}
model = dict(
    backbone=backbone,
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=8),
        mask_roi_extractor=dict(out_channels=8),
        mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=50), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=20, max_per_img=20), rcnn=dict(max_per_img=10)),
)
train_cfg = dict(max_epochs={iterations} // {batches}, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
    dict(type='MultiStepLR', by_epoch=True, milestones=[1], gamma=0.1),
]
default_hooks = dict(logger=dict(interval=1))
""",
    segmentation="""
_base_ = {root!r} + '/configs/upernet_convneur_m1_sample.py'
{tiny}
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=backbone,
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=8),
    auxiliary_head=dict(in_channels=24, channels=8),
)
train_cfg = dict(max_iters={iterations}, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=7, end={iterations}),
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=5))
""",
)
IMAGES, ITERATIONS = 24, 24
PARTS = ('state_dict', 'ema_state_dict', 'optimizer')


class Moment(NamedTuple):
    """When to send which signal to whom.

    Attributes:
        phase: ``train``, ``val`` or ``save``.
        iteration: The first such phase at or after it.
        number: Of the signal.
        group: To the whole process group, else to the main process of one rank.
        delay: Seconds after the phase begins.
        rank: Of the process that sends it.
    """

    phase: str
    iteration: int
    number: int
    group: bool = False
    delay: float = 0.0
    rank: int = 0


@HOOKS.register_module(force=True)  # the script is imported under two names
class KillHook(Hook):
    """Sends the signal of the moment in the environment, and notes the iteration in a file."""

    def __init__(self) -> None:
        self.moment = Moment(*json.loads(os.environ.pop(MOMENT, '["never", 0, 0]')))

    def before_train_iter(self, runner: Runner, **kwargs) -> None:
        self._kill_in('train', runner)

    def before_val_iter(self, runner: Runner, **kwargs) -> None:
        self._kill_in('val', runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._kill_in('save', runner)

    def _kill_in(self, phase: str, runner: Runner) -> None:
        moment = self.moment
        if (phase, runner.rank) == (moment.phase, moment.rank) and runner.iter >= moment.iteration:
            self.moment = moment._replace(phase='never')
            Path(runner.work_dir, 'killed').write_text(str(runner.iter))
            target = -os.getpgrp() if moment.group else os.getpid()
            # From outside the group: loader workers heed the process that loads.
            command = f'sleep {moment.delay}; kill -s {moment.number} -- {target}'
            kill = partial(subprocess.Popen, command, shell=True, start_new_session=True)
            if phase == 'save':  # while the file is whole but has not got its name
                os.fsync = lambda descriptor: kill().wait()
            else:
                kill()


def write_config(folder: Path, task: str, workers: int, processes: int = 1) -> Path:
    path = folder / f'{task}_{workers}_{processes}.py'
    sizes = dict(iterations=ITERATIONS, batches=IMAGES // (2 * processes))
    tiny = TINY.format(workers=workers)
    path.write_text(TASKS[task].format(root=str(ROOT), tiny=tiny, **sizes))
    return path


def train(
    cwd: Path, config: Path, work_dir: Path, *args: str, processes: int = 1, moment=None
) -> int:
    """The exit status of a training, in a process group of its own; 0 or what a signal made."""
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / 'printed.txt'
    environment = {} if moment is None else {MOMENT: json.dumps(moment)}
    argv = [TRAIN, str(config), '--work-dir', str(work_dir), *args]
    if processes == 1:
        return run_tool(cwd, argv, log, log, environment)
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    environment |= dict(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}', OMP_NUM_THREADS='1')
    with log.open('a') as output:
        return subprocess.run(
            [sys.executable, *launch, *argv, '--launcher', 'pytorch'],
            cwd=cwd,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ).returncode


def final_state(work_dir: Path) -> dict:
    from mmconvneur.engine.checkpoints import latest_checkpoint
    from mmconvneur.weights import read_checkpoint

    state = read_checkpoint(latest_checkpoint(work_dir))
    assert state['meta']['iter'] == ITERATIONS, state['meta']['iter']
    return {part: state[part] for part in PARTS}


def check_kept(work_dir: Path, moment: Moment) -> str:
    """Where a killed run left off; a signal that can be caught loses no iteration."""
    from mmconvneur.engine.checkpoints import latest_checkpoint, read_training

    killed = int((work_dir / 'killed').read_text())
    latest = latest_checkpoint(work_dir)
    kept = read_training(latest)['meta']['iter'] if latest else 0
    assert moment.number == signal.SIGKILL or kept >= killed, (moment, killed, kept)
    return f'at {killed}, resumed at {kept}'


def random_moments(rng: random.Random, number: int, processes: int) -> list[Moment]:
    """In the order in which a run passes them."""
    moments = []
    for _ in range(number):
        phase = rng.choice(['train', 'val', 'save'])
        moments.append(
            Moment(
                phase,
                iteration=rng.randrange(ITERATIONS),
                number=rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]),
                group=rng.random() < 0.5,
                delay=rng.random() * 0.1,
                rank=0 if phase == 'save' else rng.randrange(processes),  # the first alone saves
            )
        )
    return sorted(moments, key=lambda moment: moment.iteration)


def main() -> None:
    from sample_data import make_dataset

    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--kills', type=int, default=20, help='how many; default: 20')
    parser.add_argument('--folder', help='for data, logs and checkpoints; default: temporary')
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(args.folder or tempfile.mkdtemp())
    make_dataset('sample', folder / 'data' / 'sample', num_train=IMAGES, num_val=6, size=96)
    runs = [(t, p, w) for p in (1, 2) for t in TASKS for w in (0, 2)]
    kills = 0
    for i, (task, processes, workers) in enumerate(runs):
        config = write_config(folder, task, workers, processes)
        whole, stopped = (folder / f'{config.stem}_{what}' for what in ('whole', 'stopped'))
        common = dict(processes=processes)
        assert train(folder, config, whole, **common) == 0, whole
        number = (args.kills * (i + 1)) // len(runs) - (args.kills * i) // len(runs)
        for moment in random_moments(rng, number, processes):
            if train(folder, config, stopped, '--resume', moment=moment, **common) == 0:
                print(f'{config.stem}: passed {moment} before it could be killed')
                continue
            kills += 1
            print(f'{config.stem}: {moment}', check_kept(stopped, moment), flush=True)
        assert train(folder, config, stopped, '--resume', **common) == 0, stopped
        torch.testing.assert_close(final_state(stopped), final_state(whole), rtol=0, atol=0)
        print(f'{config.stem}: the same to the bit', flush=True)
    print(f'{kills} kills, no bit of difference')


if __name__ == '__main__':
    sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]
    main()
