"""Loops, samplers, workers and schedules of a config, and what the command line changed."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import InfiniteSampler
from mmengine.registry import (
    DATA_SAMPLERS,
    FUNCTIONS,
    HOOKS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISUALIZERS,
    Registry,
)
from torch.utils.data import DataLoader

from ..utils.configs import (
    RUNNER_KEYS,
    SPLITS,
    as_list,
    evaluator_options,
    is_called,
    is_subclass,
    metrics,
    resolve,
    scope_of,
    type_name,
)
from .data import Run, processes
from .findings import Finding, doubt, some, wrong

ENDLESS = ('MultiSourceSampler', 'GroupMultiSourceSampler')  # mmdet's, of no length
# What MMEngine takes out of the options of hooks, schedules and wrappers before it builds them, and
# what the wrapper has that --amp puts in.
OF_THE_RUNNER = {
    *('priority', 'convert_to_iter_based', 'optimizer', 'constructor', 'paramwise_cfg'),
    *('loss_scale', 'dtype', 'use_fsdp'),
}
LOADER = {
    *inspect.signature(DataLoader).parameters,
    *('num_batch_per_epoch', 'disable_subprocess_warning'),  # MMEngine's
}
NEEDS_WORKERS = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')


# Whole numbers of a config and the least of each. Loops take 12.0 too.
LEAST: dict[str, tuple[dict[str, int], Any]] = {
    'train_cfg': (dict(max_epochs=0, max_iters=0, val_interval=1), (int, float)),
    **{f'{split}_dataloader': (dict(batch_size=1, num_workers=0), int) for split in SPLITS},
}


def check_numbers(run: Run) -> Iterator[Finding]:
    """Lengths, sizes and numbers of workers are numbers that loops and loaders take."""
    for part, (least, kind) in LEAST.items():
        for name, low in least.items():
            value = (run.cfg.get(part) or {}).get(name, low)
            if value is not None and not (isinstance(value, kind) and value >= low):
                yield wrong(f'{part}.{name}={value!r}: give a whole number from {low} on')


def check_parts(run: Run) -> Iterator[Finding]:
    """Training, validation and testing have all of their parts or none; there is an optimizer."""
    for split in SPLITS:
        names = parts_of(split)
        absent = [name for name in names if run.cfg.get(name) is None]
        if 0 < len(absent) < len(names):
            yield wrong(
                f'the config has no {" and no ".join(absent)}, but '
                f'{" and ".join(name for name in names if name not in absent)}: give all three, or '
                'set all to None'
            )
    wrapper = run.cfg.get('optim_wrapper') if run.train else None
    if wrapper and 'constructor' not in wrapper and not wrapper.get('optimizer'):
        yield wrong("optim_wrapper has no optimizer: write optimizer=dict(type='AdamW', lr=...)")


def check_decay(run: Run) -> Iterator[Finding]:
    """There is a weight decay where paramwise_cfg scales it."""
    wrapper = (run.cfg.get('optim_wrapper') or {}) if run.train else {}
    constructor = wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
    if constructor != 'DefaultOptimWrapperConstructor':
        return
    scales = wrapper.get('paramwise_cfg') or {}
    custom = (scales.get('custom_keys') or {}).items()
    names = [f'{part}_decay_mult' for part in ('norm', 'bias', 'dwconv')]
    names = [name for name in names if name in scales]
    names += [f'custom_keys[{key!r}]' for key, of_key in custom if 'decay_mult' in of_key]
    if names and (wrapper.get('optimizer') or {}).get('weight_decay') is None:
        yield wrong(
            f'optim_wrapper.paramwise_cfg.{names[0]} scales the weight decay, but '
            'optim_wrapper.optimizer sets none: write weight_decay=0.05 there, or 0'
        )


def parts_of(split: str) -> tuple[str, str, str]:
    """What MMEngine asks for together."""
    last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
    return f'{split}_dataloader', f'{split}_cfg', last


def check_kinds(run: Run) -> Iterator[Finding]:
    """Hooks, loops, samplers, metrics, schedules and optimizers: of known types and options."""
    for place, registry, part in built_parts(run):
        # The families have no functions of their own.
        scope = 'mmengine' if registry is FUNCTIONS else scope_of(run.cfg)
        kind = resolve(registry, part['type'], scope)
        if kind is None:
            with registry.switch_scope_and_registry(scope) as scoped:
                known = {*registry.module_dict, *scoped.module_dict}
            near = difflib.get_close_matches(part['type'], known, n=3)
            yield wrong(
                f'{place}.type={part["type"]} is no {registry.name}'
                + f': did you mean {" or ".join(near)}?' * bool(near)
            )
            continue
        given = part.keys() - {'type', '_scope_'} - OF_THE_RUNNER
        options = options_of(kind)
        unknown = sorted(given - options.keys())
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in options.values()):
            near = difflib.get_close_matches(unknown[0], options, n=1)
            cure = f'did you mean {near[0]}?' if near else f'it has {some(options, 20)}'
            yield wrong(f'{place}: {type_name(part)} has no option {some(unknown)}; {cure}')


def options_of(kind: Any) -> dict[str, inspect.Parameter]:
    """What a class or function takes; MMEngine's schedulers hand ``**kwargs`` to their bases."""
    options: dict[str, inspect.Parameter] = {}
    of_mmengine = kind.__module__.startswith('mmengine.optim.scheduler')
    for base in kind.__mro__[:-1] if of_mmengine else [kind]:
        taken = inspect.signature(base).parameters
        options = {**taken, **options}
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            return {n: p for n, p in options.items() if p.kind is not p.VAR_KEYWORD}
    return options


