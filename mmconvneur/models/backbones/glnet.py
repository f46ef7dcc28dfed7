"""GLNet: stages of blocks that join a soft clustering of the pixels with a depthwise convolution.

Sources: GLMix (arXiv 2411.14429); names and shapes in its checkpoints and its public code for what
the paper leaves open (order of norms, activations, epsilons).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from ...errors import UsageError, check_choice
from ..layers.local_branch import LayerNorm2d
from ..layers.padding import Layers, Stage
from .base import StagedBackbone, drop_path_rates, per_stage
from .glnet_block import MIXINGS, GLNetBlock

# Sizes of the public code. mixers: the kinds of a stage's blocks in turn.
GLMIX, ATTENTION, BOTH = ('glmix',), ('attention',), ('glmix', 'attention')
HYBRID = dict(
    depths=(4, 4, 18, 4), mixers=(GLMIX, GLMIX, BOTH, ATTENTION), mlp_ratio=3, overlap=True
)
ARCHS: dict[str, dict] = {
    'stl': dict(channels=(96, 192, 384, 768), depths=(2, 2, 6, 2)),
    '4g': dict(HYBRID, channels=(64, 128, 256, 512)),
    '9g': dict(HYBRID, channels=(96, 192, 384, 768)),
    '16g': dict(HYBRID, channels=(128, 256, 512, 1024), layer_scale=1e-4),
}
ARCH_TYPES = dict(
    channels=Sequence[int],
    depths=Sequence[int],
    mixers=Sequence,
    mlp_ratio=float,
    overlap=bool,
    layer_scale=float | None,
    head_dim=int,
)
ARCH_DEFAULTS = dict(
    mixers=(GLMIX, GLMIX, GLMIX, ATTENTION),
    mlp_ratio=4,
    overlap=False,
    layer_scale=None,
    head_dim=32,
)


@ROOT_MODELS.register_module()
class GLNet(StagedBackbone):
    """GLNet backbone, ``(B, in_channels, H, W) ->`` a tuple of maps, one per ``out_indices``.

    The map of stage i has ``channels[i]`` channels and stride 4, 8, 16, 32 and is contiguous; sizes
    floor in stl and ceil in the others. Any H and W from 32 up. The last map has the network's own
    batch norm, as its classifier sees it; the maps before it, which are not published as outputs,
    have layer norms.

    Full attention is quadratic in the image's area: 2 N^2 C multiplications per block. At
    800 x 1280 stage 3 has N = 50 x 80 = 4000 pixels and stage 4 N = 25 x 40 = 1000. In 4g the 9
    such blocks of stage 3 (C = 256) take 9 x 8.2 = 73.7 G and the 4 of stage 4 (C = 512) 4.1 G, on
    top of 83.8 G for all the rest; in stl the 2 of stage 4 (C = 768) take 3.1 G on top of 83.2 G.
    At 224 x 224 it is 0.2 of 4.5 G in 4g. The weights, 8 x 4000^2 floats or 512 MB per block, are
    not stored: ``scaled_dot_product_attention`` needs memory linear in N where PyTorch has a fused
    kernel, as it has for CPUs and CUDA.

    Args:
        arch: ``'stl' '4g' '9g' '16g'``, or a dict with ``channels`` and ``depths`` and optionally
            ``mixers`` (for every stage the kinds of its blocks in turn, ``'glmix'`` or
            ``'attention'``), ``mlp_ratio``, ``overlap`` (3x3 convolutions in stem, downsampling,
            MLP and as position encoding, instead of disjoint patches), ``layer_scale`` and
            ``head_dim`` (channels of an attention head).
        in_channels: Channels of the image.
        out_indices: Stages (or one) whose normalised maps are returned, in stage order; -1 is the
            last.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        frozen_stages: -1: none; 0: the stem; i: the stem and the first i stages with their norms.
        with_cp: Gradient checkpointing, for all stages or one bool per stage.
        norm_cfg: Batch norm of stem, downsampling and the last map; ``dict(type='SyncBN')`` for a
            few images per GPU.
        batch_invariant: As in :class:`ConvNeur`; in training batch norms that are not frozen still
            mix the images of a batch.
        init_cfg: MMEngine's; e.g. ``dict(type='Pretrained', checkpoint=...)`` with a published
            file, whose names ``mmconvneur.weights.glnet`` translates. ``None``: PyTorch's own
            initialisation, Xavier's in attention.

    Raises:
        UsageError: For an unknown or impossible choice, and in ``forward`` for a wrong number of
            channels or an image under 32 pixels.
    """

    archs, arch_types, arch_defaults = ARCHS, ARCH_TYPES, ARCH_DEFAULTS

    def __init__(
        self,
        arch: str | dict = 'stl',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool | Sequence[bool] = False,
        norm_cfg: dict = dict(type='BN'),  # noqa: B006
        batch_invariant: bool = False,
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        self.check_options(locals())
        arch = self.resolve_arch(arch)
        channels, depths = arch['channels'], arch['depths']
        super().__init__(
            len(depths), in_channels, out_indices, frozen_stages, batch_invariant, init_cfg
        )
        with_cp = per_stage('with_cp', with_cp, len(depths))
        rates = drop_path_rates(drop_path_rate, depths)
        downsample = overlapping_patches if arch['overlap'] else disjoint_patches
        widths = (in_channels, *channels)
        for i in self.built_stages:
            kinds = islice(cycle(arch['mixers'][i]), depths[i])
            blocks = (
                GLNetBlock(
                    channels[i],
                    MIXINGS[kind](channels[i], channels[i] // arch['head_dim']),
                    arch['mlp_ratio'],
                    arch['overlap'],
                    arch['layer_scale'],
                    rate,
                    with_cp[i],
                )
                for kind, rate in zip(kinds, rates[i], strict=True)
            )
            self.downsample_layers.append(downsample(i, widths[i], widths[i + 1], norm_cfg))
            self.stages.append(Stage(*blocks))
        for i in self.out_indices:
            last = i == len(depths) - 1
            norm = batch_norm(norm_cfg, channels[i]) if last else LayerNorm2d(channels[i])
            self.add_module(f'norm{i}', norm)
        self._freeze()

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict:
        """The sizes of a named or given arch, every entry filled in and possible."""
        arch = super().resolve_arch(arch)
        mixers, depths = len(arch['mixers']), len(arch['depths'])
        if mixers != depths:
            raise UsageError(
                f'arch has mixers for {mixers} stages and {depths} depths: '
                'give the kinds of blocks of every stage'
            )
        for kinds in arch['mixers']:
            if not isinstance(kinds, (list, tuple)) or not kinds:
                raise UsageError(
                    f"the kinds {kinds!r} of a stage in arch's mixers: give a sequence, ('glmix',)"
                )
            for kind in kinds:
                check_choice('entry of mixers', kind, MIXINGS)
        for dim in arch['channels']:
            if arch['head_dim'] < 1 or dim % arch['head_dim']:
                raise UsageError(
                    f'head_dim={arch["head_dim"]} must divide the channels {dim}: '
                    'set head_dim or channels of arch accordingly'
                )
        return arch


def disjoint_patches(stage: int, in_channels: int, dim: int, norm_cfg: dict) -> Layers:
    """Stem (stage 0) or downsampling without overlap: 4x4 and norm, or norm and 2x2."""
    if stage == 0:
        return Layers(nn.Conv2d(in_channels, dim, 4, 4), batch_norm(norm_cfg, dim))
    return Layers(batch_norm(norm_cfg, in_channels), nn.Conv2d(in_channels, dim, 2, 2))


def overlapping_patches(stage: int, in_channels: int, dim: int, norm_cfg: dict) -> Layers:
    """Stem (stage 0) or downsampling by two or one 3x3 convolutions of stride 2, each with norm."""
    if stage > 0:
        return Layers(nn.Conv2d(in_channels, dim, 3, 2, padding=1), batch_norm(norm_cfg, dim))
    return Layers(
        nn.Identity(),  # keeps the indices of the published checkpoints
        nn.Conv2d(in_channels, dim // 2, 3, 2, padding=1),
        batch_norm(norm_cfg, dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, 2, padding=1),
        batch_norm(norm_cfg, dim),
    )


def batch_norm(norm_cfg: dict, dim: int) -> nn.Module:
    try:
        return build_norm_layer(norm_cfg, dim)[1]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f'norm_cfg={norm_cfg} makes no norm: {error}') from error
