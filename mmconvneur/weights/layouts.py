"""Layouts of the checkpoints of ConvNeXt, ConvNeur and GLNet, and how one is recognised.

A layout is found by looking at the keys: something in the very first block, in a ConvNeXt its
depthwise convolution, has a name of its own in each of them, and whatever stands before it is a
prefix (``backbone.``, ``module.``, ``convnext.``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError
from . import glnet
from .convnext import CONVNEXTS, PARTS, Layout
from .supplied import Supplied, translated

OWN_KEY = re.compile(r'(downsample_layers|stages)\.\d+\..*|norm\d+\.\w+')
CLASS_TOKEN = re.compile(r'(?:^|\.)(?:cls_token|class_token|class_embedding)$')


class GLNetLayout:
    """The published checkpoints of GLNet; see ``glnet.py`` for the names."""

    name = 'GLNet (official repository)'
    first_key = glnet.FIRST_KEY

    def supply(self, inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
        own = glnet.own_name, glnet.own_shape
        return translated(self.name, glnet.ROOTS, *own, inside, outside)


class OwnLayout(NamedTuple):
    """The names of a backbone of this package.

    Attributes:
        name: Of the backbone.
        first_key: A key that every such file has.
    """

    name: str
    first_key: str

    def supply(self, inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
        tensors = {key: value for key, value in inside.items() if OWN_KEY.fullmatch(key)}
        unused = outside + [key for key in inside if key not in tensors]
        # A classifier has the norm of its last map alone, and a converted file may have none.
        norms = {key.split('.')[0] for key in tensors if key.startswith('norm')}
        return Supplied(self.name, tensors, [], unused, may_lack_norms=len(norms) < 2)


CONVNEUR = OwnLayout('ConvNeur', first_key=f'stages.0.0.local_branch.{PARTS[0]}.weight')
GLNET = OwnLayout('GLNet', first_key='stages.0.0.norm1.weight')
LAYOUTS: tuple[Layout | OwnLayout | GLNetLayout, ...] = (
    CONVNEUR,
    *CONVNEXTS,
    GLNET,
    GLNetLayout(),
)


def recognise(state: Mapping[str, Tensor], prefix: str | None = None) -> Supplied:
    """The tensors of a state dict under this package's names.

    Args:
        state: Of a ConvNeXt, ConvNeur or GLNet, alone or inside another model.
        prefix: Where in the state dict it is; default: found by looking at the keys.

    Raises:
        UsageError: If no layout, or more than one place, fits; for ConvNeXt V2, for a vision
            transformer, for a network with batch norms and for a memory without its trunk.
    """
    places = [place for key in state if (place := _place(key, prefix))]
    if not places:
        raise UsageError(_unknown(state, prefix))
    if len(places) > 1:
        found = ', '.join(repr(start) for _, start in places)
        raise UsageError(f'the checkpoint holds several backbones: set prefix to one of {found}')
    layout, start = places[0]
    inside = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    outside = [key for key in state if not key.startswith(start)]
    return layout.supply(inside, outside)


def _place(key: str, prefix: str | None) -> tuple[Layout | OwnLayout | GLNetLayout, str] | None:
    """The layout of which a key is the first one, and the prefix before it."""
    for layout in LAYOUTS:
        start = key.removesuffix(layout.first_key)
        # A longer name may end like a shorter one: what stands before it has to end with a dot.
        if start != key and (start == '' or start.endswith('.')) and prefix in (None, start):
            return layout, start
    return None


def _unknown(state: Mapping[str, Tensor], prefix: str | None) -> str:
    if token := next(filter(CLASS_TOKEN.search, state), None):
        return (
            f'{token} belongs to a vision transformer, and ConvNeur starts from a ConvNeXt: '
            'give weights of one, of DINOv3 convnext-tiny, -small, -base or -large'
        )
    if any('.global_branch.' in key for key in state):
        return (
            'the checkpoint holds the learned part of a ConvNeur without saying which trunk it '
            'belongs to: load it as LearnedPartHook wrote it, into the whole model'
        )
    keys = ', '.join(list(state)[:2]) or 'none at all'
    where = f' under the prefix {prefix!r}' if prefix else ''
    known = ', '.join(layout.name for layout in LAYOUTS)
    return (
        f'the checkpoint holds no backbone{where} that ConvNeur or GLNet can start from: its keys '
        f'are like {keys}, where ConvNeur has {CONVNEUR.first_key} and GLNet {GLNET.first_key}; '
        f'known layouts: {known}'
    )