def built_parts(run: Run) -> Iterator[tuple[str, Registry, dict]]:
    """Where, registry and config of all that the runner builds beside model and data sets."""
    cfg = run.cfg
    named = [
        ('custom_hooks', HOOKS, cfg.get('custom_hooks')),
        ('default_hooks', HOOKS, list((cfg.get('default_hooks') or {}).values())),
        ('visualizer', VISUALIZERS, cfg.get('visualizer')),
    ]
    if run.train:
        wrapper = cfg.get('optim_wrapper') or {}
        constructor = dict(type=wrapper['constructor']) if 'constructor' in wrapper else None
        named += [
            ('param_scheduler', PARAM_SCHEDULERS, cfg.get('param_scheduler')),
            ('optim_wrapper', OPTIM_WRAPPERS, wrapper),
            ('optim_wrapper.constructor', OPTIM_WRAPPER_CONSTRUCTORS, constructor),
            ('optim_wrapper.optimizer', OPTIMIZERS, wrapper.get('optimizer')),
        ]
    for split in run.splits:
        name, loader = split.name, split.loader
        named += [
            (f'{name}_cfg', LOOPS, cfg.get(f'{name}_cfg')),
            (f'{name}_evaluator', METRICS, metrics(cfg, name)),
            (f'{name}_dataloader.sampler', DATA_SAMPLERS, loader.get('sampler')),
            (f'{name}_dataloader.batch_sampler', DATA_SAMPLERS, loader.get('batch_sampler')),
            (f'{name}_dataloader.collate_fn', FUNCTIONS, loader.get('collate_fn')),
        ]
    for place, registry, given in named:
        yield from ((place, registry, part) for part in as_list(given))


# What these can measure, which they tell when they are built, or after the whole evaluation.
MEASURED = {
    'CocoMetric': ('metric', ('bbox', 'segm', 'proposal', 'proposal_fast')),
    'IoUMetric': ('iou_metrics', ('mIoU', 'mDice', 'mFscore')),
}


def check_metrics(run: Run) -> Iterator[Finding]:
    """A metric of COCO's kind or of IoU is asked for what it measures."""
    for split in run.splits:
        for metric in metrics(run.cfg, split.name):
            kind = resolve(METRICS, metric['type'], scope_of(run.cfg))
            for name, (option, choices) in MEASURED.items():
                given = metric.get(option) if is_called(kind, name) else None
                values = [given] if isinstance(given, str) else given or ()
                if unknown := [value for value in values if value not in choices]:
                    yield wrong(
                        f'{split.name}_evaluator.{option} has {some(unknown)}: choose of '
                        f'{", ".join(choices)}'
                    )


# What CocoMetric and IoUMetric give; of other metrics nothing is known.
OF_COCO = re.compile(
    r'coco/((bbox|segm)_mAP(_50|_75|_s|_m|_l)?|.+_precision|((bbox|segm|proposal)_)?AR.*)'
)
OF_IOU = re.compile('aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)')


