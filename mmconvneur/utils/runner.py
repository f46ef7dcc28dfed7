"""MMEngine's runner as the command-line tools set it up."""

from __future__ import annotations

import argparse
import logging
import os
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel as DDP
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner

from ..errors import UsageError
from .configs import resolve, scope_of

# A line for each parameter with options of its own, and what upstream means to change some day.
FOR_THE_FILE = re.compile(r'paramwise_options -- |will be deprecated in future')

# The hooks that None switches off in MMEngine, which refuses it for others.
OF_MMENGINE = 'runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint'


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
        wrapper = cfg.get('model_wrapper_cfg') or dict(
            find_unused_parameters=cfg.get('find_unused_parameters', False)
        )
        kind = resolve(MODEL_WRAPPERS, wrapper.get('type', DDP.__name__), scope_of(cfg))
        if kind is DDP:
            cfg.model_wrapper_cfg = dict(wrapper, type=CPUDistributedDataParallel.__name__)
    cfg.default_hooks = {
        name: hook
        for name, hook in (cfg.get('default_hooks') or {}).items()
        if hook is not None or name in OF_MMENGINE
    }
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    quieten(runner.logger)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def quieten(logger: logging.Logger) -> None:
    """Write the lines of ``FOR_THE_FILE`` to the log file alone, not to the terminal."""

    def for_the_terminal(record: logging.LogRecord) -> bool:
        if not FOR_THE_FILE.search(record.getMessage()):
            return True
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
        return False

    logger.addFilter(for_the_terminal)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(DDP):
    """MMEngine's DDP for a model on the CPU, where there is no SyncBN and no device id."""

    def __init__(self, module: torch.nn.Module, device_ids: list[int], **kwargs) -> None:
        super().__init__(revert_sync_batchnorm(module), broadcast_buffers=False, **kwargs)
