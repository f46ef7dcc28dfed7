"""ConvNeur: four stages of local blocks, some of them modulated by a global branch.

Sources: ConvNeur (arXiv 2603.19567) for the blocks; ConvNeXt (arXiv 2201.03545) for stem,
downsampling and the sizes of t, s, b, l, xl. With a neutral gate those are ConvNeXt-T to -XL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from ...errors import UsageError, check_choice
from ..layers.block import FUSIONS, ConvNeurBlock, LocalBlock
from ..layers.local_branch import LayerNorm2d, LocalBranch
from ..layers.padding import Layers, Stage
from ..mixers.build import build_mixer
from .base import StagedBackbone, drop_path_rates, per_stage

# m1-m4: fitted to the parameters and FLOPs that the paper reports (its widths and depths are not
# published). t, s, b, l, xl: ConvNeXt, section 3 of arXiv 2201.03545.
ARCHS: dict[str, dict] = {
    'm1': dict(channels=(40, 80, 160, 320), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    'm2': dict(channels=(48, 96, 192, 384), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    'm3': dict(channels=(64, 128, 256, 512), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    'm4': dict(channels=(84, 168, 336, 672), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    't': dict(channels=(96, 192, 384, 768), depths=(3, 3, 9, 3), mlp_ratio=4, layer_scale=1e-6),
    's': dict(channels=(96, 192, 384, 768), depths=(3, 3, 27, 3), mlp_ratio=4, layer_scale=1e-6),
    'b': dict(channels=(128, 256, 512, 1024), depths=(3, 3, 27, 3), mlp_ratio=4, layer_scale=1e-6),
    'l': dict(channels=(192, 384, 768, 1536), depths=(3, 3, 27, 3), mlp_ratio=4, layer_scale=1e-6),
    'xl': dict(
        channels=(256, 512, 1024, 2048), depths=(3, 3, 27, 3), mlp_ratio=4, layer_scale=1e-6
    ),
}
ARCH_TYPES = dict(
    channels=Sequence[int],
    depths=Sequence[int],
    mlp_ratio=float,
    layer_scale=float,
    kernel_size=int,
)
ARCH_DEFAULTS = dict(mlp_ratio=4, layer_scale=1.0, kernel_size=7)
# They divide images that are padded to a multiple of 32: tokens lie the same in any batch.
TOKEN_STRIDES = (1, 2, 4, 8, 16, 32)
INIT_CFG = (
    dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
    dict(type='Constant', layer=['LayerNorm'], val=1.0, bias=0.0),
)


@ROOT_MODELS.register_module()
class ConvNeur(StagedBackbone):
    """ConvNeur backbone, ``(B, in_channels, H, W) ->`` a tuple of maps, one per ``out_indices``.

    The map of stage i has ``channels[i]`` channels and stride 4, 8, 16, 32 and is contiguous; sizes
    floor, as in ConvNeXt. Any H and W from 32 up. Stages after the last output are not built.

    Args:
        arch: ``'m1' 'm2' 'm3' 'm4' 't' 's' 'b' 'l' 'xl'``, or a dict with ``channels`` and
            ``depths`` and optionally ``mlp_ratio``, ``kernel_size`` and ``layer_scale``.
        in_channels: Channels of the image.
        out_indices: Stages (or one) whose normalised maps are returned, in stage order; -1 is the
            last.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        layer_scale_init_value: Initial gamma; default 1 for m1-m4 and 1e-6 for t to xl.
        frozen_stages: -1: none; 0: the stem; i: the stem and the first i stages with their norms.
        frozen_trunk: Whether all that a ConvNeXt has stays as it is, without stochastic depth, and
            only global branches, fusions and the norms of the maps learn.
        with_cp: Gradient checkpointing, for all stages or one bool per stage.
        global_mixer: Config of the global branch, ``dict(type='NeuralMemory', ...)``, or one config
            (or ``None``) per stage; ``None``: local branch alone.
        placement: ``'stage'``: the first block of every stage (the paper); ``'block'``: every
            block; or a sequence of stage indices whose first blocks have it.
        fusion: ``'gate'``, ``'add'`` or ``'concat'``.
        token_stride: Side, in pixels of the image, of the tokens that a global branch gets: a power
            of two up to 32. With 8 the map of stride 4 is pooled by 2 x 2; maps of stride 8 and
            more, and with 1 all maps, are passed as they are.
        batch_invariant: Not only the global branches take nothing from an image's padding: local
            convolutions see zeros there in every layer. Then an image has the same maps alone,
            padded to a multiple of 32, and in any batch; they are zero on padding.
        init_cfg: MMEngine's; e.g. ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Raises:
        UsageError: For an unknown or impossible choice, and in ``forward`` for a wrong number of
            channels or an image under 32 pixels.
    """

    archs, arch_types, arch_defaults = ARCHS, ARCH_TYPES, ARCH_DEFAULTS

    def __init__(
        self,
        arch: str | dict = 't',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        frozen_stages: int = -1,
        frozen_trunk: bool = False,
        with_cp: bool | Sequence[bool] = False,
        global_mixer: dict | Sequence[dict | None] | None = dict(type='NeuralMemory'),  # noqa: B006
        placement: str | Sequence[int] = 'stage',
        fusion: str = 'gate',
        token_stride: int = 8,
        batch_invariant: bool = False,
        init_cfg: dict | Sequence[dict] | None = INIT_CFG,
    ) -> None:
        self.check_options(locals())
        arch = self.resolve_arch(arch)
        channels, depths = arch['channels'], arch['depths']
        super().__init__(
            len(depths), in_channels, out_indices, frozen_stages, batch_invariant, init_cfg
        )
        self.frozen_trunk = frozen_trunk
        check_choice('fusion', fusion, FUSIONS)
        if token_stride not in TOKEN_STRIDES:
            choices = ', '.join(map(str, TOKEN_STRIDES))
            raise UsageError(
                f'token_stride={token_stride!r}: choose one of {choices} pixels; with 1 every '
                'position is a token'
            )
        mixers = per_stage('global_mixer', global_mixer, len(depths))
        with_cp = per_stage('with_cp', with_cp, len(depths))
        mixed = resolve_placement(placement, depths)
        gamma = arch['layer_scale'] if layer_scale_init_value is None else layer_scale_init_value
        rates = drop_path_rates(drop_path_rate, depths)

        def build_block(stage: int, index: int, drop_path: float) -> nn.Module:
            dim = channels[stage]
            local = LocalBranch(dim, arch['mlp_ratio'], arch['kernel_size'], gamma)
            if mixers[stage] is None or (stage, index) not in mixed:
                return LocalBlock(local, drop_path, with_cp[stage])
            mixer, fuse = build_mixer(mixers[stage], dim), FUSIONS[fusion](dim)
            size = max(1, token_stride // (4 * 2**stage))
            return ConvNeurBlock(local, mixer, fuse, drop_path, with_cp[stage], size)

        for i in self.built_stages:
            self.downsample_layers.append(
                Layers(nn.Conv2d(in_channels, channels[0], 4, 4), LayerNorm2d(channels[0]))
                if i == 0
                else Layers(
                    LayerNorm2d(channels[i - 1]), nn.Conv2d(channels[i - 1], channels[i], 2, 2)
                )
            )
            self.stages.append(Stage(*(build_block(i, j, rate) for j, rate in enumerate(rates[i]))))
        self.finds_padding = batch_invariant or any(
            isinstance(block, ConvNeurBlock) for stage in self.stages for block in stage
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(channels[i]))
        self._freeze()

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict:
        """The sizes of a named or given arch, every entry filled in and possible."""
        arch = super().resolve_arch(arch)
        if arch['kernel_size'] < 1 or arch['kernel_size'] % 2 == 0:
            raise UsageError(f'kernel_size={arch["kernel_size"]} of arch: give an odd number, 7')
        return arch

    def frozen_modules(self) -> Iterator[nn.Module]:
        yield from super().frozen_modules()
        if self.frozen_trunk:
            yield self.downsample_layers
            for stage in self.stages:
                for block in stage:
                    yield from (block.local_branch, block.drop_path)


def resolve_placement(placement: str | Sequence[int], depths: Sequence[int]) -> set:
    """The ``(stage, block)`` pairs that have a global branch."""
    if placement == 'block':
        return {(i, j) for i, depth in enumerate(depths) for j in range(depth)}
    stages = range(len(depths)) if placement == 'stage' else placement
    listed = isinstance(stages, Sequence) and not isinstance(stages, str)
    if not listed or not all(i in range(len(depths)) for i in stages):
        raise UsageError(
            f"unknown placement {placement!r}: choose 'stage', 'block' "
            f'or a list of stages from 0 to {len(depths) - 1}'
        )
    return {(i, 0) for i in stages}
