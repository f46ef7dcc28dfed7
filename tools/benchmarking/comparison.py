"""Tables and plots of a comparison of global branches: what each learned, and what it costs.

A result is the record of one training run: ``row`` (the branch's label), ``rate`` (of learning),
``seed``, ``scores`` (pairs of iteration and mIoU), ``cpu_minutes`` and ``config`` (its digest). The
first seed was trained with every rate, the others with the best one of their row.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch._subclasses.fake_tensor import FakeTensorMode

from mmconvneur.utils.files import write_atomically
from tables import markdown

from .backbones import build
from .cases import Case, Contestant, make_step, run_case
from .measure import count_macs
from .report import save, spread

DETECTOR = (800, 1280)  # pixels
ROUNDS = 5


class Finished:
    """The records of finished runs in one file, found again by the digest of their config."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        records = json.loads(path.read_text()) if path.is_file() else []
        self.records = {record['config']: record for record in records}

    def add(self, record: dict) -> None:
        self.records[record['config']] = record
        lines = map(json.dumps, self.records.values())
        write_atomically(self.path, '[\n{}\n]\n'.format(',\n'.join(lines)))


def final(result: dict) -> float:
    return result['scores'][-1][1]


def by_row(results: list[dict]) -> dict[str, list[dict]]:
    rows = {}
    for result in results:
        rows.setdefault(result['row'], []).append(result)
    return rows


def best_rate(runs: list[dict]) -> float:
    """The rate at which the first seed of a row came farthest."""
    return max((r for r in runs if r['seed'] == runs[0]['seed']), key=final)['rate']


def at_best(runs: list[dict]) -> list[dict]:
    """One run per seed."""
    return [r for r in runs if r['rate'] == best_rate(runs)]


def costs(backbones: dict[str, dict], size: tuple[int, int], batch_size: int) -> dict[str, dict]:
    """Per row: training step at a size in pixels, and MACs of a forward pass there and at DETECTOR.

    MACs are counted without computing, so that they are known also where memory would not do.
    """
    contestants = [Contestant(row, b, 'contiguous', 'eager') for row, b in backbones.items()]
    case = Case(*size, batch_size, 'float32', 'train')
    cpu = torch.device('cpu')
    found = {
        entry['backbone']: entry
        for entry in run_case(case, contestants, contestants[0].label, ROUNDS, cpu)
    }
    for row, backbone in backbones.items():
        model = build(backbone).eval().requires_grad_(False)
        for name, (height, width) in dict(own=size, detector=DETECTOR).items():
            with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without values
                image = torch.empty(1, 3, height, width)
                step = make_step(model, image, Case(height, width, 1, 'float32', 'forward'))
                found[row][f'macs_{name}'] = count_macs(step)
    return found


def accuracy_table(results: list[dict]) -> str:
    rates = sorted({r['rate'] for r in results})
    first, *others = dict.fromkeys(r['seed'] for r in results)
    lines = []
    for row, runs in by_row(results).items():
        grid = {r['rate']: final(r) for r in runs if r['seed'] == first}
        scores = [final(r) for r in at_best(runs)]
        deviation = f' ± {statistics.stdev(scores):.1f}' if len(scores) > 1 else ''
        lines.append(
            [row, *(f'{grid[rate]:.1f}' for rate in rates), f'{best_rate(runs):g}']
            + [f'{score:.1f}' for score in scores[1:]]
            + [f'**{statistics.mean(scores):.1f}**{deviation}', f'{statistics.median(scores):.1f}']
            + [f'{max(r["cpu_minutes"] for r in runs):.1f}']
        )
    header = [f'seed {first}, rate {rate:g}' for rate in rates] + ['best rate']
    header += [f'seed {seed}' for seed in others] + ['mean ± deviation', 'median', 'CPU min']
    return markdown(['global branch', *header], lines)


def cost_table(found: dict[str, dict], size: tuple[int, int]) -> str:
    lines = [
        [row, f'{c["params"] / 1e3:.1f}', f'{c["macs_own"] / 1e6:.1f}']
        + [f'{c["macs_detector"] / 1e9:.2f}', spread(c, 'time_ms', '.0f')]
        + [f'{c["memory_bytes"] / 2**20:.0f}']
        for row, c in found.items()
    ]
    own, detector = (f'{height}x{width}' for height, width in (size, DETECTOR))
    header = [
        'k params',
        f'M MACs at {own}',
        f'G MACs at {detector}',
        'ms per step',
        'MiB per step',
    ]
    return markdown(['global branch', *header], lines)


def plot_costs(results: list[dict], found: dict[str, dict], path: Path) -> None:
    """A line per branch, the best at the top: mIoU of every seed, and beside it the cost."""
    rows = {row: [final(r) for r in at_best(runs)] for row, runs in by_row(results).items()}
    rows = dict(sorted(rows.items(), key=lambda pair: statistics.median(pair[1])))
    figure = Figure((9, 1 + 0.27 * len(rows)), layout='constrained')
    scores, macs = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, values in rows.items():
        scores.plot(values, [row] * len(values), 'o-', color='C0', alpha=0.6)
        scores.plot(statistics.median(values), row, '|', color='C0', markersize=14)
        macs.plot(found[row]['macs_detector'] / 1e9, row, 's', color='C1')
    scores.set(xlim=(0, 100), xlabel='mIoU: seeds (dots) and their median (bar)')
    macs.set(xscale='log', xlabel='G MACs of the backbone at {}x{}'.format(*DETECTOR))
    macs.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    macs.xaxis.set_major_formatter('{x:g}')
    macs.xaxis.set_minor_formatter(NullFormatter())
    for axis in scores, macs:
        axis.grid(alpha=0.3)
        axis.margins(y=0.03)
        axis.spines[['top', 'right']].set_visible(False)
    save(figure, path)
