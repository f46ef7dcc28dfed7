"""Hooks that notice a training that goes wrong."""

from __future__ import annotations

import math

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UsageError
from ..registry import HOOKS

CURE = 'lower the learning rate, lengthen the warm-up or clip gradients (optim_wrapper.clip_grad)'


@HOOKS.register_module()
class FiniteHook(Hook):
    """Ends a training whose loss or weights are NaN or infinite, before it saves anything.

    The loss is the number that MMEngine has logged already, so that looking costs nothing. Weights
    are looked at where a checkpoint is due: saving it would delete an older, good one.

    Args:
        patience: As many losses in a row that are not finite are accepted with a gradient scaler
            (mixed precision), which leaves such steps out.

    Raises:
        UsageError: In the iteration where it happens.
    """

    priority = 'LOW'  # after the log, before checkpoints

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._bad = 0

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        scalars = runner.message_hub.log_scalars
        loss = scalars['train/loss'].current() if 'train/loss' in scalars else 0.0
        self._bad = 0 if math.isfinite(loss) else self._bad + 1
        scaled = hasattr(getattr(runner, 'optim_wrapper', None), 'loss_scaler')
        if self._bad > (self.patience if scaled else 0):
            raise UsageError(
                f'the loss is {loss} in iteration {runner.iter + 1}, and nothing was saved since: '
                f'{CURE}, and continue with --resume'
            )
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and not hook.by_epoch:
                if self.every_n_train_iters(runner, hook.interval):
                    check_weights(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        check_weights(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        check_weights(runner)


def check_weights(runner: Runner) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    name = not_finite(model)
    if name is not None:
        raise UsageError(
            f'the weights of {name} are not finite after iteration {runner.iter + 1}, and were not '
            f'saved: {CURE}, and continue with --resume'
        )


def not_finite(model: nn.Module) -> str | None:
    """The first parameter or running statistic that has NaN or infinity, by its name."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    named |= {name: x for name, x in model.named_buffers() if '.running_' in name}
    if not named:
        return None
    good = torch.stack([x.detach().isfinite().all() for x in named.values()])
    return None if good.all() else list(named)[int(good.int().argmin())]


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Says so where a checkpoint brings another schedule of the learning rate than the config.

    MMEngine goes on with the one in the checkpoint: its end, its milestones, its factors.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        saved = checkpoint.get('param_schedulers')
        if not runner.cfg.get('resume') or not isinstance(saved, list):
            return
        for number, (scheduler, state) in enumerate(
            zip(runner.param_schedulers or [], saved, strict=False)
        ):
            given = scheduler.state_dict()
            other = {
                key: (given[key], state[key])
                for key in given.keys() & state.keys()
                if not key.startswith('_') and key not in PROGRESS and given[key] != state[key]
            }
            if other:
                told = ', '.join(f'{key} {old} and not {new}' for key, (new, old) in other.items())
                runner.logger.warning(
                    f'The checkpoint continues its own schedule of the learning rate: '
                    f'param_scheduler.{number} has {told}. For the schedule of the config start '
                    'from the weights alone: load_from in place of --resume.'
                )


PROGRESS = ('last_step', 'base_values', 'verbose')
