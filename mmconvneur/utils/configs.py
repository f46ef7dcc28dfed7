"""Configs: found by path or name, overridden, and checked before anything is built."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard, TypeVar

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, METRICS, MODELS, Registry
from mmengine.runner import FlexibleRunner, Runner

from ..errors import UsageError, UsageErrors
from ..models.backbones.base import StagedBackbone, resolve_out_indices
from ..weights.reading import load_safely
from .environment import fitting, installed
from .files import HOME
from .widths import beyond

T = TypeVar('T')
SHIPPED = HOME / 'configs'
FAMILIES = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
VISUALIZERS = {
    'mmdet': 'mmdet.DetLocalVisualizer',
    'mmseg': 'mmseg.SegLocalVisualizer',
    'mmpretrain': 'mmpretrain.UniversalVisualizer',
}
SAMPLE_COMMAND = 'python tools/make_sample_data.py'
SPLITS = ('train', 'val', 'test')
SAMPLE_TASKS = ('sample', 'cue', 'legend', 'fashion')
# Of a config, what MMEngine's runners take as arguments or ask the config for.
RUNNER_KEYS = {
    *(key for runner in (Runner, FlexibleRunner) for key in inspect.signature(runner).parameters),
    *(
        key
        for runner in (Runner, FlexibleRunner)
        for key in re.findall(r"self\.cfg\.get\(\s*'(\w+)'", inspect.getsource(runner))
    ),
} - {'cfg'}
TOOL_KEYS = {'runner_type', 'test_pipeline', 'tta_model', 'tta_pipeline'}


_base_of_mmengine = Config._get_cfg_path


def find_base(name: str, config: str) -> tuple[str, str | None]:
    """Path and scope of an entry of ``_base_``: also of ours, ``mmconvneur::NAME.py``.

    MMEngine has a table of packages that may stand before ``::``, and wants a folder after it.
    Its table knows mmseg by the name of OpenMMLab's release alone.

    Raises:
        UsageError: If there is no such config of ours.
    """
    package, separator, rest = name.partition('::')
    if separator and package == 'mmconvneur':
        shipped = SHIPPED / rest
        if not shipped.is_file():
            inside = SHIPPED in shipped.parents and shipped.parent.is_dir()
            folder = shipped.parent if inside else SHIPPED
            files = sorted(f.relative_to(SHIPPED).as_posix() for f in folder.glob('*.py'))
            raise UsageError(f'_base_={name!r} does not exist: choose one of {", ".join(files)}')
        return str(shipped), None
    try:
        return _base_of_mmengine(name, config)
    except ModuleNotFoundError:  # OneDL's mmseg comes from a package of another name
        spec = find_spec(package)
        path = Path(spec.origin).parent / '.mim/configs' / rest if spec and spec.origin else None
        if path is None or not path.is_file():
            raise
        return str(path), package


Config._get_cfg_path = staticmethod(find_base)


def load_config(args: argparse.Namespace) -> Config:
    """The config of ``args.config``, overridden by the command line, one family throughout.

    From here on files are read without running code from them, unless ``args.trust_checkpoint``.
    Classes of a pure-Python config are named, as MMEngine does when it writes one to a file.

    Raises:
        UsageError: If it does not exist, cannot be read, or mixes two families.
    """
    load_safely(getattr(args, 'trust_checkpoint', False))
    path = find_config(args.config)
    try:
        cfg = Config.fromfile(path)
        cfg = Config(cfg.to_dict(), cfg.text, cfg.filename, cfg.env_variables)
        check_options(cfg, args.cfg_options)
        for option, value in args.cfg_options.items():
            for key in reversed(option.split('.')):
                value = {key: value}
            make_room(cfg, value)
        cfg.merge_from_dict(args.cfg_options)
    except UsageError:
        raise
    except Exception as error:
        check_installed(*(name for name in FAMILIES if f'{name} is not installed' in str(error)))
        raise UsageError(f'config {path} cannot be read: {error}') from error
    check_family(cfg)
    check_pretrained(cfg)
    fill_in(cfg)
    return cfg


def fill_in(cfg: Config) -> None:
    """Give a config what new-style ones leave to their classes: default scope and visualizer."""
    if scope := family(cfg):
        cfg.default_scope = cfg.get('default_scope') or scope
        own = dict(type=VISUALIZERS[scope], vis_backends=[dict(type='LocalVisBackend')])
        cfg.visualizer = cfg.get('visualizer') or own
        cfg.visualizer.setdefault('name', 'visualizer')


def check_options(cfg: Config, options: dict) -> None:
    """Raise ``UsageError`` for an option that nothing would read: a misspelt first part."""
    known = {*cfg, *RUNNER_KEYS, *TOOL_KEYS}
    for option in options:
        first = option.split('.')[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            cure = f'did you mean {near[0]}?' if near else f'choose one of {", ".join(sorted(cfg))}'
            raise UsageError(f'--cfg-options {option}: the config has no {first}; {cure}')


def make_room(part: object, given: dict) -> None:
    """Put an empty dict where ``given`` has a dict and a config ``None`` or nothing.

    MMEngine refuses to merge a dict with ``None``, and keeps a ``_delete_`` that deletes nothing.
    """
    for key, value in given.items():
        if not isinstance(value, dict):
            continue
        if isinstance(part, (dict, Config)):
            if part.get(key) is None:
                part[key] = ConfigDict()
            make_room(part[key], value)
        elif isinstance(part, list) and key.isdigit() and int(key) < len(part):
            make_room(part[int(key)], value)


def check_pretrained(cfg: Config) -> None:
    """Raise ``UsageErrors`` where mmseg's ``pretrained`` was left from the backbone before ours."""
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    network = resolve(MODELS, backbone.get('type'), scope_of(cfg))
    if not model.get('pretrained') or not is_subclass(network, StagedBackbone):
        return
    defaults = {name: p.default for name, p in inspect.signature(network).parameters.items()}
    options = {**defaults, **backbone}
    channels = network.resolve_arch(options['arch'])['channels']
    widths = [channels[i] for i in resolve_out_indices(options['out_indices'], len(channels))]
    parts = {
        name: model[name]
        for name in ('neck', 'decode_head', 'auxiliary_head')
        if isinstance(model.get(name), dict) and (name == 'neck' or not model.get('neck'))
    }
    wrong = [name for name, part in parts.items() if beyond(part.get('in_index', 0), len(widths))]
    lines = [
        f'{name}=dict(in_channels={taken(part, widths)})'
        for name, part in parts.items()
        if name not in wrong
    ]
    raise UsageErrors(
        [
            f'model.pretrained={model["pretrained"]!r} is of another backbone: write in model '
            f'{", ".join(["pretrained=None", *lines])}, and weights as init_cfg of the backbone',
            *(
                f'model.{name}.in_index={parts[name].in_index}, but the backbone gives '
                f'{len(widths)} maps of {widths} channels: change one of them'
                for name in wrong
            ),
        ]
    )


