"""Report of the tensors that a checkpoint filled and of those that it did not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

ENOUGH = 0.95  # of the tensors that the source can supply
EXAMPLES = 2
WORDS = dict(new='newly initialised', mismatched='shape mismatched')


class LoadReport(NamedTuple):
    """Names of tensors by what became of them.

    Attributes:
        matched: Filled from the checkpoint.
        new: Newly initialised: the source's layout has no such tensor (a ConvNeXt, a memory).
        missing: Expected of the source and not in it.
        unexpected: In the source without a place in the model.
        mismatched: In both, with different shapes.
        unused: In the source and rightly left there (a classifier, stages that are not built).
    """

    matched: list[str]
    new: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    unused: list[str]

    @property
    def share(self) -> float:
        """Matched over all that the source can supply or has for this model."""
        failed = len(self.missing) + len(self.unexpected) + len(self.mismatched)
        return len(self.matched) / max(1, len(self.matched) + failed)

    @property
    def enough(self) -> bool:
        return self.share >= ENOUGH

    @property
    def complete(self) -> bool:
        return bool(self.matched) and self.share == 1

    def __str__(self) -> str:
        return ', '.join(
            f'{len(names)} {WORDS.get(field, field)}{_examples(names) * (field != "matched")}'
            for field, names in self._asdict().items()
        )


def _examples(names: list[str]) -> str:
    more = [f'and {len(names) - EXAMPLES} more'] if len(names) > EXAMPLES else []
    return f' ({", ".join([*names[:EXAMPLES], *more])})' if names else ''


def compare(
    model: Mapping[str, Tensor],
    supplied: Mapping[str, Tensor],
    new: Collection[str] = (),
    unused: Collection[str] = (),
) -> LoadReport:
    """Compare a model's state dict with what a checkpoint supplies under the model's names.

    Args:
        model, supplied: State dicts.
        new: Names in ``model`` that the source's layout does not have.
        unused: Names in ``supplied`` that this model has no use for.
    """
    both = [name for name in model if name in supplied]
    matched = [name for name in both if model[name].shape == supplied[name].shape]
    return LoadReport(
        matched=matched,
        new=[name for name in new if name not in supplied],
        missing=[name for name in model if name not in supplied and name not in new],
        unexpected=[name for name in supplied if name not in model and name not in unused],
        mismatched=[name for name in both if model[name].shape != supplied[name].shape],
        unused=list(unused),
    )
