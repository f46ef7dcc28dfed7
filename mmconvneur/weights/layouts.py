"""Names under which checkpoints of ConvNeXt and GLNet keep their tensors, and ours for them.

A layout is found by looking at the keys: something in the very first block, in a ConvNeXt its
depthwise convolution, has a name of its own in each of them, and whatever stands before it is a
prefix (``backbone.``, ``module.``, ``convnext.``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError
from . import glnet

STAGES = range(4)
OWN_KEY = re.compile(r'(downsample_layers|stages)\.\d+\..*|norm\d+\.\w+')
PARTS = ('depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2', 'gamma')


class Supplied(NamedTuple):
    """What a file holds for a backbone.

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


class Layout(NamedTuple):
    """Where an implementation of ConvNeXt keeps what ConvNeur has too.

    Attributes:
        name: For messages.
        stem: Modules of the stem's convolution and norm.
        downsample: Stage i > 0 -> the module that holds the norm (0) and the convolution (1).
        block: Stage i, block j -> the module of a block.
        parts: Names within a block of ``PARTS``.
        output_norm: Stage i -> the norm of its output map, where the layout has one.
    """

    name: str
    stem: tuple[str, str]
    downsample: Callable[[int], str]
    block: Callable[[int, str], str]
    parts: tuple[str, str, str, str, str]
    output_norm: Callable[[int], str] | None = None

    @property
    def first_key(self) -> str:
        return f'{self.block(0, "0")}.{self.parts[0]}.weight'

    @property
    def roots(self) -> tuple[str, ...]:
        """What the keys of stem, downsampling and blocks start with."""
        modules = (self.stem[0], self.downsample(1), self.block(0, '0'))
        return tuple({module.split('.')[0] + '.' for module in modules})

    def rules(self) -> Iterator[tuple[str, str]]:
        """Pairs of a regular expression for the layout's module and ConvNeur's module."""
        for part, module in enumerate(self.stem):
            yield re.escape(module), f'downsample_layers.0.{part}'
        for i in STAGES:
            for part in (0, 1):
                if i > 0:
                    module = f'{self.downsample(i)}.{part}'
                    yield re.escape(module), f'downsample_layers.{i}.{part}'
            for theirs, ours in zip(self.parts, PARTS, strict=True):
                module = re.escape(f'{self.block(i, "@")}.{theirs}').replace('@', r'(\d+)')
                yield module, rf'stages.{i}.\1.local_branch.{ours}'
            if self.output_norm is not None:
                yield re.escape(self.output_norm(i)), f'norm{i}'

    def own_name(self, key: str) -> str | None:
        for theirs, ours in self.rules():
            if match := re.fullmatch(rf'{theirs}(\.weight|\.bias|)', key):
                return match.expand(ours) + match[match.lastindex]
        return None

    def own_shape(self, name: str, value: Tensor) -> Tensor:
        """1x1 convolutions become linear layers, and layer scales of any shape vectors."""
        if name.endswith('.gamma'):
            return value.flatten()
        if name.endswith(('.pointwise_conv1.weight', '.pointwise_conv2.weight')):
            return value.flatten(1)
        return value

    def supply(self, inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
        """What the keys ``inside`` a backbone hold, ``outside`` being the file's others."""
        _check_version(key for key in inside if key.startswith(self.roots))
        return _translated(self, inside, outside)


def _translated(
    layout: Layout | GLNetLayout, inside: Mapping[str, Tensor], outside: list[str]
) -> Supplied:
    tensors, unknown, unused = {}, [], outside
    for key, value in inside.items():
        if name := layout.own_name(key):
            tensors[name] = layout.own_shape(name, value)
        else:
            (unknown if key.startswith(layout.roots) else unused).append(key)
    return Supplied(layout.name, tensors, unknown, unused, may_lack_norms=True)


class GLNetLayout:
    """The published checkpoints of GLNet; see :mod:`.glnet` for the names."""

    name = 'GLNet (official repository)'
    first_key = glnet.FIRST_KEY
    roots = glnet.ROOTS
    own_name = staticmethod(glnet.own_name)
    own_shape = staticmethod(glnet.own_shape)
    supply = _translated


class OwnLayout(NamedTuple):
    """The names of a backbone of this package.

    Attributes:
        name: Of the backbone.
        first_key: A key that every such file has.
        trained: Keys that a file has that was trained here, not converted.
    """

    name: str
    first_key: str
    trained: re.Pattern

    def supply(self, inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
        tensors = {key: value for key, value in inside.items() if OWN_KEY.fullmatch(key)}
        unused = outside + [key for key in inside if key not in tensors]
        trained = any(map(self.trained.search, tensors))
        return Supplied(self.name, tensors, [], unused, may_lack_norms=not trained)


CONVNEUR = OwnLayout(
    'ConvNeur',
    first_key=f'stages.0.0.local_branch.{PARTS[0]}.weight',
    trained=re.compile(r'\.global_branch\.'),
)
GLNET = OwnLayout('GLNet', first_key='stages.0.0.norm1.weight', trained=re.compile(r'^norm[0-2]\.'))
CONVNEXTS = (
    Layout(
        'ConvNeXt (official repository)',
        stem=('downsample_layers.0.0', 'downsample_layers.0.1'),
        downsample=lambda i: f'downsample_layers.{i}',
        block=lambda i, j: f'stages.{i}.{j}',
        parts=('dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma'),
        output_norm=lambda i: f'norm{i}',
    ),
    Layout(
        'ConvNeXt (mmpretrain)',
        stem=('downsample_layers.0.0', 'downsample_layers.0.1'),
        downsample=lambda i: f'downsample_layers.{i}',
        block=lambda i, j: f'stages.{i}.{j}',
        parts=('depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2', 'gamma'),
        output_norm=lambda i: f'norm{i}',
    ),
    Layout(
        'ConvNeXt (timm)',
        stem=('stem.0', 'stem.1'),
        downsample=lambda i: f'stages.{i}.downsample',
        block=lambda i, j: f'stages.{i}.blocks.{j}',
        parts=('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2', 'gamma'),
    ),
    Layout(
        'ConvNeXt (torchvision)',
        stem=('features.0.0', 'features.0.1'),
        downsample=lambda i: f'features.{2 * i}',
        block=lambda i, j: f'features.{2 * i + 1}.{j}',
        parts=('block.0', 'block.2', 'block.3', 'block.5', 'layer_scale'),
    ),
    Layout(
        'ConvNeXt (Hugging Face)',
        stem=('embeddings.patch_embeddings', 'embeddings.layernorm'),
        downsample=lambda i: f'encoder.stages.{i}.downsampling_layer',
        block=lambda i, j: f'encoder.stages.{i}.layers.{j}',
        parts=('dwconv', 'layernorm', 'pwconv1', 'pwconv2', 'layer_scale_parameter'),
        output_norm=lambda i: f'hidden_states_norms.stage{i + 1}',
    ),
)
LAYOUTS = (CONVNEUR, *CONVNEXTS, GLNET, GLNetLayout())


def recognise(state: Mapping[str, Tensor], prefix: str | None = None) -> Supplied:
    """The tensors of a state dict under this package's names.

    Args:
        state: Of a ConvNeXt, ConvNeur or GLNet, alone or inside another model.
        prefix: Where in the state dict it is; default: found by looking at the keys.

    Raises:
        UsageError: If no layout, or more than one place, fits; for ConvNeXt V2 and for a network
            with batch norms.
    """
    places = [
        (layout, key.removesuffix(layout.first_key))
        for key in state
        for layout in LAYOUTS
        if key.endswith(layout.first_key) and (prefix is None or key == prefix + layout.first_key)
    ]
    # A longer name may end like a shorter one: what stands before it has to end with a dot.
    places = [(layout, start) for layout, start in places if start == '' or start.endswith('.')]
    if not places:
        raise UsageError(_unknown(state, prefix))
    if len(places) > 1:
        found = ', '.join(repr(start) for _, start in places)
        raise UsageError(f'the checkpoint holds several backbones: set prefix to one of {found}')
    layout, start = places[0]
    inside = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    outside = [key for key in state if not key.startswith(start)]
    return layout.supply(inside, outside)


def _check_version(keys: Iterable[str]) -> None:
    for key in keys:
        if '.grn.' in key:
            raise UsageError(
                f'{key} is the response normalisation of ConvNeXt V2, which ConvNeur has not: '
                'give weights of ConvNeXt (V1)'
            )
        if key.endswith('.running_mean'):
            raise UsageError(
                f'{key} belongs to a batch norm, but ConvNeXt and ConvNeur normalise by layer: '
                'give weights of ConvNeXt (V1)'
            )


def _unknown(state: Mapping[str, Tensor], prefix: str | None) -> str:
    keys = ', '.join(list(state)[:2]) or 'none at all'
    where = f' under the prefix {prefix!r}' if prefix else ''
    known = ', '.join(layout.name for layout in LAYOUTS)
    return (
        f'the checkpoint holds no backbone{where} that ConvNeur or GLNet can start from: its keys '
        f'are like {keys}, where ConvNeur has {CONVNEUR.first_key} and GLNet {GLNET.first_key}; '
        f'known layouts: {known}'
    )
