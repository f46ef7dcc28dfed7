"""Hooks of the command-line tools."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import ExitStack

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..registry import HOOKS
from ..weights.loading import check_heads
from .checkpoints import ATOMIC, RESUME_FILE
from .loops import EPOCH_POSITION

AGREE_EVERY = 10  # iterations: agreeing makes a GPU wait for its queue


@HOOKS.register_module()
class ResumeHook(Hook):
    """Keeps ``resume.pth`` in the work folder: every ``interval`` iterations, and on a signal.

    Ctrl-C (SIGINT), or SIGTERM to the main process, ends the run after the current iteration, with
    exit status 128 + the signal's number; a second one ends it at once. Several processes stop
    together, at the next multiple of 10 iterations. After SIGKILL, and after a SIGTERM that also
    hits the loader workers (PyTorch ends them at once), at most ``interval`` iterations are lost.
    """

    priority = 'LOWEST'  # after the schedulers and MMEngine's own checkpoint

    def __init__(self, interval: int = 1000) -> None:
        self.interval = interval
        self._received = 0

    def before_train(self, runner: Runner) -> None:
        self._pid = os.getpid()
        self._logger = runner.logger
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        number = self._agreed_signal(runner)
        if number or self.every_n_train_iters(runner, self.interval):
            self._save(runner, runner.iter + 1, batch_idx + 1)
        if number:
            self._stop(number)

    def after_val_iter(self, runner: Runner, **kwargs) -> None:
        if self._received and runner.world_size == 1:
            self._save(runner, runner.iter, 0)
            self._stop(self._received)

    def after_train(self, runner: Runner) -> None:
        self._restore_handlers()

    def _agreed_signal(self, runner: Runner) -> int:
        """The signal to stop for, the same in all processes: one alone would leave them hanging."""
        if runner.world_size == 1:
            return self._received
        if not self.every_n_train_iters(runner, AGREE_EVERY):
            return 0
        number = torch.tensor(self._received)
        all_reduce(number, 'max')
        return number.item()

    def _note(self, number: int, frame: object) -> None:
        # Loader workers inherit the handler of SIGINT, and go on until the main process ends them.
        self._received = number
        self._restore_handlers()
        if os.getpid() == self._pid:
            self._logger.warning('Stopping after this iteration; once more to stop at once.')

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _save(self, runner: Runner, iteration: int, done: int) -> None:
        position = dict(
            epoch=runner.epoch, iter=iteration, batches=len(runner.train_dataloader), done=done
        )
        runner.message_hub.update_info(EPOCH_POSITION, position)
        runner.save_checkpoint(
            runner.work_dir,
            RESUME_FILE,
            meta=dict(epoch=runner.epoch, iter=iteration),
            by_epoch=False,
            backend_args=ATOMIC,
        )

    def _stop(self, number: int) -> None:
        self._logger.warning('Stopped: continue with the same command and --resume.')
        raise SystemExit(128 + number)


@HOOKS.register_module()
class LoadReportHook(Hook):
    """Reports what a checkpoint filled of neck and heads; our backbones report for themselves.

    Args:
        complete: Nothing of neck and heads may stay at random: for testing, and always where a
            training is resumed. Fine-tuning may leave what it likes, and is warned of it.

    Raises:
        UsageError: If something is left that may not be.
    """

    priority = 'LOWEST'  # after EMAHook has chosen the weights

    def __init__(self, complete: bool = False) -> None:
        self.complete = complete

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        state = checkpoint.get('state_dict', checkpoint)
        complete = self.complete or bool(runner.cfg.get('resume'))
        report = check_heads(model, state, complete)
        level = logging.INFO if report.complete else logging.WARNING
        runner.logger.log(level, f'{type(model).__name__}, neck and heads: {report}')


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """A bar with the time left, for training, validation and testing; shown on a terminal only."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._log_above_bar = ExitStack()
        self._bars: dict[str, tqdm] = {}

    def before_run(self, runner: Runner) -> None:
        self._shown = runner.rank == 0 and sys.stderr.isatty()
        if self._shown:
            self._log_above_bar.enter_context(logging_redirect_tqdm([runner.logger]))
            for handler in runner.logger.handlers:
                handler.setLevel(runner.logger.level or logging.INFO)

    def after_run(self, runner: Runner) -> None:
        self._log_above_bar.close()

    def before_train(self, runner: Runner) -> None:
        self._open('train', runner.max_iters, runner.iter)

    def after_train(self, runner: Runner) -> None:
        self._bars['train'].close()

    # MMEngine's hooks of train, val and test end in these.
    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if mode != 'train':
            self._open(mode, len(getattr(runner, f'{mode}_dataloader')))

    def _after_iter(self, runner: Runner, *args, mode: str = 'train', **kwargs) -> None:
        self._bars[mode].update()

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if mode != 'train':
            self._bars[mode].close()

    def _open(self, name: str, total: int, done: int = 0) -> None:
        self._bars[name] = tqdm(
            desc=name,
            total=total,
            initial=done,
            disable=not self._shown,
            leave=False,
            dynamic_ncols=True,
        )