def taken(part: dict, widths: Sequence[int]) -> list[int] | int:
    """The widths of the maps that a neck or head with such a config takes, by its ``in_index``."""
    index = part.get('in_index')
    if isinstance(index, int):
        return widths[index]
    return [widths[i] for i in index] if index is not None else list(widths)


def find_config(name: str) -> Path:
    """A config file by its path, or a shipped one by its name."""
    path = Path(name)
    if path.is_dir():
        raise UsageError(f'config {name} is a folder: give the path of a config in it')
    shipped = SHIPPED / f'{path.stem}.py'
    if not (path.is_file() or shipped.is_file()):
        names = ', '.join(sorted(path.stem for path in SHIPPED.glob('*.py')))
        raise UsageError(f'config {name} does not exist: give a path, or one of {names}')
    return path if path.is_file() else shipped


def check_family(cfg: Config) -> None:
    """Raise ``UsageError`` where model, heads, data and metrics are not of one family.

    mmseg may borrow heads from mmdet (Mask2Former does), but its model, data and metrics may not.
    """
    if 'model' in cfg and not (cfg.model or {}).get('type'):
        raise UsageError("model of the config has no type: write model=dict(type='MaskRCNN', ...)")
    scope = family(cfg)
    if scope is None:
        return
    check_installed(scope)
    others = [name for name in FAMILIES if name != scope]
    for where, registry, part in typed_parts(cfg):
        found = resolve(registry, part['type'], scope_of(cfg))
        if found is None:
            theirs = (name for name in others if resolve(registry, part['type'], name) is not None)
            other = next(theirs, scope)
        else:
            other = family_of(found) or scope
        borrowed = '.' in where and found is not None and (scope, other) != ('mmdet', 'mmseg')
        if other != scope and not borrowed:
            raise UsageError(
                f'{where} is {type_name(part)}, which is for {FAMILIES[other]} ({other}), but the '
                f"config is for {FAMILIES[scope]} (default_scope='{scope}'): use one of the two "
                'throughout'
            )


def check_installed(*names: str) -> None:
    """Raise ``UsageError`` for a family that is not installed, or lacks torchvision."""
    for name in names:
        if find_spec(name) is None:
            (wanted,) = fitting([name], installed(sys.path))
            raise UsageError(
                f'the config is for {FAMILIES[name]}, and {name} is not installed: '
                f'python -m pip install {wanted}'
            )
    if 'mmpretrain' in names:
        cures = {
            'torchvision': f'install the release for PyTorch {torch.__version__}, from where that '
            'came from',
            'mmpretrain': 'install what it misses; if transformers is too new for it, an older one',
        }
        for name, cure in cures.items():
            try:
                import_module(name)
            except Exception as error:  # MMEngine would not say why it fails
                raise UsageError(
                    f'classification needs {name}, which does not load ({error}): {cure}'
                ) from error


