"""Trains detectors, segmentors, classifiers: tools/train.py configs/mask_rcnn_convneur_t_coco.py"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import os
from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, LOOPS, OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmconvneur.apis.model_zoo import find_weights
from mmconvneur.checks.look import hand_over, look
from mmconvneur.engine.checkpoints import ATOMIC, latest_checkpoint, read_training
from mmconvneur.engine.guards import FiniteHook, ScheduleHook
from mmconvneur.engine.hooks import LoadReportHook, ProgressBarHook, ResumeHook
from mmconvneur.engine.loops import RESUMABLE
from mmconvneur.errors import UsageError
from mmconvneur.registry import SCOPE
from mmconvneur.utils.arguments import common_parser, one_line_errors, parse
from mmconvneur.utils.configs import is_subclass, load_config, resolve, scope_of, type_name
from mmconvneur.utils.runner import build_runner, set_work_dir


@one_line_errors
def main() -> None:
    parser = common_parser(__doc__.split(':')[0])
    parser.add_argument('--amp', action='store_true', help='mixed precision, on a GPU')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to continue from; without a path: the newest in the work folder, if any',
    )
    parser.add_argument('--tensorboard', action='store_true', help='also write TensorBoard logs')
    args = parse(parser)
    cfg = load_config(args)
    set_work_dir(cfg, args)
    run = look(cfg, args, 'train', 'val', to_folders={'--work-dir': cfg.work_dir})
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        scale_lr(cfg)
    if args.resume or cfg.get('resume'):
        resume(cfg, args.resume or cfg.get('load_from') or 'auto')
    start = cfg.get('load_from')
    weights = find_weights(start) if start and not cfg.get('resume') else None
    if args.tensorboard:
        use_tensorboard(cfg)
    use_resumable_loop(cfg)
    cfg.default_hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    hook = cfg.default_hooks.checkpoint  # None switches it off
    if hook and is_subclass(resolve(HOOKS, hook['type'], scope_of(cfg)), CheckpointHook):
        hook.setdefault('backend_args', ATOMIC)
    hooks = [LoadReportHook(), FiniteHook(), ScheduleHook(), ResumeHook(), ProgressBarHook()]
    runner = build_runner(cfg, args, hooks)
    if weights:  # the config keeps the name, which is the same everywhere
        runner._load_from = str(weights)
    hand_over(run, runner)
    warn_of_batch_size(runner, cfg)
    runner.train()


def use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU that PyTorch can use: leave it out to train on the CPU')
    cfg.optim_wrapper.setdefault('type', 'OptimWrapper')
    wrapper = resolve(OPTIM_WRAPPERS, cfg.optim_wrapper.type, scope_of(cfg))
    if wrapper is OptimWrapper:
        cfg.optim_wrapper.type = AmpOptimWrapper.__name__
    elif not is_subclass(wrapper, AmpOptimWrapper):
        raise UsageError(
            f'--amp replaces OptimWrapper, but the config has {type_name(cfg.optim_wrapper)}: '
            'drop one of them'
        )
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True


def resume(cfg: Config, source: str) -> None:
    """Continue from a checkpoint, with the seed of its run: the order of the images needs it."""
    auto = source == 'auto'
    checkpoint = latest_checkpoint(*checkpoint_folders(cfg)) if auto else find_weights(source)
    if checkpoint is None:
        print(f'no checkpoint in {cfg.work_dir} yet: training starts from the beginning')
        cfg.resume = False
        return
    meta = read_training(checkpoint)['meta']
    if meta.get('seed') is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=meta['seed'])
    cfg.resume, cfg.load_from = True, str(checkpoint)


def checkpoint_folders(cfg: Config) -> list[str]:
    """Where this run writes checkpoints: the work folder, and what MMEngine makes of out_dir."""
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    name = os.path.basename(cfg.work_dir.rstrip(os.sep))
    return [cfg.work_dir, *([os.path.join(out_dir, name)] if out_dir else [])]


def use_resumable_loop(cfg: Config) -> None:
    """Replace MMEngine's training loops, named in any way, by those that can be resumed."""
    loop = cfg.train_cfg.get('type')
    if loop is None and 'by_epoch' in cfg.train_cfg:
        loop = EpochBasedTrainLoop if cfg.train_cfg.pop('by_epoch') else IterBasedTrainLoop
        cfg.train_cfg.type = loop.__name__
    loop = resolve(LOOPS, loop, scope_of(cfg))
    if loop in RESUMABLE:
        cfg.train_cfg.type = f'{SCOPE}.{RESUMABLE[loop].__name__}'


def use_tensorboard(cfg: Config) -> None:
    if find_spec('tensorboard') is None:
        raise UsageError('--tensorboard needs TensorBoard: pip install tensorboard')
    cfg.visualizer = cfg.get('visualizer') or dict(type='Visualizer')  # of no family
    backends = cfg.visualizer.get('vis_backends') or []
    cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def warn_of_batch_size(runner: Runner, cfg: Config) -> None:
    schedule = cfg.get('auto_scale_lr') or {}
    batch_size = runner.world_size * (cfg.train_dataloader.get('batch_size') or 0)
    base = schedule.get('base_batch_size', batch_size)
    if batch_size != base and not schedule.get('enable'):
        runner.logger.warning(
            f'The learning rate is meant for batches of {base} and this run has {batch_size}: '
            'add --auto-scale-lr.'
        )


if __name__ == '__main__':
    main()
