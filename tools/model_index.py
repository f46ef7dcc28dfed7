"""The index of released models and its table in the README, as a release changes them."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmconvneur.apis.model_zoo import metrics_of, read_index, task_of
from mmconvneur.evaluation.names import METRICS
from mmconvneur.utils.files import write_atomically
from mmconvneur.weights.files import SCHEMES
from tables import markdown

METAFILE, README = 'configs/metafile.yml', 'README.md'
TABLE_BEGIN, TABLE_END = '<!-- models: begin -->\n', '<!-- models: end -->\n'


def index_entry(record: dict, data: str, weights: str, size: int) -> dict:
    """Entry of a release in the index, in OpenMMLab's format."""
    used = record['hardware']
    cpu, gpus = f'{used["cpu_cores"]} CPU cores ({used["cpu"]})', used['gpus']
    results = [
        dict(Task=task, Dataset=data, Metrics={name: round(factor * record['metrics'][key], 4)})
        for key, (task, name, factor) in METRICS.items()
        if key in record['metrics']
    ]
    return {
        'Name': record['name'],
        'In Collection': 'ConvNeur',
        'Config': record['config'],
        'Metadata': {
            'Training Data': data,
            **record['length'],
            'Training Resources': f'{len(gpus)}x {gpus[0]}' if gpus else cpu,
            'Parameters': record['parameters'],
            'File Size (MB)': round(size / 1e6, 1),
            'SHA256': record['sha256'],
        },
        'Results': results,
        'Weights': weights,
    }


def table(entries: list[dict]) -> str:
    """The entries as Markdown, with links as in the index: relative to the repository."""
    if not entries:
        return 'No model is released yet.\n'
    header = ('name', 'task', 'parameters', 'metric', 'config', 'checkpoint', 'size')
    rows = [
        (
            f'`{entry["Name"]}`',
            task_of(entry),
            f'{entry["Metadata"]["Parameters"] / 1e6:.2f} M',
            ', '.join(f'{name} {value:.1f}' for name, value in metrics_of(entry).items()),
            f'[config]({entry["Config"]})',
            f'[checkpoint]({entry["Weights"]})',
            f'{entry["Metadata"]["File Size (MB)"]} MB',
        )
        for entry in entries
    ]
    return markdown(header, rows) + '\n'


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
