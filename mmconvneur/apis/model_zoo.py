"""Released models by their short names.

What OpenMMLab's functions take first, a config and its weights, is ``paths``::

    DetInferencer(*released('mask_rcnn_convneur_m1_sample').paths)('image.png', out_dir='pictures')

The models are listed by ``model-index.yml`` in OpenMMLab's format, where ``Weights`` is a path in
this repository or a URL and ``SHA256`` of ``Metadata`` the hash of that file.
``tools/publish_checkpoint.py`` adds to them.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple

import yaml

from ..errors import UsageError
from ..utils.files import HOME
from ..weights.files import SCHEMES, fetch, file_hash, locate

INDEX = 'model-index.yml'


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
    found = file_hash(path)
    if found != expected:
        raise UsageError(
            f'{path} has the sha256 {found}, but that of {entry["Name"]} is {expected}: '
            'delete the file and get it again'
        )
    return path


def read_index(home: Path) -> list[dict]:
    """The entries of all metafiles that the index in a folder imports."""
    metafiles = yaml.safe_load((home / INDEX).read_text())['Import']
    return [m for file in metafiles for m in yaml.safe_load((home / file).read_text())['Models']]


def task_of(entry: dict) -> str:
    return ', '.join(result['Task'] for result in entry['Results'])


def metrics_of(entry: dict) -> dict[str, float]:
    return {name: value for r in entry['Results'] for name, value in r['Metrics'].items()}
