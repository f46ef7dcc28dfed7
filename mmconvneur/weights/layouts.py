"""Names under which implementations of ConvNeXt keep their tensors, and ConvNeur's for them.

A layout is found by looking at the keys: the depthwise convolution of the very first block has a
name of its own in each of them, and whatever stands before it is a prefix (``backbone.``,
``module.``, ``convnext.``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError

STAGES = range(4)
PARTS = ('depthwise_conv', 'norm', 'expand', 'project', 'layer_scale')


class Layout(NamedTuple):
    """Where an implementation keeps what ConvNeur has too.

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


CONVNEUR = Layout(
    'ConvNeur',
    stem=('downsample_layers.0.0', 'downsample_layers.0.1'),
    downsample=lambda i: f'downsample_layers.{i}',
    block=lambda i, j: f'stages.{i}.{j}',
    parts=tuple(f'local_branch.{part}' for part in PARTS),
    output_norm=lambda i: f'norm{i}',
)
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
LAYOUTS = (CONVNEUR, *CONVNEXTS)


class Supplied(NamedTuple):
    """What a file holds for a ConvNeur.

    Attributes:
        layout: Name of the layout it was found in.
        tensors: Under ConvNeur's names and in its shapes.
        unknown: Keys inside the blocks and layers of the layout that it does not have.
        unused: Keys of the file that are no part of a backbone: classifiers, other heads.
        has_global_branch: Whether it supplies global branches; a ConvNeXt does not.
    """

    layout: str
    tensors: dict[str, Tensor]
    unknown: list[str]
    unused: list[str]
    has_global_branch: bool


def recognise(state: Mapping[str, Tensor], prefix: str | None = None) -> Supplied:
    """The tensors of a state dict under ConvNeur's names.

    Args:
        state: Of a ConvNeXt or ConvNeur, alone or inside another model.
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
    if layout is CONVNEUR:
        return _own(inside, outside)
    _check_version(key for key in inside if key.startswith(layout.roots))
    rules = [(re.compile(rf'{theirs}(\.weight|\.bias|)'), ours) for theirs, ours in layout.rules()]
    tensors, unknown, unused = {}, [], outside
    for key, value in inside.items():
        for pattern, ours in rules:
            if match := pattern.fullmatch(key):
                name = match.expand(ours) + match[match.lastindex]
                tensors[name] = _shaped(name, value)
                break
        else:
            (unknown if key.startswith(layout.roots) else unused).append(key)
    return Supplied(layout.name, tensors, unknown, unused, has_global_branch=False)


def _own(inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
    own = re.compile(r'(downsample_layers|stages)\.\d+\..*|norm\d+\.(weight|bias)')
    tensors = {key: value for key, value in inside.items() if own.fullmatch(key)}
    unused = outside + [key for key in inside if key not in tensors]
    return Supplied(
        'ConvNeur', tensors, [], unused, any('.global_branch.' in key for key in tensors)
    )


def _shaped(name: str, value: Tensor) -> Tensor:
    """1x1 convolutions become linear layers, and layer scales of any shape vectors."""
    if name.endswith('.layer_scale'):
        return value.flatten()
    if name.endswith(('.expand.weight', '.project.weight')):
        return value.flatten(1)
    return value


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
        f'the checkpoint holds no backbone{where} that ConvNeur can start from: its keys are like '
        f'{keys}, where ConvNeur has {CONVNEUR.first_key}; known layouts: {known}'
    )
