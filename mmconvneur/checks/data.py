"""The data sets of a run, built once for the checks and for the runner."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from torch import nn

from ..utils.arguments import usage_message
from ..utils.configs import datasets, type_name
from .annotations import problem_of
from .findings import Finding, wrong

LOOKED_AT = 5000  # annotations of as many images are read, evenly spread


@dataclass
class Split:
    """The data of training, validation or testing.

    Attributes:
        dataset: As MMEngine builds it, with all wrappers; ``None`` if that failed.
        leaves: The data sets inside the wrappers; if that failed, those that can be built.
        failed: Why there is no ``dataset``.
        pixels: Of the label maps that were read, per label; ``None`` where there are none.
    """

    name: str
    loader: ConfigDict
    dataset: Any = None
    leaves: list[Any] = field(default_factory=list)
    failed: list[Finding] = field(default_factory=list)
    pixels: np.ndarray | None = None

    @functools.cached_property
    def looked_at(self) -> list[tuple[Any, list[dict]]]:
        """Each leaf with the annotations of at most ``LOOKED_AT`` images."""
        return [(leaf, list(infos(leaf, LOOKED_AT))) for leaf in self.leaves]


@dataclass
class Run:
    """What the checks look at: ``model`` is without memory, or ``None`` if it cannot be built."""

    cfg: Config
    splits: list[Split] = field(default_factory=list)
    model: nn.Module | None = None
    options: dict = field(default_factory=dict)
    original: Config | None = None
    input_shape: tuple[int, ...] | None = None
    resumes: bool = False

    @property
    def train(self) -> Split | None:
        return next((split for split in self.splits if split.name == 'train'), None)

    @property
    def by_epoch(self) -> bool:
        return (self.cfg.get('train_cfg') or {}).get('max_epochs') is not None


def open_split(cfg: Config, name: str, build_data: bool = True) -> Split | None:
    """Build the data of a split, or else as much of it as can be built."""
    loader = cfg.get(f'{name}_dataloader')
    if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
        return None
    split = Split(name, loader)
    if not build_data:
        return split
    try:
        split.dataset = build(loader['dataset'])
        split.leaves = list(leaves(split.dataset))
    except Exception as error:
        split.leaves, split.failed = open_leaves(split, error)
    return split


def build(cfg: dict) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools
        dataset = DATASETS.build(cfg)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    return dataset


def open_leaves(split: Split, error: Exception) -> tuple[list[Any], list[Finding]]:
    """The data sets that can be built alone, or that are empty, and what the others say."""
    found, failed = [], []
    for cfg in datasets(split.loader):
        try:
            leaf = DATASETS.build({**cfg, 'lazy_init': True})
        except Exception as reason:
            failed.append(unbuilt(split, cfg, reason))
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                leaf.full_init()
        except Exception as reason:
            if leaf.data_list or 'concatenate' not in str(reason):
                failed.append(unbuilt(split, cfg, reason, leaf))
                continue
        found.append(leaf)
    if not failed and all(number_of_images(leaf) for leaf in found):
        failed.append(unbuilt(split, split.loader['dataset'], error))
    return found, failed


def unbuilt(split: Split, cfg: dict, error: Exception, leaf: Any = None) -> Finding:
    reason = usage_message(error) or problem_of(leaf) or f'{type(error).__name__}: {error}'
    file = f' from {leaf.ann_file}' if getattr(leaf, 'ann_file', None) else ''
    return wrong(f'{split.name} data, {type_name(cfg)}{file}: {" ".join(reason.split())[:400]}')


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None:
        yield dataset
    for part in inner if isinstance(inner, (list, tuple)) else [inner] * (inner is not None):
        yield from leaves(part)


def number_of_images(leaf: Any) -> int:
    """0 for a data set that could not be built because it is empty."""
    return len(leaf) if getattr(leaf, '_fully_initialized', True) else len(leaf.data_list)


def infos(leaf: Any, most: int | None = None) -> Iterator[dict]:
    """The annotations of ``most`` images of a data set, evenly spread, as it hands them out."""
    number = number_of_images(leaf)
    if not hasattr(leaf, 'get_data_info'):
        return
    for index in evenly(range(number), most or number):
        yield leaf.get_data_info(index)


def evenly(items: Any, most: int) -> Any:
    """At most so many items of a sequence, evenly spread."""
    return items[:: -(-len(items) // most)] if items else items


def class_names(leaf: Any) -> list[str] | None:
    """The classes of a data set, or ``None`` if it has none or a string in their place."""
    classes = (getattr(leaf, 'metainfo', None) or {}).get('classes')
    return list(classes) if isinstance(classes, (list, tuple)) else None


def labels_of(info: dict) -> Iterator[Any]:
    """The classes of an image, or of the objects in it."""
    yield from np.atleast_1d(info.get('gt_label', [])).tolist()
    for instance in info.get('instances', ()):
        if 'bbox_label' in instance:
            yield instance['bbox_label']


def transforms(leaf: Any) -> list[Any]:
    return list(getattr(getattr(leaf, 'pipeline', None), 'transforms', []))


def is_local(leaf: Any) -> bool:
    """Whether a data set and its loading steps read ordinary files."""
    parts = [getattr(part, 'backend_args', None) for part in (leaf, *transforms(leaf))]
    return all((args or {}).get('backend', 'local') == 'local' for args in parts)


def processes() -> int:
    """How many processes train together, as torchrun, Slurm and MPI tell."""
    names = ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
    return int(next((os.environ[name] for name in names if name in os.environ), 1))
