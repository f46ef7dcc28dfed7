"""Trains one small network with each global branch: python tools/compare_mixers.py --out docs

Same data, budget, learning rates and seeds for every row: the first seed takes every rate, the
other seeds take the row's best. One process and one thread per run. Finished runs are kept in
OUT/benchmarks/global_branches.json and not repeated, so an interrupted study continues. Writes
OUT/global_branches.md and its pictures.
"""

from __future__ import annotations

from mmconvneur import environment

environment.exit_unless_good()  # before the imports below can fail

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from rich.progress import Progress, TimeElapsedColumn

from mmconvneur.benchmark import comparison, report
from mmconvneur.cli import one_line_errors
from mmconvneur.errors import UsageError, check_choice
from mmconvneur.sample_data import make_dataset

ROOT = Path(__file__).parents[1]
FACTORS = (0.5, 1.0, 2.0)  # of the config's learning rate


def mixer(name: str, **options) -> dict:
    return dict(global_mixer=dict(type=name, **options))


def narrow_or_wide(*memory_dims: int) -> dict:
    return dict(global_mixer=[dict(type='NeuralMemory', memory_dim=d) for d in memory_dims])


ROWS = {  # options of the backbone
    'none': dict(global_mixer=None),
    'NeuralMemory (default)': mixer('NeuralMemory'),
    'GLMix': mixer('GLMix'),
    'SpatialBias': mixer('SpatialBias'),
    'SelfAttention': mixer('SelfAttention'),
    'PublishedNeuralMemory': mixer('PublishedNeuralMemory'),
    'GLMix, learned slots': mixer('GLMix', slots='learned'),
    'NonLocal': mixer('NonLocal'),
    'CBAM': mixer('CBAM'),
    'read before, chunks of 196': mixer('NeuralMemory', chunk_size=196, read='before'),
    'inner model two_layer': mixer('NeuralMemory', inner_model='two_layer'),
    'inner model gated': mixer('NeuralMemory', inner_model='gated'),
    'fusion add': mixer('NeuralMemory') | dict(fusion='add'),
    'fusion concat': mixer('NeuralMemory') | dict(fusion='concat'),
    'placement block': mixer('NeuralMemory') | dict(placement='block'),
    'placement stage 1 alone': mixer('NeuralMemory') | dict(placement=[0]),
    'placement stage 2 alone': mixer('NeuralMemory') | dict(placement=[1]),
    'C_m halved': narrow_or_wide(12, 24),
    'C_m doubled': narrow_or_wide(48, 96),
}
TASKS = {  # config and rows
    'cue': ('segformer_convneur_cue', list(ROWS)),
    'legend': ('segformer_convneur_legend', list(ROWS)),
    'sample': ('upernet_convneur_m1_sample', list(ROWS)[:5]),
}


class Run(NamedTuple):
    task: str
    row: str
    rate: float
    seed: int

    def config(self, iterations: int | None) -> Config:
        cfg = load(self.task)
        cfg.model.backbone.update(ROWS[self.row])
        cfg.optim_wrapper.optimizer.lr = self.rate
        cfg.randomness = dict(seed=self.seed)
        cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
        if iterations:
            cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
        return cfg

    def folder(self, root: Path) -> Path:
        name = ''.join(c if c.isalnum() else '_' for c in self.row)
        return root / self.task / f'{name}_rate_{self.rate:g}_seed_{self.seed}'


