"""Results of a benchmark: one JSON file that grows case by case, and what is drawn from it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

import mmconvneur.models
from mmconvneur.errors import UsageError
from mmconvneur.utils.environment import PROVIDERS, cpu_name
from mmconvneur.utils.files import write_atomically

from .cases import Case

RESULTS = 'benchmark.json'
ALLOCATOR = ('MALLOC_', 'LD_PRELOAD')  # variables that change it
OTHER_PACKAGES = ('mmconvneur', 'timm', 'transformers')


def environment(device: torch.device) -> dict:
    """Hardware and versions that the times depend on."""
    facts = dict(
        cpu=cpu_name(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        models=fingerprint(),
    )
    if device.type == 'cuda':
        facts |= dict(
            gpu=torch.cuda.get_device_name(device),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )
    allocator = {name: v for name, v in os.environ.items() if name.startswith(ALLOCATOR)}
    return facts | allocator | dict(installed(), torch=torch.__version__)


def fingerprint() -> str:
    """Of the source of ``mmconvneur.models``, so that times of before and after a change differ."""
    source = sorted(Path(mmconvneur.models.__file__).parent.rglob('*.py'))
    return hashlib.sha256(b''.join(file.read_bytes() for file in source)).hexdigest()[:12]


def installed() -> Iterator[tuple[str, str]]:
    for name in (*(n for names in PROVIDERS.values() for n in names), *OTHER_PACKAGES):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


class Results:
    """The rows that are finished, kept in ``<folder>/benchmark.json``.

    Args:
        folder: Where the files go; an unfinished benchmark there is continued.
        settings: What was asked for. A benchmark of other settings or of another environment is
            not mixed with this one.

    Raises:
        UsageError: If the folder holds another benchmark.
    """

    def __init__(self, folder: Path, settings: dict) -> None:
        self.folder = folder
        self.data = dict(**settings, rows=[])
        if (folder / RESULTS).is_file():
            found = json.loads((folder / RESULTS).read_text())
            differing = [key for key, value in settings.items() if found.get(key) != value]
            if differing:
                raise UsageError(
                    f'{folder / RESULTS} holds another benchmark ({", ".join(differing)} differ): '
                    'choose another --out-dir, or remove it'
                )
            self.data = found
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> list[dict]:
        return self.data['rows']

    def of(self, case: Case) -> list[dict]:
        """The rows of a case, none if it has not run yet."""
        return [row for row in self.rows if case._asdict().items() <= row.items()]

    def add(self, rows: list[dict]) -> None:
        """Keep the rows of a case."""
        self.rows.extend(rows)
        write_atomically(self.folder / RESULTS, json.dumps(self.data, indent=1))


# ------------------------------------------------------------------------------------- for people
def results_table(rows: list[dict], case: Case, baseline: str) -> Table:
    """Median and quartiles of the rows of a case."""
    table = Table(title=str(case), title_justify='left', box=SIMPLE)
    table.add_column('backbone', overflow='fold')
    for name in ('ms', f'time / {baseline}', '% of matmul', 'M params', 'GMACs', 'MiB', 'kernels'):
        table.add_column(name, justify='right', overflow='fold')
    for row in rows:
        memory = row['memory_bytes']
        table.add_row(
            row['backbone'],
            spread(row, 'time_ms', '.1f'),
            spread(row, 'ratio', '.3f'),
            f'{100 * row["peak_fraction"]:.0f}',
            f'{row["params"] / 1e6:.2f}',
            f'{row["macs"] / 1e9:.2f}',
            '-' if memory is None else f'{memory / 2**20:.1f}',
            str(row['kernels'] or '-'),
        )
    return table


def spread(row: dict, name: str, form: str) -> str:
    return f'{row[name]:{form}} ({row[name + "_q1"]:{form}}-{row[name + "_q3"]:{form}})'


def plot(rows: list[dict], path: Path) -> None:
    """A panel per case: median time of each backbone with its quartiles, the fastest at the top."""
    cases: dict[str, list[dict]] = {}
    for row in rows:
        size = f'{row["height"]} x {row["width"]}'
        name = f'{size}, batch {row["batch_size"]}, {row["dtype"]}'
        cases.setdefault(name, []).append(row)
    heights = [0.8 + 0.25 * len(found) for found in cases.values()]
    figure = Figure((8, sum(heights)), layout='constrained')
    axes = figure.subplots(len(cases), height_ratios=heights, squeeze=False)
    for axis, (name, found) in zip(axes[:, 0], cases.items(), strict=True):
        found.sort(key=lambda row: -row['time_ms'])
        labels = [row['backbone'] for row in found]
        times = [row['time_ms'] for row in found]
        errors = [
            [abs(row['time_ms'] - row[f'time_ms_{q}']) for row in found] for q in ('q1', 'q3')
        ]
        axis.errorbar(times, labels, xerr=errors, fmt='o')
        axis.set(xlim=(0, None), ylim=(-0.5, len(found) - 0.5), xlabel='ms', title=name)
        axis.grid(axis='y', alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    write_atomically(path, content.getvalue())