def family(cfg: Config) -> str | None:
    """One of ``FAMILIES``: the default scope, else where the model comes from.

    New-style configs need no scope, for their types are classes. A model that is of neither is of
    family ``None``.

    Raises:
        UsageError: If the default scope is no package that knows the model.
    """
    scope = cfg.get('default_scope')
    if scope in FAMILIES or 'model' not in cfg:
        return scope
    model = resolve(MODELS, cfg.model.get('type'), scope_of(cfg))
    if model is None:
        raise UsageError(f'default_scope={scope!r}: choose {" or ".join(map(repr, FAMILIES))}')
    return family_of(model)


def family_of(kind: object) -> str | None:
    """The family that a class, or the nearest of its bases, comes from."""
    roots = (base.__module__.partition('.')[0] for base in getattr(kind, '__mro__', ()))
    return next((root for root in roots if root in FAMILIES), None)


def scope_of(cfg: Config) -> str:
    return cfg.get('default_scope') or 'mmengine'


def resolve(registry: Registry, kind: object, scope: str) -> object | None:
    """What a ``type`` names in a scope, or is.

    It is ``None`` for an unknown name and a package that is not installed.
    """
    if not isinstance(kind, str):
        return kind
    if find_spec(scope) is None:
        return None
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(kind)


def is_subclass(kind: object, base: type[T]) -> TypeGuard[type[T]]:
    return inspect.isclass(kind) and issubclass(kind, base)


def is_called(kind: object, *names: str) -> bool:
    """Whether a class, or one of its bases, has one of these names: its package may be absent."""
    return any(base.__name__ in names for base in getattr(kind, '__mro__', ()))


def type_name(part: dict) -> str:
    kind = part.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def typed_parts(cfg: Config) -> Iterator[tuple[str, Registry, ConfigDict]]:
    """Where, registry and config of the parts that tell detection from segmentation."""
    if 'model' in cfg:
        yield 'model', MODELS, cfg.model
        for name, value in cfg.model.items():
            for part in as_list(value) if name.endswith('head') else ():
                yield f'model.{name}', MODELS, part
    for split in SPLITS:
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            yield f'{split}_dataset', DATASETS, dataset
        for metric in metrics(cfg, split):
            yield f'{split}_evaluator', METRICS, metric


def as_list(value: object) -> list[dict]:
    """The configs in what may be one, several or none; built objects are left out."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [value for value in values if isinstance(value, dict) and 'type' in value]


def metrics(cfg: Config, split: str) -> list[dict]:
    """The configs of the metrics that evaluate a split."""
    around = evaluator_options(cfg, split)
    return as_list(around['metrics'] if 'metrics' in around else cfg.get(f'{split}_evaluator'))


def evaluator_options(cfg: Config, split: str) -> dict:
    """Of one metric, or of an evaluator around several, such as MMEngine's."""
    evaluator = cfg.get(f'{split}_evaluator')
    return evaluator if isinstance(evaluator, dict) else {}


def datasets(dataloader: dict | None) -> Iterator[ConfigDict]:
    """The data sets of a dataloader's config, without wrappers such as RepeatDataset."""
    waiting = as_list((dataloader or {}).get('dataset'))
    while waiting:
        dataset = waiting.pop(0)
        inner = as_list(dataset.get('dataset')) + as_list(dataset.get('datasets'))
        if inner:
            waiting = inner + waiting
        else:
            yield dataset


def check_data(cfg: Config, *splits: str) -> None:
    """Raise ``UsageErrors`` for the files and folders of the data that are missing or empty."""
    missing = [text for split in splits for text in missing_data(cfg, split)]
    if missing:
        raise UsageErrors(missing)


def missing_data(cfg: Config, split: str) -> Iterator[str]:
    """What the files and folders are whose data is missing or empty, and the cure."""
    for dataset in datasets(cfg.get(f'{split}_dataloader')):
        if (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
            continue
        root = dataset.get('data_root') or ''
        task = Path(root).name
        command = SAMPLE_COMMAND + f' --task {task}' * (task in SAMPLE_TASKS)
        prefix = dataset.get('data_prefix') or {}
        prefix = prefix if isinstance(prefix, dict) else dict(img_path=prefix)  # mmpretrain's
        for what, given in {'annotations': dataset.get('ann_file'), **prefix}.items():
            if not given or not isinstance(given, str):  # the data set itself says what it takes
                continue
            path = os.path.join(root, given)
            if '://' not in path and not is_filled(Path(path)):
                yield (
                    f'{path} is missing or empty: put the {split} {WHAT.get(what, what)} of '
                    f'{type_name(dataset)} there, or set data_root; the sample data is made by '
                    f'`{command}`'
                )


WHAT = {
    'annotations': 'annotation file',
    'img': 'images',
    'img_path': 'images',
    'seg_map_path': 'label maps',
}


def is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0
