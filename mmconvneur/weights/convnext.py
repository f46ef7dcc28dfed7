"""Names under which checkpoints of ConvNeXt keep their tensors, and ours for them.

Sources of the names: the state dicts of facebookresearch/ConvNeXt, facebookresearch/dinov3,
mmpretrain, timm (and with it OpenCLIP, behind ``visual.trunk.``), torchvision and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from ..errors import UsageError
from .supplied import Supplied, translated

STAGES = range(4)
PARTS = ('depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2', 'gamma')


class Layout(NamedTuple):
    """Names of an implementation of ConvNeXt for the tensors that ConvNeur shares.

    Attributes:
        name: For messages.
        stem: Modules of the stem's convolution and norm.
        downsample: Stage i > 0 -> the module that holds the norm (0) and the convolution (1).
        block: Stage i, block j -> the module of a block.
        parts: Names within a block of ``PARTS``.
        output_norms: Stage -> regular expression of the norm of its output map, where the layout
            has one. The last norm of a classifier is none: it normalises the mean of the map.
    """

    name: str
    stem: tuple[str, str]
    downsample: Callable[[int], str]
    block: Callable[[int, str], str]
    parts: tuple[str, str, str, str, str]
    output_norms: Mapping[int, str] = MappingProxyType({})

    @property
    def first_key(self) -> str:
        return f'{self.block(0, "0")}.{self.parts[0]}.weight'

    @property
    def roots(self) -> tuple[str, ...]:
        """First parts of the keys of stem, downsampling and blocks."""
        modules = (self.stem[0], self.downsample(1), self.block(0, '0'))
        return tuple({re.split(r'\d', module)[0] for module in modules})

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
            if i in self.output_norms:
                yield f'(?:{self.output_norms[i]})', f'norm{i}'

    def own_name(self, key: str) -> str | None:
        for theirs, ours in self.rules():
            if match := re.fullmatch(rf'{theirs}(\.weight|\.bias|)', key):
                return match.expand(ours) + match.groups()[-1]
        return None

    def own_shape(self, name: str, value: Tensor) -> Tensor:
        """1x1 convolutions become linear layers, and layer scales of any shape vectors."""
        if name.endswith('.gamma'):
            return value.flatten()
        if name.endswith(('.pointwise_conv1.weight', '.pointwise_conv2.weight')):
            return value.flatten(1)
        return value

    def supply(self, inside: Mapping[str, Tensor], outside: list[str]) -> Supplied:
        """The tensors of the keys ``inside`` a backbone; ``outside`` are the file's other keys."""
        _check_version(key for key in inside if key.startswith(self.roots))
        own = self.own_name, self.own_shape
        return translated(self.name, self.roots, *own, inside, outside)


def _transformers_dinov3(name: str, model: str) -> Layout:
    return Layout(
        name,
        stem=(f'{model}stages.0.downsample_layers.0', f'{model}stages.0.downsample_layers.1'),
        downsample=lambda i: f'{model}stages.{i}.downsample_layers',
        block=lambda i, j: f'{model}stages.{i}.layers.{j}',
        parts=('depthwise_conv', 'layer_norm', 'pointwise_conv1', 'pointwise_conv2', 'gamma'),
        output_norms={3: r'(?:model\.)?layer_norm'},
    )


OFFICIAL = Layout(
    'ConvNeXt (official repository, DINOv3)',
    stem=('downsample_layers.0.0', 'downsample_layers.0.1'),
    downsample=lambda i: f'downsample_layers.{i}',
    block=lambda i, j: f'stages.{i}.{j}',
    parts=('dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma'),
    # DINOv3's repository has the same names, and its last norm, once more, under `norms.3`.
    output_norms={i: rf'norm{i}|norms\.{i}' for i in STAGES},
)
CONVNEXTS = (
    OFFICIAL,
    OFFICIAL._replace(name='ConvNeXt (mmpretrain)', parts=PARTS),
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
        output_norms={i: rf'hidden_states_norms\.stage{i + 1}' for i in STAGES},
    ),
    # A model of transformers 5 puts `model.` before the stages, its files do not.
    _transformers_dinov3('DINOv3 ConvNeXt (transformers)', 'model.'),
    _transformers_dinov3('DINOv3 ConvNeXt (Hugging Face)', ''),
)


def _check_version(keys: Iterable[str]) -> None:
    for key in keys:
        if '.grn.' in key:
            raise UsageError(
                f'{key} is the response normalisation of ConvNeXt V2, which ConvNeur lacks: '
                'give weights of ConvNeXt (V1)'
            )
        if key.endswith('.running_mean'):
            raise UsageError(
                f'{key} belongs to a batch norm, but ConvNeXt and ConvNeur normalise by layer: '
                'give weights of ConvNeXt (V1)'
            )