def check_best(run: Run) -> Iterator[Finding]:
    """``save_best`` is a metric of the evaluator, which else ends the training at the first one."""
    hook = (run.cfg.get('default_hooks') or {}).get('checkpoint') or {}
    given = metrics(run.cfg, 'val')
    if 'dataset_prefixes' in evaluator_options(run.cfg, 'val'):  # they come first in the names
        return
    names = [type_name(metric).rpartition('.')[2] for metric in given if not metric.get('prefix')]
    known = [p for p, name in ((OF_COCO, 'CocoMetric'), (OF_IOU, 'IoUMetric')) if name in names]
    if not known or len(known) < len(given):
        return
    best = hook.get('save_best')
    for key in best if isinstance(best, (list, tuple)) else [best] if best else ():
        if key != 'auto' and not any(pattern.fullmatch(key) for pattern in known):
            yield wrong(
                f'default_hooks.checkpoint.save_best={key} is no metric of val_evaluator: it gives '
                + ('coco/bbox_mAP, coco/segm_mAP, ...' if OF_COCO in known else 'mIoU, mAcc, aAcc')
            )


def check_loaders(run: Run) -> Iterator[Finding]:
    for split in run.splits:
        name, loader = f'{split.name}_dataloader', split.loader
        ends = split.name != 'train' or run.by_epoch
        sampler = loader.get('sampler')
        if ends and is_endless(sampler, scope_of(run.cfg)):
            use = 'an epoch' if split.name == 'train' else 'an evaluation'
            yield wrong(
                f'{name}.sampler is {type_name(sampler)}, which never ends, so that {use} does not '
                f"either: take dict(type='DefaultSampler', shuffle={split.name == 'train'})"
                + ', or IterBasedTrainLoop'
                * (split.name == 'train')
            )
        yield from check_options_of(name, loader)
        plain = run.by_epoch and type_name(sampler or {}) == 'DefaultSampler'
        if plain and loader.get('drop_last') and split.dataset is not None:
            images, batch = len(split.dataset), loader.get('batch_size') or 1
            if -(-images // processes()) < batch:
                yield wrong(
                    f'{name}.drop_last leaves no batch of {batch} of the {images} images: take '
                    'drop_last=False, or a smaller batch_size'
                )
        for option in NEEDS_WORKERS if not loader.get('num_workers') else ():
            if loader.get(option):
                off = 'False' if loader[option] is True else 'None'
                yield wrong(
                    f'{name}.{option}={loader[option]} needs workers, and num_workers is 0: set '
                    f'num_workers, or {option}={off}'
                )


def check_options_of(name: str, loader: dict) -> Iterator[Finding]:
    """MMEngine hands all but a few of the options of a loader to PyTorch."""
    if unknown := [option for option in loader if option not in LOADER]:
        near = difflib.get_close_matches(unknown[0], LOADER, n=1)
        yield wrong(
            f'{name} has the unknown options {some(unknown)}: '
            + (f'did you mean {near[0]}?' if near else f'choose of {some(sorted(LOADER), 99)}')
        )
    if 'sampler' not in loader:
        yield wrong(f"{name} has no sampler: write sampler=dict(type='DefaultSampler', ...)")
    batched = bool(loader.get('batch_sampler'))
    chosen = 'batch_sampler' if batched else 'sampler'
    for option in ('shuffle', *['drop_last'] * batched):
        if loader.get(chosen) and loader.get(option):
            yield wrong(f'{name}.{option} is for a loader without {chosen}: give it to that')


def is_endless(sampler: Any, scope: str) -> bool:
    kind = sampler.get('type') if isinstance(sampler, dict) else None
    kind = resolve(DATA_SAMPLERS, kind, scope)
    return is_subclass(kind, InfiniteSampler) or is_called(kind, *ENDLESS)


def check_schedule(run: Run) -> Iterator[Finding]:
    """The learning rate's schedule is as long as the training."""
    unit, option = ('epoch', 'max_epochs') if run.by_epoch else ('iteration', 'max_iters')
    total = (run.cfg.get('train_cfg') or {}).get(option)
    if run.train is None or not total:
        return
    limit = f'train_cfg.{option}={total}'
    ends: dict[float, str] = {}
    for scheduler in as_list(run.cfg.get('param_scheduler')):
        name = type_name(scheduler)
        if scheduler.get('by_epoch', True) and not run.by_epoch:
            yield doubt(
                f'{name} steps once an epoch (by_epoch=True), but train_cfg counts iterations, so '
                'that it never steps: set by_epoch=False'
            )
            return
        step = step_of(run, scheduler)
        if step is None and is_warmup(scheduler):
            continue
        if step is None:
            return
        milestones, end = scheduler.get('milestones') or (), last_step(scheduler)
        if milestones and step * min(milestones) >= total:
            yield doubt(
                f'{name} has milestones={list(milestones)}, all of them after the end ({limit}), '
                'so that the learning rate never falls: set earlier ones'
            )
        if is_warmup(scheduler):
            if end is not None and step * end > total:
                yield doubt(
                    f'{name} warms up until {end}, which is after the end of the training '
                    f'({limit}), so that the learning rate is never reached: set end of it'
                )
        elif end is None:
            return
        else:
            ends[step * end] = name
    latest = max(ends, default=total)
    if latest < 0.99 * total:
        yield doubt(
            f'the schedule of the learning rate ends at {unit} {latest:g} ({ends[latest]}), and '
            f'{limit} goes on at its last rate: set end, T_max and milestones of param_scheduler '
            'for the whole training'
        )
    elif latest > 1.01 * total + 1:
        yield doubt(
            f'the schedule of the learning rate goes on to {unit} {latest:g} ({ends[latest]}), but '
            f'{limit} stops before: set end, T_max and milestones of param_scheduler to the same'
        )


def step_of(run: Run, scheduler: ConfigDict) -> float | None:
    """A step of a schedule in the unit of the loop; ``None`` where the data does not tell."""
    if scheduler.get('by_epoch', True) or not run.by_epoch:
        return 1
    train = run.train
    if train is None or train.dataset is None or not train.loader.get('batch_size'):
        return None
    return 1 / max(1, len(train.dataset) // (train.loader.batch_size * processes()))


WARMUPS = ('LinearLR', 'LinearParamScheduler', 'QuadraticWarmupLR')


def is_warmup(scheduler: ConfigDict) -> bool:
    start, end = scheduler.get('start_factor', 1 / 3), scheduler.get('end_factor', 1.0)
    return not scheduler.get('begin') and type_name(scheduler) in WARMUPS and start <= end


def last_step(scheduler: ConfigDict) -> int | None:
    """Where a schedule ends; ``None`` for one that goes on without an end."""
    if scheduler.get('end') is not None:
        return scheduler.end
    length = scheduler.get('T_max') or scheduler.get('total_steps')
    return scheduler.get('begin', 0) + length if length else None


def check_saving(run: Run) -> Iterator[Finding]:
    """Checkpoints are counted in the unit of the loop, and there is one at least."""
    hook = (run.cfg.get('default_hooks') or {}).get('checkpoint')
    loop = run.cfg.get('train_cfg') or {}
    if not run.train or not hook:
        return
    by_epoch = hook.get('by_epoch', True)
    if by_epoch and loop.get('max_iters') and not run.by_epoch:
        yield doubt(
            'default_hooks.checkpoint counts epochs (by_epoch=True) and train_cfg iterations, so '
            'that nothing is saved before the end: set by_epoch=False and interval'
        )
    every, total = hook.get('interval', -1), loop.get('max_epochs' if by_epoch else 'max_iters')
    at_times = every > 0 and (total is None or every <= total)
    if not at_times and not hook.get('save_last', True) and not hook.get('save_best'):
        yield doubt(
            f'default_hooks.checkpoint saves nothing (interval={every}, save_last=False): set a '
            'shorter interval, or save_last=True'
        )


def check_variables(run: Run) -> Iterator[Finding]:
    """The command line changes what is read, not a variable that helped to write the config."""
    for option in run.options:
        name = option.split('.')[0]
        if run.original is None or name in RUNNER_KEYS or name not in run.original:
            continue
        value = run.original[name]
        places = list(copies(run.original, name, value))
        if places:
            yield wrong(
                f'--cfg-options {option} changes nothing: {name} helped to write the config, and '
                f'has been read; set {some(places, 6)}'
            )


def copies(cfg: Config, name: str, value: Any) -> Iterator[str]:
    """Options of the runner that a variable of the config has filled, as far as one can tell."""
    waiting = [(key, cfg[key]) for key in cfg if key in RUNNER_KEYS]
    while waiting:
        path, part = waiting.pop(0)
        text = isinstance(value, str) and len(value) > 3 and isinstance(part, str) and value in part
        listed = isinstance(value, (dict, list, tuple)) and value and part == value
        step = path.startswith('param_scheduler') and type(value) is int and part == value
        if path.rpartition('.')[2] == name or text or listed or step:
            yield path
        elif isinstance(part, dict):
            waiting += [(f'{path}.{key}', inner) for key, inner in part.items()]
        elif isinstance(part, (list, tuple)):
            waiting += [(f'{path}.{i}', inner) for i, inner in enumerate(part)]
