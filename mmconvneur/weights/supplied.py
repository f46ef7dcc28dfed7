"""Tensors that a checkpoint supplies to a backbone, under this package's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class Supplied(NamedTuple):
    """Tensors that a file supplies to a backbone.

    Attributes:
        layout: Name of the layout it was found in.
        tensors: Under this package's names and in its shapes.
        unknown: Keys inside the blocks and layers of the layout that it does not have.
        unused: Keys of the file that are no part of a backbone: classifiers, other heads.
        may_lack_norms: Whether it can come from a classifier, which has no norms of its maps.
    """

    layout: str
    tensors: dict[str, Tensor]
    unknown: list[str]
    unused: list[str]
    may_lack_norms: bool


class Names(Protocol):
    """The names of a layout, and this package's names and shapes for what they name.

    Attributes:
        name: For messages.
        roots: What the keys of stem, downsampling and blocks start with.
    """

    @property
    def name(self) -> str: ...

    @property
    def roots(self) -> tuple[str, ...]: ...

    def own_name(self, key: str) -> str | None: ...

    def own_shape(self, name: str, value: Tensor) -> Tensor: ...


def translated(layout: Names, inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
    """The tensors of the keys ``inside`` a backbone; ``outside`` are the file's other keys."""
    tensors: dict[str, Tensor] = {}
    unknown: list[str] = []
    unused = outside
    for key, value in inside.items():
        if name := layout.own_name(key):
            tensors[name] = layout.own_shape(name, value)
        else:
            (unknown if key.startswith(layout.roots) else unused).append(key)
    return Supplied(layout.name, tensors, unknown, unused, may_lack_norms=True)
