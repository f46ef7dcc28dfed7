"""Hooks of the command-line tools."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import UsageError
from ..registry import HOOKS
from ..weights.loading import check_heads
from ..weights.trunk import describe, take_out
from .checkpoints import ATOMIC, RESUME_FILE, last_validation, note_validation
from .loops import EPOCH_POSITION

AGREE_EVERY = 10  # iterations: agreeing makes a GPU wait for its queue
REPEATED_WITHIN = 2.0  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def heed_the_loader_alone(init: Callable[[int], None], worker: int) -> None:
    """Start a loader worker that a signal to the whole process group does not end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS, where SIGTERM to the group ends workers
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=end_with_the_loader, daemon=True).start()
    init(worker)


def end_with_the_loader() -> None:
    """Wait for the SIGTERM of the process that loads, and end without clean-up as PyTorch does."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


@HOOKS.register_module()
class ResumeHook(Hook):
    """Keeps ``resume.pth`` in the work folder: every ``interval`` iterations, before a validation,
    and on a signal.

    Ctrl-C (SIGINT) or SIGTERM, to the main process or to all, ends the run after the current
    iteration, with exit status 128 + the signal's number; one more after two seconds ends it at
    once. Several processes stop together, at the next multiple of 10 iterations. Where gradients
    are accumulated, a run is saved and stops at the next step of the optimizer. After SIGKILL at
    most ``interval`` iterations are lost.
    """

    priority = 'LOWEST'  # after the schedulers and MMEngine's own checkpoint

    def __init__(self, interval: int = 1000) -> None:
        self.interval = interval
        self._received = self._agreed = 0
        self._since = 0.0
        self._due = False
        self._saved: int | None = None

    def before_train(self, runner: Runner) -> None:
        note_validation(runner.work_dir, min(runner.iter, last_validation(runner.work_dir)))
        loops = [runner.train_loop, runner.val_loop]
        for loader in [loop.dataloader for loop in loops if loop is not None]:
            loader.worker_init_fn = partial(heed_the_loader_alone, loader.worker_init_fn)
        self._logger = runner.logger
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        self._due = self._due or self.every_n_train_iters(runner, self.interval)
        self._agree(runner, runner.iter + 1)
        # What was accumulated since the last step of the optimizer is in no checkpoint.
        if (self._due or self._agreed) and stepped(runner.optim_wrapper):
            self._save(runner, runner.iter + 1, batch_idx + 1)
            self._due = False
            self._stop_if_agreed()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        forget_foreign_files(runner, checkpoint)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if 'optimizer' in checkpoint:  # not one of the best_* files
            checkpoint['meta']['saved'] = time.time()
            self._saved = checkpoint['meta']['iter']

    def before_val(self, runner: Runner) -> None:
        # During a validation it is too late: EMAHook has exchanged the weights.
        saved = [self._saved]
        broadcast_object_list(saved)
        if saved[0] != runner.iter and stepped(runner.optim_wrapper):
            self._save(runner, runner.iter, 0)

    def before_val_epoch(self, runner: Runner) -> None:
        shortest = torch.tensor(len(runner.val_dataloader))
        all_reduce(shortest, 'min')
        self._shortest = shortest.item()

    def after_val_iter(self, runner: Runner, batch_idx: int, **kwargs) -> None:
        if batch_idx < self._shortest:
            self._agree(runner, batch_idx + 1)
        if stepped(runner.optim_wrapper):
            self._stop_if_agreed()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        note_validation(runner.work_dir, runner.iter)

    def after_train(self, runner: Runner) -> None:
        self._restore_handlers()

    def _agree(self, runner: Runner, done: int) -> None:
        """Find the signal to stop for, the same in all processes: one alone would leave them
        hanging."""
        if runner.world_size == 1:
            self._agreed = self._received
        elif done % AGREE_EVERY == 0:
            number = torch.tensor(self._received)
            all_reduce(number, 'max')
            self._agreed = self._agreed or int(number)

    def _note(self, number: int, frame: object) -> None:
        # torchrun and timeout pass on a signal that has already reached the whole group.
        if self._received and time.monotonic() - self._since > REPEATED_WITHIN:
            self._restore_handlers()
            signal.raise_signal(number)
        elif not self._received:
            self._received, self._since = number, time.monotonic()
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

    def _stop_if_agreed(self) -> None:
        if self._agreed:
            self._logger.warning('Stopped: continue with the same command and --resume.')
            raise SystemExit(128 + self._agreed)


def forget_foreign_files(runner: Runner, checkpoint: dict) -> None:
    """Make MMEngine delete, as better and newer checkpoints come, those of this run alone.

    A checkpoint names the best one by its path, which can be any, and the others by numbers.
    """
    outs = [hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    name = os.path.basename(runner.work_dir)
    folders = [runner.work_dir, *(os.path.join(out, name) for out in outs if out)]
    infos = checkpoint.get('message_hub', {}).get('runtime_info', {})
    for key, value in list(infos.items()):
        if key.startswith('best_ckpt'):
            folder, name = os.path.split(value)
            foreign = folder not in folders or not name.startswith('best_')
        else:
            foreign = key == 'keep_ckpt_ids' and not all(isinstance(x, int) for x in value)
        if foreign:
            del infos[key]


def stepped(optim_wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    """Whether the last iteration ended in a step of the optimizer: no gradient waits for more."""
    return not isinstance(optim_wrapper, OptimWrapper) or optim_wrapper.should_update()


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
class LearnedPartHook(Hook):
    """Leaves frozen trunks out of the checkpoints of a run, those for resuming and of EMA too.

    What stays is what learns: global branches, fusions, norms of the maps, neck and heads. The
    metadata of the state dict names the file and the hash of the trunk, which is added again when
    the checkpoint is loaded.

    Raises:
        UsageError: Before training, if no backbone has ``frozen_trunk=True``, or its trunk does not
            come from the file of its ``init_cfg``.
    """

    priority = 'LOWEST'  # after EMAHook has added its weights

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._trunks = {
            path: describe(module)
            for path, module in model.named_modules()
            if getattr(module, 'frozen_trunk', False)
        }
        if not self._trunks:
            raise UsageError(
                'LearnedPartHook finds no frozen trunk to leave out: set '
                'model.backbone.frozen_trunk=True or remove the hook'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for path, trunk in self._trunks.items():
            take_out(checkpoint['state_dict'], path, trunk)
            if 'ema_state_dict' in checkpoint:
                take_out(checkpoint['ema_state_dict'], f'module.{path}', trunk)


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
