"""A training loop that resumes inside an epoch."""

from __future__ import annotations

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

EPOCH_POSITION = 'epoch_position'


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """MMEngine's epoch loop, which also resumes from a checkpoint of ``ResumeHook``.

    The sampler's order depends on seed and epoch alone, so the batches that were trained on before
    the interruption are drawn again and skipped. With another number of batches per epoch (other
    GPUs, other batch size) that place has no meaning and the epoch starts over.
    """

    def run(self):
        position = self.runner.message_hub.runtime_info.get(EPOCH_POSITION, {})
        here = dict(epoch=self.epoch, iter=self.iter, batches=len(self.dataloader))
        done = position.get('done', 0)
        self._batches_done = done if position == dict(here, done=done) else 0
        return super().run()

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader):
            if index >= self._batches_done:
                self.run_iter(index, batch)
        self._batches_done = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
