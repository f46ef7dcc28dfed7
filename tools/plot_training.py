"""Draws loss and validation metrics over time: python tools/plot_training.py WORK_DIR"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from mmconvneur.evaluation.names import METRICS


def read_log(work_dir: Path) -> list[dict]:
    """MMEngine's scalars of all runs in a work folder, those of a resumed one after the first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not files:
        sys.exit(f'error: {work_dir} holds no training log (*/vis_data/scalars.json)')
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('work_dir', type=Path)
    args = parser.parse_args()
    log = read_log(args.work_dir)
    losses = [(entry['iter'], entry['loss']) for entry in log if 'loss' in entry]
    iterations_per_step = 1
    epochs = [entry for entry in log if 'loss' in entry and 'epoch' in entry]
    if epochs:  # epoch-based runs number their validations by epoch
        iterations_per_step = max(e['iter'] for e in epochs) / max(e['epoch'] for e in epochs)

    figure = Figure((8, 4.5))
    left = figure.subplots()
    left.plot(*zip(*losses, strict=True), color='0.5', label='training loss')
    left.set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    right = left.twinx()
    for key, (_, name, _) in METRICS.items():
        points = [(e['step'] * iterations_per_step, e[key]) for e in log if key in e]
        if points:
            right.plot(*zip(*points, strict=True), marker='o', label=f'validation {name}')
    right.set(ylabel='validation metric', ylim=(0, None))
    right.spines['top'].set_visible(False)
    left.spines['top'].set_visible(False)
    figure.legend(loc='upper center', ncols=3, frameon=False)
    out = args.work_dir / 'training.png'
    figure.savefig(out, dpi=120)
    print(out)


if __name__ == '__main__':
    main()
