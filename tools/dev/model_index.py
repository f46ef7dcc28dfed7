"""The index of released models and its table in the README, as a release changes them."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from mmconvneur.apis.model_zoo import metrics_of, read_index, task_of
from mmconvneur.utils.files import write_atomically
from mmconvneur.weights.reading import SCHEMES

METAFILE, README = 'configs/metafile.yml', 'README.md'
TABLE_BEGIN, TABLE_END = '<!-- models: begin -->\n', '<!-- models: end -->\n'


@torch.no_grad()
def golden_maps(backbone: nn.Module) -> list[Tensor]:
    """The maps of a fixed image: the same weights give the same ones on every machine."""
    image = torch.linspace(0, 99, 3 * 64 * 96).sin().reshape(1, 3, 64, 96)
    return [feature.clone() for feature in backbone.eval()(image)]


def table(entries: list[dict]) -> str:
    """The entries as Markdown, with links as in the index: relative to the repository."""
    if not entries:
        return 'No model is released yet.\n'
    rows = [
        ('name', 'task', 'parameters', 'metric', 'config', 'checkpoint', 'size'),
        ('---',) * 7,
    ]
    for entry in entries:
        metadata, metrics = entry['Metadata'], metrics_of(entry)
        rows.append(
            (
                f'`{entry["Name"]}`',
                task_of(entry),
                f'{metadata["Parameters"] / 1e6:.2f} M',
                ', '.join(f'{name} {value:.1f}' for name, value in metrics.items()),
                f'[config]({entry["Config"]})',
                f'[checkpoint]({entry["Weights"]})',
                f'{metadata["File Size (MB)"]} MB',
            )
        )
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def with_table(readme: str, entries: list[dict]) -> str:
    """A README with the table of the entries between its two markers."""
    before, rest = readme.split(TABLE_BEGIN)
    _, after = rest.split(TABLE_END)
    return before + TABLE_BEGIN + table(entries) + TABLE_END + after


def release(repository: Path, entry: dict) -> None:
    """Put an entry into metafile and README; of the same name, it replaces entry and files."""
    metafile = yaml.safe_load((repository / METAFILE).read_text())
    replaced = [model for model in metafile['Models'] if model['Name'] == entry['Name']]
    models = [model for model in metafile['Models'] if model not in replaced]
    metafile['Models'] = sorted([*models, entry], key=lambda model: model['Name'])
    text = yaml.safe_dump(metafile, sort_keys=False, allow_unicode=True)
    write_atomically(repository / METAFILE, text)
    readme = with_table((repository / README).read_text(), read_index(repository))
    write_atomically(repository / README, readme)
    for old in {model['Weights'] for model in replaced} - {entry['Weights']}:
        if not old.startswith(SCHEMES):
            weights = repository / old
            for file in weights.parent.glob(f'{weights.stem}.*'):
                file.unlink()