def load(task: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{TASKS[task][0]}.py')


def rates(task: str) -> list[float]:
    return [factor * load(task).optim_wrapper.optimizer.lr for factor in FACTORS]


def train(run: Run, finished: comparison.Finished, root: Path, iterations: int | None) -> dict:
    """Train one network in a process of its own, unless that was done before."""
    cfg = run.config(iterations)
    text = json.dumps(cfg.to_dict(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    if digest in finished.records:
        return finished.records[digest] | run._asdict()  # whatever its row was called then
    folder = run.folder(root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cfg.dump(folder / 'config.py')
    command = [sys.executable, 'tools/train.py', folder / 'config.py', '--work-dir', folder]
    env = os.environ | dict(OMP_NUM_THREADS='1')
    with open(folder / 'output.log', 'w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=env)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UsageError(f'{" ".join(map(str, run))} failed: see {folder / "output.log"}')
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    entries = map(json.loads, scalars.read_text().splitlines())
    found = dict(
        **run._asdict(),
        config=digest,
        models=report.fingerprint(),
        scores=[(e['step'], e['mIoU']) for e in entries if 'mIoU' in e],
        cpu_minutes=(usage.ru_utime + usage.ru_stime) / 60,
    )
    finished.add(found)
    shutil.rmtree(folder)
    return found


def study(args: argparse.Namespace, rows: dict[str, list[str]]) -> dict[str, list[dict]]:
    """The results of each task: every rate with the first seed, then the best with the others."""
    first, *others = args.seeds
    finished = comparison.Finished(args.out / 'benchmarks' / 'global_branches.json')
    columns = *Progress.get_default_columns(), TimeElapsedColumn()
    with (
        Progress(*columns, speed_estimate_period=1e9) as progress,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        total = sum(map(len, rows.values())) * (len(FACTORS) + len(others))
        bar = progress.add_task('runs', total=total)

        def results(runs: list[Run]) -> dict[str, list[dict]]:
            found = {task: [] for task in rows}
            for result in pool.map(
                lambda run: train(run, finished, args.work_dir, args.iterations), runs
            ):
                found[result['task']].append(result)
                progress.advance(bar)
            return found

        grid = results(
            [Run(t, row, rate, first) for t in rows for row in rows[t] for rate in rates(t)]
        )
        best = {
            (task, row): comparison.best_rate(runs)
            for task in rows
            for row, runs in comparison.by_row(grid[task]).items()
        }
        more = results([Run(*pair, best[pair], seed) for seed in others for pair in best])
        return {task: grid[task] + more[task] for task in rows}


def section(task: str, results: list[dict], out: Path) -> str:
    """Tables of one task; its pictures go to OUT/images."""
    cfg = load(task)
    size = cfg.model.data_preprocessor.size
    backbones = {
        row: cfg.model.backbone | ROWS[row] for row in dict.fromkeys(r['row'] for r in results)
    }
    found = comparison.costs(backbones, size, cfg.train_dataloader.batch_size)
    images = {what: f'images/global_branches_{task}_{what}.png' for what in ('costs', 'curves')}
    comparison.plot_costs(results, found, out / images['costs'])
    comparison.plot_curves(results, out / images['curves'])
    return '\n\n'.join(
        [f'## {task}', comparison.accuracy_table(results), comparison.cost_table(found, size)]
        + [f'![{task}: {what}]({image})' for what, image in images.items()]
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--tasks', nargs='+', default=['cue', 'legend'], help=', '.join(TASKS))
    parser.add_argument('--rows', nargs='+', default=[], help=', '.join(ROWS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'compare_mixers')
    parser.add_argument('--out', type=Path, help='folder of page and results, by default WORK_DIR')
    parser.add_argument('--iterations', type=int, help='other than the config says, for a trial')
    args = parser.parse_args()
    for what, chosen, known in ('task', args.tasks, TASKS), ('row', args.rows, ROWS):
        for name in chosen:
            check_choice(what, name, known)
    return args


@one_line_errors
def main() -> None:
    args = parse()
    args.work_dir = args.work_dir.resolve()
    args.out = args.out or args.work_dir
    rows = {task: args.rows or TASKS[task][1] for task in args.tasks}
    for task in args.tasks:
        make_dataset(task, ROOT / 'data' / task)
    results = study(args, rows)
    torch.set_num_threads(1)
    parts = [section(task, results[task], args.out) for task in args.tasks]
    models = {r['models'] for found in results.values() for r in found}
    facts = report.environment(torch.device('cpu')) | dict(models=' '.join(sorted(models)))
    page = '# Global branches, compared\n\n{}\n\n`python {}`\n\n{}\n'.format(
        '\n\n'.join(parts),
        shlex.join(sys.argv),
        ', '.join(f'{key} {value}' for key, value in facts.items()),
    )
    report.write(args.out / 'global_branches.md', page)
    print(page)


if __name__ == '__main__':
    main()
