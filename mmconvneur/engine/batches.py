"""Batches that are the same in a run that was resumed and in one that never stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import chain, count, islice, repeat
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, IterableDataset


def seed_of(*key: int) -> int:
    """A seed below 2^32 that is independent for every tuple of numbers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def load(dataset: Dataset, samples: list[tuple[tuple[int, ...], int]]) -> list:
    """The samples of a batch, each drawn from the random state that its key gives."""
    loaded = []
    for key, index in samples:
        seed = seed_of(*key)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks for GPUs each time
        loaded.append(dataset[index])
    return loaded


class RepeatableBatches:
    """The batches of a loader's batch sampler, from any place on, with a key for every sample.

    The key is (seed, rank, number of the batch in the run, place in the batch). What the
    augmentation of a sample draws follows from it alone, not from what was loaded before it and by
    which worker. Batches before the place are counted, not loaded.

    What has no numbered samples (an ``IterableDataset``, a loader without batches) has no keys
    either: it draws as it likes, and batches before the place are loaded and thrown away.

    Args:
        loader: It is made to use these batches.
        seed: Of the run.
        endless: Start over when the sampler ends, as iteration-based loops do.
    """

    def __init__(self, loader: DataLoader, seed: int, endless: bool = False) -> None:
        self.loader, self.endless = loader, endless
        self.key = (seed, get_rank())
        dataset: Any = loader.dataset
        self.dataset = dataset
        self.batches: Any = loader  # or its batch sampler: of any class with a sampler and a length
        self.first = self.skipped = 0
        self.numbered = not (loader.batch_sampler is None or isinstance(dataset, IterableDataset))
        if not self.numbered:
            return
        self.batches = loader.batch_sampler
        self.sampler = self.batches.sampler
        # PyTorch hands a whole batch to __getitems__ where a data set has it. A DataLoader refuses
        # to have its batch sampler replaced, as an iterator would not notice: there is none yet.
        dataset.__getitems__ = partial(load, dataset)
        vars(loader)['batch_sampler'] = self

    def loaded(self, first: int = 0, skipped: int = 0) -> Iterator:
        """What the loader makes of one pass, or of the endless one.

        Args:
            first: Number in the run of the first batch of the pass.
            skipped: How many to leave out.
        """
        if self.numbered:
            self.first, self.skipped = first, skipped
            yield from self.loader
        else:
            passes = chain.from_iterable(repeat(self.loader)) if self.endless else self.loader
            yield from islice(passes, skipped, None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[tuple[int, ...], int]]]:
        numbered = enumerate(self._passes(), self.first)
        for number, batch in islice(numbered, self.skipped, None):
            yield [((*self.key, number, place), index) for place, index in enumerate(batch)]

    def _passes(self) -> Iterator[list[int]]:
        if not self.endless:
            yield from self.batches
            return
        for epoch in count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            yield from self.batches
