"""What the command-line tools share: arguments, configs, checks and one-line errors."""

from __future__ import annotations

import argparse
import difflib
import functools
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import DATASETS, METRICS, MODEL_WRAPPERS, MODELS, RUNNERS, Registry
from mmengine.runner import Runner

from .errors import UsageError
from .model_zoo import HOME
from .models import convneur, glnet
from .models.backbone import resolve_out_indices
from .sample_data import TASKS
from .weights.reading import load_safely

SHIPPED_CONFIGS = HOME / 'configs'
FAMILIES = {'mmdet': 'detection', 'mmseg': 'segmentation'}
SAMPLE_COMMAND = 'python tools/make_sample_data.py'
OTHER_KEYS = {'auto_scale_lr', 'runner_type', 'strategy', 'tta_model', 'tta_pipeline'}


# ---------------------------------------------------------------------------------------- errors
def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Print a user's mistake in one line on stderr and exit with status 1, without a traceback."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except Exception as error:
            message = usage_message(error)
            if message is None:
                raise
            print('error:', ' '.join(message.split()), file=sys.stderr)
            sys.exit(1)

    return run


def usage_message(error: BaseException | None) -> str | None:
    """What the user can mend, from the innermost such error of a chain; ``None`` if nothing."""
    message = None
    while error is not None:
        if isinstance(error, UsageError):
            message = str(error)
        elif isinstance(error, KeyError) and ' registry. ' in str(error):
            message = f'{error.args[0].split(". ")[0]}: check the spelling of this type'
        elif isinstance(error, TypeError) and 'unexpected keyword argument' in str(error):
            message = f'{error}: check the spelling of this option'
        elif isinstance(error, pickle.UnpicklingError) and message is None:
            message = (
                'a checkpoint holds more than tensors, and reading that can run any code: '
                'if you trust its source, add --trust-checkpoint'
            )
        elif isinstance(error, (FileNotFoundError, PermissionError)) and error.filename:
            message = f'{error.filename}: {error.strerror}'
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return message


# ------------------------------------------------------------------------------------- arguments
def common_parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every tool that runs a model."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    add_trust(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torchrun sets LOCAL_RANK; the older torch.distributed.launch passes an argument instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The way out for files that cannot be read safely, for every tool that reads any."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold more than weights; they can then run any code',
    )


def config_parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every tool that reads a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='path of a config, or the name of a shipped one')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='key=value, ...',
    )
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    try:
        return parser.parse_args()
    except ValueError:  # from DictAction
        raise UsageError('--cfg-options takes pairs of the form key=value') from None


# --------------------------------------------------------------------------------------- configs
def load_config(args: argparse.Namespace) -> Config:
    """The config of ``args.config``, overridden by the command line, one family throughout.

    Raises:
        UsageError: If it does not exist, cannot be read, or mixes detection and segmentation.
    """
    path = find_config(args.config)
    try:
        cfg = Config.fromfile(path)
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
    for name, network, default in (('ConvNeur', convneur, 't'), ('GLNet', glnet, 'stl')):
        if name in str(backbone.get('type')):
            arch = network.resolve_arch(backbone.get('arch', default))
            break
    else:
        return
    stages = resolve_out_indices(backbone.get('out_indices', (0, 1, 2, 3)), len(arch['channels']))
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
    shipped = SHIPPED_CONFIGS / f'{Path(name).stem}.py'
    for path in (Path(name), shipped):
        if path.is_file():
            return path
    names = ', '.join(sorted(path.stem for path in SHIPPED_CONFIGS.glob('*.py')))
    raise UsageError(f'config {name} does not exist: give a path, or one of {names}')


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


# ---------------------------------------------------------------------------------- data and files
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
    return f'{SAMPLE_COMMAND} --task {task}' if task in TASKS else SAMPLE_COMMAND


def is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()


# ------------------------------------------------------------------------------------------ running
def set_work_dir(cfg: Config, args: argparse.Namespace) -> None:
    """The work folder: from the command line, else from the config, else named after it."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)


def build_runner(cfg: Config, args: argparse.Namespace, hooks: list[Hook]) -> Runner:
    """MMEngine's runner for a config, with more hooks, on GPUs where there are any."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UsageError('--launcher pytorch needs torchrun: torchrun --nproc_per_node N tools/...')
    cfg.launcher = args.launcher
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        torch.distributed.init_process_group('gloo')  # MMEngine's launcher asks for GPUs
        cfg.model_wrapper_cfg = dict(
            type=CPUDistributedDataParallel.__name__,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    load_safely(args.trust_checkpoint)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """MMEngine's DDP for a model on the CPU, where there is no SyncBN and no device id."""

    def __init__(self, module: torch.nn.Module, device_ids: list[int], **kwargs) -> None:
        super().__init__(revert_sync_batchnorm(module), broadcast_buffers=False, **kwargs)
