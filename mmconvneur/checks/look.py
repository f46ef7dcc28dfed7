"""Everything that is wrong with a run, before it starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..errors import UsageErrors
from ..utils.configs import find_config, missing_data
from . import classes, folders, network, pictures, training
from .data import Run, open_split
from .findings import Finding, doubt, wrong

CHECKS: tuple[Callable[[Run], Iterable[Finding]], ...] = (
    training.check_variables,
    training.check_parts,
    training.check_decay,
    training.check_kinds,
    training.check_numbers,
    training.check_loaders,
    training.check_schedule,
    training.check_saving,
    training.check_metrics,
    training.check_best,
    classes.check_names,
    classes.check_labels,
    classes.check_objects,
    pictures.check_empty,
    classes.check_same_classes,
    classes.check_heads,
    network.check_start,
    network.check_maps,
    network.check_strides,
    network.check_window,
    pictures.check_files,
    pictures.check_masks,
    pictures.check_label_maps,
    classes.check_evaluator,
    folders.check_outputs,
)


def look(
    cfg: Config,
    args: argparse.Namespace,
    *splits: str,
    to_folders: Mapping[str, str | Path | None] = MappingProxyType({}),
    to_files: Mapping[str, str | Path | None] = MappingProxyType({}),
) -> Run:
    """Check a run before it starts, print what is doubtful, and keep its work folder to it.

    Args:
        cfg: As the tools complete it, with ``work_dir``.
        args: Of the tool; ``config`` and ``cfg_options`` are read, and of training ``resume``.
        splits: Whose data the run reads, of ``train``, ``val``, ``test``; the first has to exist.
        to_folders: Option -> a folder that will be written to.
        to_files: Option -> a file that will be written.

    Raises:
        UsageErrors: With all that is wrong.
    """
    run, findings = examine(cfg, args, *splits)
    needed = training.parts_of(splits[0])
    if all(cfg.get(part) is None for part in needed):
        findings.append(wrong(f'the config has no {", ".join(needed[:2])} and {needed[2]}'))
    for option, folder in to_folders.items():
        findings += folders.check_folder(option, folder) if folder else ()
    for option, file in to_files.items():
        findings += folders.check_file(option, file) if file else ()
    if 'train' in splits:
        findings += folders.check_room(run, cfg.work_dir)
        if not run.resumes:
            findings += folders.check_unused(cfg.work_dir)
    doubts, mistakes = sort(findings)
    if mistakes and not is_first_process():
        sys.exit(1)  # the first one says why
    for text in doubts if is_first_process() else ():
        print('warning:', text, file=sys.stderr)
    if mistakes:
        raise UsageErrors(mistakes)
    if 'train' in splits and is_first_process():
        folders.hold(cfg.work_dir)
    return run


def examine(cfg: Config, args: argparse.Namespace, *splits: str) -> tuple[Run, list[Finding]]:
    """Build the data and the model of a run, and check them."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    original = Config.fromfile(find_config(args.config))
    resumes = bool(getattr(args, 'resume', None) or cfg.get('resume'))
    run = Run(cfg, options=args.cfg_options, original=original, resumes=resumes)
    findings = []
    for name in splits:
        absent = [wrong(text) for text in missing_data(cfg, name)]
        split = open_split(cfg, name, build_data=not absent)
        if split is not None:
            run.splits.append(split)
            findings += [*absent, *split.failed]
    run.model, unbuilt = network.build_model(cfg)
    findings += unbuilt
    for check in CHECKS:
        findings += attempt(check, run)
    if all(finding.is_doubt for finding in findings):
        findings += attempt(pictures.check_pipelines, run)
        findings += attempt(network.check_batch_norm, run)
    return run, findings


def attempt(check: Callable[[Run], Iterable[Finding]], run: Run) -> list[Finding]:
    """What a check finds; one that does not understand a run does not stop it."""
    try:
        return list(check(run))
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        return [doubt(f'{check.__name__} was left out ({reason})')]


def sort(findings: Iterable[Finding]) -> tuple[list[str], list[str]]:
    """Doubts and mistakes, each once."""
    each = dict.fromkeys(findings)
    return [f.text for f in each if f.is_doubt], [f.text for f in each if not f.is_doubt]


def hand_over(run: Run, runner: Runner) -> None:
    """Build the runner's loops on the data that is built already: COCO takes half a minute.

    From here on a file that cannot be loaded is named.
    """
    for split in run.splits:
        loader = getattr(runner, f'_{split.name}_dataloader', None)
        if isinstance(loader, dict) and split.dataset is not None:
            pictures.name_files(split.dataset)
            loader['dataset'], cfg = split.dataset, loader['dataset']
            getattr(runner, f'{split.name}_loop')  # has a copy
            loader['dataset'] = cfg
    run.splits.clear()


RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def is_first_process() -> bool:
    return int(next((os.environ[name] for name in RANKS if name in os.environ), 0)) == 0
