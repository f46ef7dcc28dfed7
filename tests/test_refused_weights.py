"""Networks that no backbone of this package starts from, and ConvNeXts of another size."""

from __future__ import annotations

import pytest
import torch
from test_weights import ARCH, CHANNELS, DEPTHS

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.backbones.convneur import ARCHS

transformers = pytest.importorskip('transformers', minversion='4.56')  # the first with DINOv3


def vit() -> dict:
    sizes = dict(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_hidden_layers=1)
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes)).state_dict()


def named(*keys: str) -> dict:
    return {key: torch.zeros(3) for key in keys}


def convnext_v2() -> dict:
    config = transformers.ConvNextV2Config(hidden_sizes=list(CHANNELS), depths=list(DEPTHS))
    return transformers.ConvNextV2Model(config).state_dict()


V2 = r'grn\.\w+ is the response normalisation of ConvNeXt V2, .*: give weights of ConvNeXt \(V1\)$'
VIT = (
    'token belongs to a vision transformer.*: give weights of one, of DINOv3 convnext-tiny, -small'
)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize(
    ('state', 'message'),
    [
        (vit(), rf'embeddings\.cls_{VIT}'),
        (named('cls_token', 'storage_tokens', 'blocks.0.norm1.weight'), rf'cls_{VIT}'),
        (convnext_v2(), rf'^encoder\.stages\.0\.layers\.0\.{V2}'),
        (named('stages.0.0.dwconv.weight', 'stages.0.0.grn.gamma'), rf'^stages\.0\.0\.{V2}'),
        (
            named('stages.0.blocks.0.conv_dw.weight', 'stages.0.blocks.0.mlp.grn.weight'),
            rf'^stages\.0\.blocks\.0\.mlp\.{V2}',
        ),
    ],
    ids='vit vit-repository v2 v2-official v2-timm'.split(),
)
def test_other_networks_are_refused_in_one_line(state, message, prefix):
    with pytest.raises(UsageError, match=message) as refused:
        ConvNeur(ARCH).load_state_dict({prefix + k: v for k, v in state.items()}, strict=False)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize(('given', 'built'), [('l', 't'), ('s', 'b'), ('t', 's')])
def test_another_size_is_named(given, built):
    size = ARCHS[given]
    with torch.device('meta'):
        config = dict(hidden_sizes=list(size['channels']), depths=list(size['depths']))
        state = transformers.DINOv3ConvNextModel(
            transformers.DINOv3ConvNextConfig(**config)
        ).state_dict()
        backbone = ConvNeur(built)
    with pytest.raises(
        UsageError, match=rf"DINOv3.*fits \d+%.*: choose arch='{given}'$"
    ) as refused:
        backbone.load_state_dict(state, strict=False)
    assert '\n' not in str(refused.value)
