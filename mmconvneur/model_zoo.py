"""Released models by their short names.

What OpenMMLab's functions take first, a config and its weights, is ``paths``::

    from mmconvneur.model_zoo import released
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    detector = released('mask_rcnn_convneur_m1_sample')
    DetInferencer(*detector.paths)('image.png', out_dir='pictures')
    inference_detector(init_detector(*detector.paths, device='cpu'), 'image.png')

    segmentor = released('upernet_convneur_m1_sample')
    MMSegInferencer(*segmentor.paths)('image.png', out_dir='pictures')
    inference_model(init_model(*segmentor.paths, device='cpu'), 'image.png')

``tools/demo.py`` does it on the command line. The models are listed by ``model-index.yml`` in
OpenMMLab's format, where ``Weights`` is a path in this repository or a URL and ``SHA256`` of
``Metadata`` the hash of that file. ``tools/publish_checkpoint.py`` adds to them.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor, nn

from .checkpoints import AtomicBackend
from .errors import UsageError
from .weights.reading import SCHEMES, fetch, locate

HOME = Path(__file__).parent / '.mim'  # links in a checkout, the files themselves in a wheel
INDEX, METAFILE, README = 'model-index.yml', 'configs/metafile.yml', 'README.md'
TABLE_BEGIN, TABLE_END = '<!-- models: begin -->\n', '<!-- models: end -->\n'


class Release(NamedTuple):
    """A released model.

    Attributes:
        name: Its short name.
        config: Path of its config.
        weights: Path of its weights; the sha256 of the file is that of the index.
        task: What it does, in words.
        metrics: Name -> value, of the weights as they are stored.
    """

    name: str
    config: str
    weights: str
    task: str
    metrics: dict[str, float]

    @property
    def paths(self) -> tuple[str, str]:
        return self.config, self.weights


def released(name: str) -> Release:
    """A released model, downloaded with a bar where its weights are not here yet.

    Raises:
        UsageError: If there is no such model, or its weights cannot be got or are not the released
            ones.
    """
    entries = {entry['Name']: entry for entry in read_index(HOME)}
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f'did you mean {near[0]}? ' if near else ''
        choices = f'choose one of {", ".join(entries)}' if entries else 'none is released yet'
        raise UsageError(f'unknown model {name!r}: {hint}{choices}')
    entry = entries[name]
    config, weights = HOME / entry['Config'], verified_weights(entry)
    return Release(name, str(config), str(weights), task_of(entry), metrics_of(entry))


def find_weights(name: str) -> Path:
    """The weights of a path, a URL, or the short name of a released model.

    Raises:
        UsageError: As :func:`locate` and :func:`released`.
    """
    if Path(name).is_file() or Path(name).suffix or os.sep in name:
        return locate(name)
    return Path(released(name).weights)


def verified_weights(entry: dict) -> Path:
    """The file of an entry's weights, once its hash is found to be the entry's."""
    weights, expected = entry['Weights'], entry['Metadata']['SHA256']
    # fetch would say less of another hash: the whole one is compared here, also of a file it kept.
    path = fetch(weights, sha256='') if weights.startswith(SCHEMES) else HOME / weights
    if not path.is_file():
        raise UsageError(f'{path}, the weights of {entry["Name"]}, is missing: get it again')
    found = sha256(path)
    if found != expected:
        raise UsageError(
            f'{path} has the sha256 {found}, but that of {entry["Name"]} is {expected}: '
            'delete the file and get it again'
        )
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def golden_maps(backbone: nn.Module) -> list[Tensor]:
    """The maps of a fixed image: the same weights give the same ones on every machine."""
    image = torch.linspace(0, 99, 3 * 64 * 96).sin().reshape(1, 3, 64, 96)
    return [feature.clone() for feature in backbone.eval()(image)]


# --------------------------------------------------------------------------------------- the index
def read_index(home: Path) -> list[dict]:
    """The entries of all metafiles that the index in a folder imports."""
    metafiles = yaml.safe_load((home / INDEX).read_text())['Import']
    return [m for file in metafiles for m in yaml.safe_load((home / file).read_text())['Models']]


def task_of(entry: dict) -> str:
    return ', '.join(result['Task'] for result in entry['Results'])


def metrics_of(entry: dict) -> dict[str, float]:
    return {name: value for r in entry['Results'] for name, value in r['Metrics'].items()}


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
    AtomicBackend().put(text.encode(), repository / METAFILE)
    readme = with_table((repository / README).read_text(), read_index(repository))
    AtomicBackend().put(readme.encode(), repository / README)
    for old in {model['Weights'] for model in replaced} - {entry['Weights']}:
        if not old.startswith(SCHEMES):
            weights = repository / old
            for file in weights.parent.glob(f'{weights.stem}.*'):
                file.unlink()
