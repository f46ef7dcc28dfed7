"""Results of a benchmark: one JSON file that grows case by case, and what is drawn from it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from rich.box import SIMPLE
from rich.table import Table

import mmconvneur.models
from mmconvneur.errors import UsageError
from mmconvneur.utils.environment import PROVIDERS, cpu_name
from mmconvneur.utils.files import write_atomically

from .cases import Case
from .measure import exponent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = 'benchmark.json'
ALLOCATOR = ('MALLOC_', 'LD_PRELOAD')  # variables that change it
OTHER_PACKAGES = ('mmconvneur', 'timm', 'transformers', 'mmpretrain', 'onedl-mmpretrain')


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
    return facts | allocator | dict(installed())


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
        self.data = dict(**settings, exponents=[], rows=[])
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
        self.data['exponents'] = exponents(self.rows)
        write_atomically(self.folder / RESULTS, json.dumps(self.data, indent=1))


def series(rows: list[dict]) -> Iterator[tuple[tuple, list[dict]]]:
    """``(batch size, dtype, backbone)`` and its rows, smallest image first."""

    def key(row: dict) -> tuple:
        return row['batch_size'], row['dtype'], row['backbone']

    for name, group in groupby(sorted(rows, key=key), key):
        yield name, sorted(group, key=pixels)


def pixels(row: dict) -> int:
    return row['height'] * row['width']


def exponents(rows: list[dict]) -> list[dict]:
    """p of time ~ pixels^p and of memory ~ pixels^p, where a backbone ran at several sizes."""
    fits = []
    for (batch_size, dtype, backbone), group in series(rows):
        sizes = [pixels(row) for row in group]
        if len(set(sizes)) > 1:
            fit = dict(batch_size=batch_size, dtype=dtype, backbone=backbone)
            for name in ('time_ms', 'memory_bytes'):
                costs = [row[name] for row in group]
                fit[name] = exponent(sizes, costs) if all(costs) else None
            fits.append(fit)
    return fits


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


def exponents_table(fits: list[dict]) -> Table:
    table = Table('backbone', 'batch', 'dtype', 'time ~ pixels^', 'memory ~ pixels^', box=SIMPLE)
    for fit in fits:
        powers = ('-' if fit[n] is None else f'{fit[n]:.3f}' for n in ('time_ms', 'memory_bytes'))
        table.add_row(fit['backbone'], str(fit['batch_size']), fit['dtype'], *powers)
    return table


def plot(rows: list[dict], path: Path) -> None:
    """A panel per batch size and dtype: time by pixels, or of a single size by parameters."""
    plt = pyplot()
    panels = [(key, list(group)) for key, group in groupby(series(rows), lambda s: s[0][:2])]
    names = dict.fromkeys(row['backbone'] for row in rows)
    palette = plt.cm.tab20.colors
    colors = dict(zip(names, cycle(palette[::2] + palette[1::2]), strict=False))
    power = {(f['batch_size'], f['dtype'], f['backbone']): f['time_ms'] for f in exponents(rows)}
    sizes = {pixels(r): f'{r["height"]}x{r["width"]}' for r in rows}
    figure, axes = plt.subplots(
        len(panels), figsize=(9, 4.5 * len(panels)), layout='constrained', squeeze=False
    )
    for axis, ((batch_size, dtype), lines) in zip(axes[:, 0], panels, strict=True):
        for key, group in lines:
            label = f'{key[2]}: pixels^{power[key]:.2f}' if key in power else key[2]
            places = [pixels(r) if len(sizes) > 1 else r['params'] / 1e6 for r in group]
            medians = [r['time_ms'] for r in group]
            errors = [[abs(r['time_ms'] - r[f'time_ms_{q}']) for r in group] for q in ('q1', 'q3')]
            axis.errorbar(places, medians, errors, marker='o', color=colors[key[2]], label=label)
        case = f'batch {batch_size}, {dtype}'
        if len(sizes) > 1:
            axis.set(xscale='log', yscale='log', xlabel='pixels of the image', title=case)
            axis.set_xticks(list(sizes), sizes.values(), rotation=60)
            axis.tick_params('x', which='minor', bottom=False, labelbottom=False)
        else:
            axis.set(xlabel='million parameters', xlim=(0, None), ylim=(0, None))
            axis.set_title(f'{case}, {next(iter(sizes.values()))}')
        axis.set_ylabel('ms')
        axis.legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
        axis.spines[['top', 'right']].set_visible(False)
    save(figure, path)


def pyplot() -> ModuleType:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    return plt


def save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    pyplot().close(figure)
    write_atomically(path, content.getvalue())
