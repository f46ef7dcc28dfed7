"""Trains one small network with each global branch on the task cue: python tools/compare_mixers.py

Same data, budget and seeds for every branch; one process and one thread per run. Finished runs are
kept, so an interrupted comparison continues. Writes the table and the plot that docs/ shows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmengine.config import Config
from rich.progress import Progress

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs' / 'segformer_convneur_cue.py'
BRANCHES = {
    'none': None,
    'NeuralMemory (default)': dict(type='NeuralMemory'),
    "PublishedNeuralMemory (chunk_size=196, read='before')": dict(
        type='PublishedNeuralMemory', chunk_size=196
    ),
}
RESULT = 'result.json'


def train(branch: str, seed: int, root: Path, iterations: int | None) -> dict:
    """Train one network in a process of its own; a finished run is read back.

    Returns the foreground mIoU after every validation and the CPU minutes of the process.
    """
    work_dir = root / ''.join(c if c.isalnum() else '_' for c in branch) / f'seed_{seed}'
    result = work_dir / RESULT
    if not result.is_file():
        work_dir.mkdir(parents=True, exist_ok=True)
        cfg = Config.fromfile(CONFIG)
        cfg.model.backbone.global_mixer = BRANCHES[branch]
        cfg.randomness = dict(seed=seed)
        if iterations:
            cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
        cfg.dump(work_dir / 'config.py')
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(work_dir / 'config.py')]
        with open(work_dir / 'output.log', 'w') as log:
            process = subprocess.Popen(
                [*command, '--work-dir', str(work_dir)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | dict(OMP_NUM_THREADS='1'),
            )
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f'error: {branch}, seed {seed} failed: see {work_dir / "output.log"}')
        scalars = max(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
        scores = [(e['step'], e['mIoU']) for e in map(json.loads, scalars) if 'mIoU' in e]
        minutes = (usage.ru_utime + usage.ru_stime) / 60
        partial = result.with_suffix('.partial')
        partial.write_text(
            json.dumps(dict(branch=branch, seed=seed, scores=scores, cpu_minutes=minutes))
        )
        os.replace(partial, result)
    return json.loads(result.read_text())


def table(results: list[dict]) -> str:
    """Foreground mIoU of every seed and their median, as Markdown."""
    seeds = sorted({r['seed'] for r in results})
    lines = [
        '| global branch | ' + ' | '.join(f'seed {s}' for s in seeds) + ' | median | CPU min |',
        '|---' * (len(seeds) + 3) + '|',
    ]
    for branch in BRANCHES:
        runs = {r['seed']: r for r in results if r['branch'] == branch}
        final = [runs[s]['scores'][-1][1] for s in seeds]
        minutes = max(run['cpu_minutes'] for run in runs.values())
        cells = [f'{score:.1f}' for score in final] + [f'**{statistics.median(final):.1f}**']
        lines.append(f'| {branch} | ' + ' | '.join(cells) + f' | {minutes:.1f} |')
    return '\n'.join(lines)


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout='constrained')
    for color, branch in zip(plt.cm.tab10.colors, BRANCHES, strict=False):
        for run in (r for r in results if r['branch'] == branch):
            label = branch if run['seed'] == results[0]['seed'] else None
            axes.plot(*zip(*run['scores'], strict=True), color=color, marker='.', label=label)
    axes.set(xlabel='iteration', ylabel='foreground mIoU, validation', ylim=(0, 100))
    figure.legend(loc='outside upper center', ncols=2, frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].split(':')[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'compare_mixers')
    parser.add_argument('--out', type=Path, help='folder of table and plot, WORK_DIR by default')
    parser.add_argument('--iterations', type=int, help='other than the config says, for a trial')
    args = parser.parse_args()
    data = [sys.executable, str(ROOT / 'tools' / 'make_sample_data.py'), '--task', 'cue']
    subprocess.run(data, cwd=ROOT, check=True)
    runs = [(branch, seed) for seed in args.seeds for branch in BRANCHES]
    with Progress() as progress, ThreadPoolExecutor(args.jobs) as pool:
        bar = progress.add_task('runs', total=len(runs))

        def run(what: tuple[str, int]) -> dict:
            result = train(*what, args.work_dir, args.iterations)
            progress.advance(bar)
            return result

        results = list(pool.map(run, runs))
    out = args.out or args.work_dir
    out.mkdir(parents=True, exist_ok=True)
    import torch

    command = ' '.join(['python', 'tools/compare_mixers.py', '--seeds', *map(str, args.seeds)])
    (out / 'cue.md').write_text(
        f'{table(results)}\n\n`{command}`, {platform.machine()} CPU, one thread per run, '
        f'torch {torch.__version__}. Last column: CPU minutes of the longest run.\n'
    )
    plot(results, out / 'cue.png')
    print((out / 'cue.md').read_text())


if __name__ == '__main__':
    main()
