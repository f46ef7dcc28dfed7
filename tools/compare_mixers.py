"""Trains one small network with each global branch: python tools/compare_mixers.py --out docs

Same data, budget, learning rates and seeds for every row: the first seed takes every rate, the
other seeds take the row's best. One process and one thread per run. Finished runs are kept in
OUT/benchmarks/global_branches.json and not repeated, so an interrupted study continues; each is
known by its config, and remembers the source of the models it was run with. Writes
OUT/global_branches.md and its pictures.
"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import argparse
import hashlib
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from rich.progress import Progress, TimeElapsedColumn

from benchmarking import comparison, report
from mmconvneur.errors import UsageError, check_choice
from mmconvneur.utils.arguments import one_line_errors
from mmconvneur.utils.files import write_atomically

try:
    from sample_data import make_dataset
except ModuleNotFoundError as error:
    sys.exit(f'error: {error}: {environment.install(error.name)}')

ROOT = Path(__file__).parents[1]
FACTORS = (1 / 3, 1.0)  # of the config's learning rate
PAGE = """# Global branches, compared

Each row is one small network with another global branch, fusion, placement or width. A score is
the mIoU on the validation split after the last iteration, in percent. The first seed takes every
learning rate; the other seeds take its best one. The deviation is over the seeds.

{}

## Costs

Milliseconds and MiB are those of a training step on one thread. Both tasks have the same network.

{}

## Command and versions

`python {}`

