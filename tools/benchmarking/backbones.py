"""The backbones that can be compared, each as a config and with random weights.

All return four maps of strides 4 to 32, normalised where the backbone can: Swin, PVTv2, MSCAN and
the ConvNeXts can, a ResNet ends in a ReLU. Stochastic depth is off everywhere; all else is as the
project of a backbone configures it for detection or segmentation, or its default: mmdet's Swin
computes its attention in matrix products and cannot be cast to bfloat16 (use amp), Hugging Face's
runs scaled_dot_product_attention. A project is imported when a backbone of it is built.
"""

from __future__ import annotations

import ast
import re
from importlib import import_module

from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmconvneur.errors import UsageError, check_choice
from mmconvneur.models.backbones import convneur, glnet
from mmconvneur.registry import MIXERS

# Sizes: arXiv 2103.14030 (Swin), 2106.13797 (PVTv2), 1512.03385 (ResNet), 2209.08575 (MSCAN),
# 2201.03545 (ConvNeXt), 2301.00808 (ConvNeXt V2), 2411.14429 (GLNet), 2302.12505 (Spatial Bias).
SWIN = dict(type='mmdet.SwinTransformer', drop_path_rate=0.0)
PVTV2 = dict(type='mmdet.PyramidVisionTransformerV2', drop_path_rate=0.0)
MSCAN = dict(type='mmseg.MSCAN', mlp_ratios=(8, 8, 4, 4), norm_cfg=dict(type='BN'))
HF_CONVNEXT = dict(type='transformers.ConvNextConfig', hidden_sizes=[96, 192, 384, 768])
HF_SWIN = dict(
    type='transformers.SwinConfig', embed_dim=96, num_heads=[3, 6, 12, 24], drop_path_rate=0.0
)
COMMA = re.compile(r',(?![^\[(]*[\])])')  # between options, not inside a list
BACKBONES = {
    **{f'convneur-{arch}': dict(type='mmconvneur.ConvNeur', arch=arch) for arch in convneur.ARCHS},
    **{f'glnet-{arch}': dict(type='mmconvneur.GLNet', arch=arch) for arch in glnet.ARCHS},
    'spatial-bias-resnet-50': dict(type='mmconvneur.SpatialBiasResNet', depth=50),
    'swin-t': dict(SWIN, depths=(2, 2, 6, 2)),
    'swin-s': dict(SWIN, depths=(2, 2, 18, 2)),
    'mmseg-swin-t': dict(SWIN, type='mmseg.SwinTransformer', depths=(2, 2, 6, 2)),
    'pvtv2-b0': dict(PVTV2, embed_dims=32, num_layers=[2, 2, 2, 2]),
    'pvtv2-b1': dict(PVTV2, embed_dims=64, num_layers=[2, 2, 2, 2]),
    'pvtv2-b2': dict(PVTV2, embed_dims=64, num_layers=[3, 4, 6, 3]),
    'resnet-18': dict(type='mmdet.ResNet', depth=18),
    'resnet-50': dict(type='mmdet.ResNet', depth=50),
    'resnet-101': dict(type='mmdet.ResNet', depth=101),
    'mscan-t': dict(MSCAN, embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    'mscan-s': dict(MSCAN, embed_dims=(64, 128, 320, 512), depths=(2, 2, 4, 2)),
    'mscan-b': dict(MSCAN, embed_dims=(64, 128, 320, 512), depths=(3, 3, 12, 3)),
    'mmpretrain-hornet-t': dict(
        type='mmpretrain.HorNet', arch='tiny', drop_path_rate=0.0, out_indices=(0, 1, 2, 3)
    ),
    'timm-convnext-t': dict(type='timm.convnext_tiny'),
    'timm-resnet-50': dict(type='timm.resnet50', out_indices=(1, 2, 3, 4)),
    'timm-pvtv2-b2': dict(type='timm.pvt_v2_b2'),
    'timm-inception-next-t': dict(type='timm.inception_next_tiny'),
    'timm-repvit-m1.5': dict(type='timm.repvit_m1_5'),
    'timm-mambaout-t': dict(type='timm.mambaout_tiny'),
    'timm-focalnet-t': dict(type='timm.focalnet_tiny_srf'),
    'timm-rdnet-t': dict(type='timm.rdnet_tiny'),
    'hf-convnext-t': dict(HF_CONVNEXT, depths=[3, 3, 9, 3]),
    'hf-convnext-s': dict(HF_CONVNEXT, depths=[3, 3, 27, 3]),
    'hf-convnext-b': dict(HF_CONVNEXT, depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024]),
    'hf-convnextv2-t': dict(HF_CONVNEXT, type='transformers.ConvNextV2Config', depths=[3, 3, 9, 3]),
    'hf-swin-t': dict(HF_SWIN, depths=[2, 2, 6, 2]),
    'hf-swin-s': dict(HF_SWIN, depths=[2, 2, 18, 2]),
    'hf-pvtv2-b2': dict(
        type='transformers.PvtV2Config',
        hidden_sizes=[64, 128, 320, 512],
        depths=[3, 4, 6, 3],
        num_attention_heads=[1, 2, 5, 8],
        mlp_ratios=[8, 8, 4, 4],
        drop_path_rate=0.0,
    ),
    'hf-resnet-50': dict(
        type='transformers.ResNetConfig',
        hidden_sizes=[256, 512, 1024, 2048],
        depths=[3, 4, 6, 3],
    ),
}


def configure(what: str) -> dict:
    """The config of ``NAME[:OPTION,...]``.

    An option is ``key=value`` of the config (``with_cp=True``, ``placement=[2,3]``), or for a
    ConvNeur the type of its global mixer (``NeuralMemory,global_mixer.memory_dim=64``) or ``local``
    for none.

    Raises:
        UsageError: For an unknown name or option.
    """
    name, _, options = what.partition(':')
    check_choice('backbone', name, BACKBONES)
    cfg = Config(BACKBONES[name])
    for option in filter(None, COMMA.split(options)):
        key, equals, value = option.partition('=')
        if equals:
            cfg.merge_from_dict({key: literal(value)})
        elif not name.startswith('convneur-'):
            raise UsageError(f'{what}: {name} takes options of the form key=value')
        elif key == 'local':
            cfg.global_mixer = None
        else:
            check_choice('global mixer', key, ['local', *sorted(MIXERS.module_dict)])
            cfg.global_mixer = dict(type=key)
    return cfg.to_dict()


def literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build(cfg: dict) -> nn.Module:
    """The backbone of a config, ``(B, 3, H, W) ->`` four maps.

    Raises:
        ImportError: If its project is not installed, or not completely.
    """
    project, name = cfg['type'].split('.')
    if project == 'transformers':
        return HuggingFaceBackbone(name, {k: v for k, v in cfg.items() if k != 'type'})
    if project == 'timm':
        options = {k: v for k, v in cfg.items() if k != 'type'}
        return import_module('timm').create_model(name, features_only=True, **options)
    import_module(f'{project}.models')
    return ROOT_MODELS.build(cfg)


class HuggingFaceBackbone(nn.Module):
    """A backbone of Hugging Face's transformers; its four maps come from ``feature_maps``."""

    def __init__(self, config: str, options: dict) -> None:
        super().__init__()
        import transformers

        stages = ['stage1', 'stage2', 'stage3', 'stage4']
        config = getattr(transformers, config)(**options, out_features=stages)
        self.model = transformers.AutoBackbone.from_config(config)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model(x).feature_maps
