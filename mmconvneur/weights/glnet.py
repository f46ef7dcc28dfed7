"""Names and shapes in the published checkpoints of GLNet, and this package's for them.

Of a checkpoint, ``head.`` and ``tklb_aux_head.`` are left out.
"""

from __future__ import annotations

import re

from torch import Tensor

FIRST_KEY = 'stages.0.blocks.0.slot_scale'
ROOTS = ('downsample_layers.', 'stages.')
BLOCK = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.(.+)')
IN_BLOCK = {
    r'slot_scale': 'mixing.clustering.affinity.scale',
    r'relation_mha\.in_proj_(\w+)': r'mixing.clustering.attention.qkv.\1',
    r'relation_mha\.out_proj\.(\w+)': r'mixing.clustering.attention.out_proj.\1',
    r'mha_op\.in_proj_(\w+)': r'mixing.attention.qkv.\1',
    r'mha_op\.out_proj\.(\w+)': r'mixing.attention.out_proj.\1',
    r'feature_conv\.(.+)': r'mixing.local.\1',
    r'pos_conv\.(\w+)': r'position.\1',
    r'ls([12])\.gamma': r'scale\1.weight',
    r'mlp\.2\.(\w+)': r'mlp.3.\1',  # of blocks whose MLP has linear layers
    r'(norm[12]\.\w+|mlp\.[013]\.\w+)': r'\1',
}


def own_name(published: str) -> str | None:
    """The name here of a published one; ``None`` if it is none of a backbone."""
    if published.startswith('downsample_layers.'):
        return published
    if published.startswith('norm.'):
        return published.replace('norm.', 'norm3.', 1)
    if block := BLOCK.fullmatch(published):
        for theirs, ours in IN_BLOCK.items():
            if part := re.fullmatch(theirs, block[3]):
                return f'stages.{block[1]}.{block[2]}.{part.expand(ours)}'
    return None


def own_shape(name: str, value: Tensor) -> Tensor:
    """A tensor in the shape that it has here under ``name``.

    A slot scale, (), becomes (1,), a layer scale, also of shape (1, C, 1, 1), a vector, and a
    linear layer, (D, C), a 1x1 convolution.
    """
    if '.scale' in name:
        return value.flatten()
    if '.mlp.' in name and value.dim() == 2:
        return value[..., None, None]
    return value