{}
"""


def mixer(name: str, **options) -> dict:
    return dict(global_mixer=dict(type=name, **options))


ROWS = {  # options of the backbone
    'none': dict(global_mixer=None),
    'NeuralMemory (default)': mixer('NeuralMemory'),
    'GLMix': mixer('GLMix'),
    'GLMix, scale from 10': mixer('GLMix', scale_init_value=10),
    'SpatialBias': mixer('SpatialBias'),
    'SelfAttention': mixer('SelfAttention'),
    'SelfAttention, C_m 64': mixer('SelfAttention', bottleneck_dim=64, num_heads=8),
    'PublishedNeuralMemory': mixer('PublishedNeuralMemory'),
    'NonLocal': mixer('NonLocal'),
    'CBAM': mixer('CBAM'),
    'read before, chunks of 196': mixer('ChunkedNeuralMemory', chunk_size=196, read='before'),
    'inner model linear, one step': mixer('ChunkedNeuralMemory', chunk_size=None),
    'inner model two_layer': mixer('ChunkedNeuralMemory', chunk_size=None, inner_model='two_layer'),
    'inner model gated': mixer('ChunkedNeuralMemory', chunk_size=None, inner_model='gated'),
    'fusion add': mixer('NeuralMemory') | dict(fusion='add'),
    'fusion concat': mixer('NeuralMemory') | dict(fusion='concat'),
    'placement block': mixer('NeuralMemory') | dict(placement='block'),
    'placement stage 2 alone': mixer('NeuralMemory') | dict(placement=[1]),
    'C_m and heads halved': mixer('NeuralMemory', memory_dim=32, num_heads=4),
    'C_m and heads doubled': mixer('NeuralMemory', memory_dim=128, num_heads=16),
}


TASKS = {'cue': 'segformer_convneur_cue', 'legend': 'segformer_convneur_legend'}


class Run(NamedTuple):
    task: str
    row: str
    rate: float
    seed: int

    def config(self, iterations: int | None) -> Config:
        cfg = load(self.task)
        cfg.model.backbone = backbone(cfg, self.row)
        cfg.optim_wrapper.optimizer.lr = self.rate
        cfg.randomness = dict(seed=self.seed)
        cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
        if iterations:
            cfg.train_cfg.update(max_iters=iterations, val_interval=-(-iterations // 4))
            cfg.param_scheduler[-1].end = iterations
        return cfg

    def folder(self, root: Path) -> Path:
        name = ''.join(c if c.isalnum() else '_' for c in self.row)
        return root / self.task / f'{name}_rate_{self.rate:g}_seed_{self.seed}'


def load(task: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{TASKS[task]}.py')


def backbone(cfg: Config, row: str) -> dict:
    return cfg.model.backbone.to_dict() | ROWS[row]  # mmengine's own update would merge mixers


def rates(task: str) -> list[float]:
    return [factor * load(task).optim_wrapper.optimizer.lr for factor in FACTORS]


def digest(cfg: Config) -> str:
    text = json.dumps(cfg.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def train(run: Run, root: Path, iterations: int | None) -> dict:
    """Train one network, in a process of its own."""
    cfg, folder = run.config(iterations), run.folder(root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cfg.dump(folder / 'config.py')
    log = folder / 'output.log'
    with open(log, 'w') as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.chdir(ROOT)
    sys.argv = ['tools/train.py', str(folder / 'config.py'), '--work-dir', str(folder)]
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except BaseException as error:
        traceback.print_exc()
        raise UsageError(f'{" ".join(map(str, run))} failed: see {log}') from error
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    entries = map(json.loads, scalars.read_text().splitlines())
    scores = [(e['step'], e['mIoU']) for e in entries if 'mIoU' in e]
    shutil.rmtree(folder)
    return dict(
        **run._asdict(),
        config=digest(cfg),
        models=report.fingerprint(),
        scores=scores,
        cpu_minutes=time.process_time() / 60,
    )


def study(args: argparse.Namespace) -> dict[str, list[dict]]:
    """The results of each task: every rate with the first seed, then the best with the others."""
    first, *others = args.seeds
    finished = comparison.Finished(args.out / 'benchmarks' / 'global_branches.json')
    columns = *Progress.get_default_columns(), TimeElapsedColumn()
    # A server that has imported what takes seconds forks a process for each run.
    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(['mmseg.models', 'mmdet.models', 'mmconvneur.models'])
    os.environ['OMP_NUM_THREADS'] = '1'
    with (
        Progress(*columns, speed_estimate_period=1e9) as progress,
        ProcessPoolExecutor(args.jobs, processes, max_tasks_per_child=1) as pool,
    ):
        total = len(args.tasks) * len(args.rows) * (len(FACTORS) + len(others))
        bar = progress.add_task('runs', total=total)

        def results(runs: list[Run]) -> dict[str, list[dict]]:
            digests = [digest(run.config(args.iterations)) for run in runs]
            waiting = [
                pool.submit(train, run, args.work_dir, args.iterations)
                for run, key in zip(runs, digests, strict=True)
                if key not in finished.records
            ]
            progress.advance(bar, len(runs) - len(waiting))
            try:
                for future in as_completed(waiting):
                    finished.add(future.result())
                    progress.advance(bar)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            found = {task: [] for task in args.tasks}
            for run, key in zip(runs, digests, strict=True):
                # Whatever its row was called when it ran.
                found[run.task].append(finished.records[key] | run._asdict())
            return found

        grid = results(
            [Run(t, row, rate, first) for t in args.tasks for row in args.rows for rate in rates(t)]
        )
        best = {
            (task, row): comparison.best_rate(runs)
            for task in args.tasks
            for row, runs in comparison.by_row(grid[task]).items()
        }
        more = results([Run(*pair, best[pair], seed) for seed in others for pair in best])
        return {task: grid[task] + more[task] for task in args.tasks}


def page(results: dict[str, list[dict]], out: Path) -> str:
    """Scores of each task and the costs, which are those of one network; pictures go to OUT."""
    cfg = load(next(iter(results)))
    size = cfg.model.data_preprocessor.size
    rows = dict.fromkeys(r['row'] for found in results.values() for r in found)
    backbones = {row: backbone(cfg, row) for row in rows}
    costs = comparison.costs(backbones, size, cfg.train_dataloader.batch_size)
    parts = []
    for task, found in results.items():
        image = f'images/global_branches_{task}_costs.png'
        comparison.plot_costs(found, costs, out / image)
        parts += [f'## {task}', comparison.accuracy_table(found), f'![{task}: costs]({image})']
    models = {r['models'] for found in results.values() for r in found}
    facts = report.environment(torch.device('cpu')) | dict(models=' '.join(sorted(models)))
    return PAGE.format(
        '\n\n'.join(parts),
        comparison.cost_table(costs, size),
        shlex.join(sys.argv),
        '\n'.join(f'- {key}: {value}' for key, value in facts.items()),
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--tasks', nargs='+', default=[*TASKS], help=', '.join(TASKS))
    parser.add_argument('--rows', nargs='+', default=[*ROWS], help=', '.join(ROWS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='parallel runs')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'compare_mixers')
    parser.add_argument('--out', type=Path, help='folder for page and results; default: WORK_DIR')
    parser.add_argument('--iterations', type=int, help='per run, instead of those of the config')
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
    for task in args.tasks:
        make_dataset(task, ROOT / 'data' / task)
    results = study(args)
    torch.set_num_threads(1)
    text = page(results, args.out)
    write_atomically(args.out / 'global_branches.md', text)
    print(text)


if __name__ == '__main__':
    main()
