"""The time of a step beside that of others in the same rounds.

A step is a function without arguments that runs a network once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

Step = Callable[[], object]


def seconds(step: Step, device: torch.device) -> float:
    """Wall-clock time of one step, on a GPU until it is idle again."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def race(
    steps: Mapping[str, Step], rounds: int, clock: Callable[[Step], float]
) -> dict[str, list[float]]:
    """Times of every step, one per round.

    Each round runs all steps once, in an order of its own, so that whatever else the machine does
    hits all alike; times of the same round may be divided by each other.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times[name].append(clock(steps[name]))
    return times


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(*np.percentile(values, [50, 25, 75]).tolist())


def ratios(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Time over the baseline's, round by round."""
    return [a / b for a, b in zip(times, baseline, strict=True)]
