"""Configs: found by path or name, overridden, and checked before anything is built."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, METRICS, MODELS, Registry
from mmengine.runner import Runner

from ..errors import UsageError
from ..models.backbones.base import StagedBackbone, resolve_out_indices
from .files import HOME

SHIPPED = HOME / 'configs'
FAMILIES = {'mmdet': 'detection', 'mmseg': 'segmentation'}
SAMPLE_COMMAND = 'python tools/make_sample_data.py'
SAMPLE_TASKS = ('sample', 'cue', 'legend')
OTHER_KEYS = {'auto_scale_lr', 'runner_type', 'strategy', 'tta_model', 'tta_pipeline'}


_base_of_mmengine = Config._get_cfg_path


def find_base(name: str, config: str) -> tuple[str, str | None]:
    """Path and scope of an entry of ``_base_``: also of ours, ``mmconvneur::NAME.py``.

    MMEngine has a table of packages that may stand before ``::``, and wants a folder after it.

    Raises:
        UsageError: If there is no such config of ours.
    """
    package, separator, ours = name.partition('::')
    if separator and package == 'mmconvneur':
        return str(shipped_config(ours)), None
    return _base_of_mmengine(name, config)


Config._get_cfg_path = staticmethod(find_base)


def load_config(args: argparse.Namespace) -> Config:
    """The config of ``args.config``, overridden by the command line, one family throughout.

    Classes of a pure-Python config are named, as MMEngine does when it writes one to a file.

    Raises:
        UsageError: If it does not exist, cannot be read, or mixes detection and segmentation.
    """
    path = find_config(args.config)
    try:
        cfg = Config.fromfile(path)
        cfg = Config(cfg.to_dict(), cfg.text, cfg.filename, cfg.env_variables)
        family = str(cfg.get('model', {}).get('type')).partition('.')[0]
        if cfg.get('default_scope') is None and family in FAMILIES:  # no scope where all is named
            cfg.default_scope = family
        check_options(cfg, args.cfg_options)
        cfg.merge_from_dict(args.cfg_options)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f'config {path} cannot be read: {error}') from error
    check_family(cfg)
    check_widths(cfg)
    return cfg


def check_options(cfg: Config, options: dict) -> None:
    """Raise ``UsageError`` for an option that nothing would read: a misspelt first part."""
    known = set(cfg) | set(inspect.signature(Runner).parameters) | OTHER_KEYS
    for option in options:
        first = option.split('.')[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            cure = f'did you mean {near[0]}?' if near else f'choose one of {", ".join(sorted(cfg))}'
            raise UsageError(f'--cfg-options {option}: the config has no {first}; {cure}')


def check_widths(cfg: Config) -> None:
    """Raise ``UsageError`` unless the neck, or else the head, takes what our backbone gives."""
    model = cfg.get('model', {})
    backbone = model.get('backbone', {})
    network = MODELS.get(str(backbone.get('type')))
    if not inspect.isclass(network) or not issubclass(network, StagedBackbone):
        return
    options = {name: p.default for name, p in inspect.signature(network).parameters.items()}
    options |= backbone
    arch = network.resolve_arch(options['arch'])
    stages = resolve_out_indices(options['out_indices'], len(arch['channels']))
    channels = [arch['channels'][i] for i in stages]
    for name in ('neck', 'decode_head'):
        wanted = (model.get(name) or {}).get('in_channels')
        if isinstance(wanted, (list, tuple)):
            if list(wanted) != channels:
                raise UsageError(
                    f'model.{name}.in_channels={list(wanted)}, but the backbone gives {channels}: '
                    'change one of them'
                )
            return


def find_config(name: str) -> Path:
    """A config file by its path, or a shipped one by its name."""
    return Path(name) if Path(name).is_file() else shipped_config(f'{Path(name).stem}.py')


def shipped_config(name: str) -> Path:
    """A shipped config, or a base of them, by its path in their folder."""
    path = SHIPPED / name
    if not path.is_file():
        names = ', '.join(sorted(path.stem for path in SHIPPED.glob('*.py')))
        raise UsageError(f'config {name} does not exist: give a path, or one of {names}')
    return path


def check_family(cfg: Config) -> None:
    """Raise ``UsageError`` unless model, heads, data and metrics fit ``default_scope``.

    mmseg may borrow heads from mmdet (Mask2Former does), but its model, data and metrics may not.
    """
    scope = cfg.get('default_scope')
    if scope not in FAMILIES:
        raise UsageError(f'default_scope={scope!r}: choose {" or ".join(map(repr, FAMILIES))}')
    other = next(family for family in FAMILIES if family != scope)
    for where, registry, part in typed_parts(cfg):
        name = part['type']
        if '.' in name:
            wrong = name.startswith(f'{other}.') and (scope == 'mmdet' or '.' not in where)
        else:
            wrong = not knows(registry, scope, name) and knows(registry, other, name)
        if wrong:
            raise UsageError(
                f'{where} is {name}, which is for {FAMILIES[other]} ({other}), but the config is '
                f"for {FAMILIES[scope]} (default_scope='{scope}'): use one of the two throughout"
            )


def typed_parts(cfg: Config) -> Iterator[tuple[str, Registry, ConfigDict]]:
    """Where, registry and config of the parts that tell detection from segmentation."""
    if 'model' in cfg:
        yield 'model', MODELS, cfg.model
        for name, part in cfg.model.items():
            if name.endswith('head') and isinstance(part, dict):
                yield f'model.{name}', MODELS, part
    for split in ('train', 'val', 'test'):
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            yield f'{split}_dataset', DATASETS, dataset
        for metric in as_list(cfg.get(f'{split}_evaluator')):
            yield f'{split}_evaluator', METRICS, metric


def knows(registry: Registry, scope: str, name: str) -> bool:
    """Whether a family registers a type; a family that is not installed knows none."""
    if find_spec(scope) is None:
        return False
    with registry.switch_scope_and_registry(scope) as scoped:
        return scoped.get(name) is not None


def as_list(value: dict | list[dict] | None) -> list[dict]:
    return [value] if isinstance(value, dict) else list(value or [])


def datasets(dataloader: dict | None) -> Iterator[ConfigDict]:
    """The data sets of a dataloader's config, without wrappers such as RepeatDataset."""
    waiting = as_list((dataloader or {}).get('dataset'))
    while waiting:
        dataset = waiting.pop()
        inner = as_list(dataset.get('dataset')) + as_list(dataset.get('datasets'))
        if inner:
            waiting += inner
        else:
            yield dataset


def check_data(cfg: Config, *splits: str) -> None:
    """Raise ``UsageError`` for the first file or folder of the data that is missing or empty."""
    for split in splits:
        for dataset in datasets(cfg.get(f'{split}_dataloader')):
            root = dataset.get('data_root') or ''
            paths = {'annotations': dataset.get('ann_file'), **dataset.get('data_prefix', {})}
            for what, path in paths.items():
                path = os.path.join(root, path or '')
                if paths[what] and '://' not in path and not is_filled(Path(path)):
                    raise UsageError(
                        f'{path} is missing or empty: put the {split} {WHAT.get(what, what)} of '
                        f'{dataset.type} there, or set data_root; the sample data is made by '
                        f'`{sample_command(root)}`'
                    )


WHAT = {
    'annotations': 'annotation file',
    'img': 'images',
    'img_path': 'images',
    'seg_map_path': 'label maps',
}


def sample_command(root: str) -> str:
    """The command that makes the data of a task whose folder ``root`` is."""
    task = Path(root).name
    return f'{SAMPLE_COMMAND} --task {task}' if task in SAMPLE_TASKS else SAMPLE_COMMAND


def is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()
