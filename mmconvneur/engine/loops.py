"""Training loops that end with the same weights however often they are stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.dist import broadcast_object_list
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    set_random_seed,
)
from torch import nn
from torch.utils.data import DataLoader

from ..registry import LOOPS
from .batches import RepeatableBatches, seed_of
from .checkpoints import last_validation

EPOCH_POSITION = 'epoch_position'


class _Resumable(BaseLoop):
    """What both loops share, before one of MMEngine's.

    Every iteration starts from the random state that (seed, iteration) gives, and every sample from
    its own (:class:`RepeatableBatches`), so that no state has to be kept. A validation that the
    interruption cut off is made up first.
    """

    endless = False
    dataloader: DataLoader
    _iter: int
    val_begin: int
    val_interval: int
    _decide_current_val_interval: Callable[[], None]

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # makes the loader, and no iterator of it yet
        loader = self.dataloader
        self._batches = RepeatableBatches(loader, runner.seed, self.endless)
        # MMEngine 0.10.7 makes an iterator at once: of a loader, with workers that load ahead.
        super().__init__(runner, self._batches, **kwargs)
        self.dataloader = loader

    def _progress(self) -> tuple[int, int]:
        """How many epochs or iterations are done, and how many there are."""
        raise NotImplementedError

    def _seed_iteration(self) -> None:
        set_random_seed(seed_of(self.runner.seed, self._iter))

    def _make_up_validation(self) -> None:
        # Other machines may not see the file.
        validated = [last_validation(self.runner.work_dir)]
        broadcast_object_list(validated)
        if self._iter > validated[0]:
            self._validate_if_due()

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        done, end = self._progress()
        due = done >= self.val_begin and (done % self.val_interval == 0 or done == end)
        if due and self.runner.val_loop is not None:
            self.runner.val_loop.run()

    def _say_if_finished(self) -> None:
        done, end = self._progress()
        if done >= end:
            unit = 'iters' if self.endless else 'epochs'
            self.runner.logger.warning(
                f'This run is finished: {done} of {end} {unit} are done. To train on, raise '
                f'train_cfg.max_{unit}.'
            )


@LOOPS.register_module()
class ResumableEpochLoop(_Resumable, EpochBasedTrainLoop):
    """MMEngine's epoch loop, which also resumes inside an epoch from a file of ``ResumeHook``.

    The sampler's order depends on seed and epoch alone, so the batches that were trained on before
    the interruption are skipped in the sampler. With another number of batches per epoch (other
    GPUs, other batch size) that place has no meaning and the epoch starts over.
    """

    def run(self) -> nn.Module:
        position = self.runner.message_hub.runtime_info.get(EPOCH_POSITION, {})
        here = dict(epoch=self.epoch, iter=self.iter, batches=len(self.dataloader))
        done = position.get('done', 0)
        self._batches_done = done if position == dict(here, done=done) else 0
        self.runner.call_hook('before_train')
        if not self._batches_done:
            self._make_up_validation()
        self._say_if_finished()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done, self._batches_done = self._batches_done, 0
        for index, batch in enumerate(self._batches.loaded(self._iter - done, skipped=done), done):
            self._seed_iteration()
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _progress(self) -> tuple[int, int]:
        return self._epoch, self._max_epochs


@LOOPS.register_module()
class ResumableIterLoop(_Resumable, IterBasedTrainLoop):
    """MMEngine's iteration loop, which skips what was trained on in any sampler."""

    endless = True

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._make_up_validation()
        self._say_if_finished()
        batches = self._batches.loaded(skipped=self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            batch = next(batches)
            self._seed_iteration()
            self.run_iter(batch)
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _progress(self) -> tuple[int, int]:
        return self._iter, self._max_iters


RESUMABLE = {EpochBasedTrainLoop: ResumableEpochLoop, IterBasedTrainLoop: ResumableIterLoop}
