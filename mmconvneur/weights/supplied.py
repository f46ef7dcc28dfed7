"""Tensors that a checkpoint supplies to a backbone, under this package's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

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


def translated(
    layout: str,
    roots: tuple[str, ...],
    own_name: Callable[[str], str | None],
    own_shape: Callable[[str, Tensor], Tensor],
    inside: Mapping[str, Tensor],
    outside: list[str],
) -> Supplied:
    """The tensors of a layout of other names.

    Args:
        layout: Its name, for messages.
        roots: What its keys of stem, downsampling and blocks start with.
        own_name: This package's name for one of its keys, if there is one.
        own_shape: A tensor in the shape that it has here under such a name.
        inside: The entries of a file that are in a backbone.
        outside: The other keys of the file.
    """
    tensors: dict[str, Tensor] = {}
    unknown: list[str] = []
    unused = outside
    for key, value in inside.items():
        if name := own_name(key):
            tensors[name] = own_shape(name, value)
        else:
            (unknown if key.startswith(roots) else unused).append(key)
    return Supplied(layout, tensors, unknown, unused, may_lack_norms=True)
