"""Trains a detector or a segmentor: python tools/train.py configs/mask_rcnn_convneur_t_coco.py"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmconvneur.apis.model_zoo import find_weights
from mmconvneur.engine.checkpoints import ATOMIC, latest_checkpoint
from mmconvneur.engine.hooks import LoadReportHook, ProgressBarHook, ResumeHook
from mmconvneur.engine.loops import ResumableEpochLoop
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import common_parser, one_line_errors, parse
from mmconvneur.utils.configs import check_data, load_config
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
        help='a checkpoint to continue from; alone: the newest one in the work folder, if any',
    )
    parser.add_argument('--tensorboard', action='store_true', help='also write TensorBoard logs')
    args = parse(parser)
    cfg = load_config(args)
    set_work_dir(cfg, args)
    check_data(cfg, 'train', 'val')
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        scale_lr(cfg)
    if args.resume:
        resume(cfg, args.resume)
    if cfg.get('load_from'):
        cfg.load_from = str(find_weights(cfg.load_from))
    if args.tensorboard:
        use_tensorboard(cfg)
    loop = LOOPS.get(cfg.train_cfg.get('type', ''))
    if loop is EpochBasedTrainLoop or cfg.train_cfg.pop('by_epoch', False):
        cfg.train_cfg.type = ResumableEpochLoop.__name__
    hook = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', dict(type='CheckpointHook'))
    hook.setdefault('backend_args', ATOMIC)
    runner = build_runner(cfg, args, [LoadReportHook(), ResumeHook(), ProgressBarHook()])
    warn_of_batch_size(runner, cfg)
    runner.train()


def use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU that PyTorch can use: leave it out to train on the CPU')
    wrapper = cfg.optim_wrapper.setdefault('type', 'OptimWrapper')
    if OPTIM_WRAPPERS.get(wrapper) not in (OptimWrapper, AmpOptimWrapper):
        raise UsageError(
            f'--amp replaces OptimWrapper, but the config has {wrapper}: drop one of them'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True


def resume(cfg: Config, checkpoint: str) -> None:
    if checkpoint == 'auto':
        checkpoint = latest_checkpoint(cfg.work_dir)
        if checkpoint is None:
            print(f'no checkpoint in {cfg.work_dir} yet: training starts from the beginning')
            return
    cfg.resume, cfg.load_from = True, str(checkpoint)


def use_tensorboard(cfg: Config) -> None:
    if find_spec('tensorboard') is None:
        raise UsageError('--tensorboard needs TensorBoard: pip install tensorboard')
    cfg.visualizer.vis_backends.append(dict(type='TensorboardVisBackend'))


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
