"""ConvNeur: four stages of local blocks, some of them modulated by a global branch.

Sources: ConvNeur (arXiv 2603.19567) for the blocks; ConvNeXt (arXiv 2201.03545) for stem,
downsampling and the sizes of t, s, b. With a neutral gate t, s and b are ConvNeXt-T, -S, -B.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from mmengine.model import BaseModule, ModuleList, Sequential
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ..errors import UsageError, check_choice
from ..registry import MIXERS
from .block import FUSIONS, ConvNeurBlock, LocalBlock
from .contract import check_contract
from .loading import fit_state_dict, load_pretrained
from .local_branch import LayerNorm2d, LocalBranch

# m1-m4: fitted to the parameters and FLOPs that the paper reports (its widths and depths are not
# published). t, s, b: ConvNeXt, tables 9 and 10 of arXiv 2201.03545.
ARCHS = {
    'm1': dict(channels=(40, 80, 160, 320), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    'm2': dict(channels=(48, 96, 192, 384), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    'm3': dict(channels=(64, 128, 256, 512), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    'm4': dict(channels=(84, 168, 336, 672), depths=(2, 2, 9, 3), mlp_ratio=3, layer_scale=1.0),
    't': dict(channels=(96, 192, 384, 768), depths=(3, 3, 9, 3), mlp_ratio=4, layer_scale=1e-6),
    's': dict(channels=(96, 192, 384, 768), depths=(3, 3, 27, 3), mlp_ratio=4, layer_scale=1e-6),
    'b': dict(channels=(128, 256, 512, 1024), depths=(3, 3, 27, 3), mlp_ratio=4, layer_scale=1e-6),
}
ARCH_DEFAULTS = dict(mlp_ratio=4, layer_scale=1.0, kernel_size=7)
MIN_SIZE = 32  # pixels: the last of four stages has stride 32
INIT_CFG = (
    dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
    dict(type='Constant', layer=['LayerNorm'], val=1.0, bias=0.0),
)


@ROOT_MODELS.register_module()
class ConvNeur(BaseModule):
    """ConvNeur backbone, ``(B, in_channels, H, W) ->`` a tuple of maps, one per ``out_indices``.

    The map of stage i has ``channels[i]`` channels and stride 4, 8, 16, 32 and is contiguous; sizes
    floor, as in ConvNeXt. Any H and W from 32 up. Stages after the last output are not built.

    Args:
        arch: ``'m1' 'm2' 'm3' 'm4' 't' 's' 'b'``, or a dict with ``channels`` and ``depths`` and
            optionally ``mlp_ratio``, ``kernel_size`` and ``layer_scale``.
        in_channels: Channels of the image.
        out_indices: Stages (or one) whose normalised maps are returned, in stage order; -1 is the
            last.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        layer_scale_init_value: Initial gamma; default 1 for m1-m4 and 1e-6 for t, s, b.
        frozen_stages: -1: none; 0: the stem; i: the stem and the first i stages with their norms.
        with_cp: Gradient checkpointing, for all stages or one bool per stage.
        global_mixer: Config of the global branch, ``dict(type='NeuralMemory', ...)``, or one config
            (or ``None``) per stage; ``None``: local branch alone.
        placement: ``'stage'``: the first block of every stage (the paper); ``'block'``: every
            block; or a sequence of stage indices whose first blocks have it.
        fusion: ``'gate'``, ``'add'`` or ``'concat'``.
        init_cfg: MMEngine's; e.g. ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Raises:
        UsageError: For an unknown or impossible choice, and in ``forward`` for a wrong number of
            channels or an image under 32 pixels.
    """

    reports_loading = True  # see LoadReportHook

    def __init__(
        self,
        arch: str | dict = 't',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool | Sequence[bool] = False,
        global_mixer: dict | Sequence[dict | None] | None = dict(type='NeuralMemory'),  # noqa: B006
        placement: str | Sequence[int] = 'stage',
        fusion: str = 'gate',
        init_cfg: dict | Sequence[dict] | None = INIT_CFG,
    ) -> None:
        init_cfgs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
        self.pretrained = [cfg for cfg in init_cfgs if cfg['type'] == 'Pretrained']
        super().__init__(init_cfg=[cfg for cfg in init_cfgs if cfg not in self.pretrained])
        arch = resolve_arch(arch)
        check_choice('fusion', fusion, FUSIONS)
        channels, depths = arch['channels'], arch['depths']
        self.in_channels = in_channels
        self.out_indices = resolve_out_indices(out_indices, len(depths))
        self.frozen_stages = frozen_stages
        if not -1 <= frozen_stages <= len(depths):
            raise UsageError(
                f'frozen_stages={frozen_stages}: choose -1 (none), 0 (stem) or 1 to {len(depths)}'
            )
        mixers = per_stage('global_mixer', global_mixer, len(depths))
        with_cp = per_stage('with_cp', with_cp, len(depths))
        mixed = resolve_placement(placement, depths)
        gamma = arch['layer_scale'] if layer_scale_init_value is None else layer_scale_init_value
        rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()

        def build_block(stage: int, index: int, drop_path: float) -> nn.Module:
            dim = channels[stage]
            local = LocalBranch(dim, arch['mlp_ratio'], arch['kernel_size'], gamma)
            if mixers[stage] is None or (stage, index) not in mixed:
                return LocalBlock(local, drop_path, with_cp[stage])
            mixer = build_mixer(mixers[stage], dim)
            return ConvNeurBlock(local, mixer, FUSIONS[fusion](dim), drop_path, with_cp[stage])

        self.downsample_layers, self.stages = ModuleList(), ModuleList()
        first_blocks = (0, *accumulate(depths))
        for i in range(self.out_indices[-1] + 1):
            self.downsample_layers.append(
                nn.Sequential(nn.Conv2d(in_channels, channels[0], 4, 4), LayerNorm2d(channels[0]))
                if i == 0
                else nn.Sequential(
                    LayerNorm2d(channels[i - 1]), nn.Conv2d(channels[i - 1], channels[i], 2, 2)
                )
            )
            self.stages.append(
                Sequential(
                    *(build_block(i, j, rates[first_blocks[i] + j]) for j in range(depths[i]))
                )
            )
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(channels[i]))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self._check_input(x)
        # One conversion here; every layer below then keeps this layout without a copy.
        x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for i, (downsample, stage) in enumerate(
            zip(self.downsample_layers, self.stages, strict=True)
        ):
            x = stage(downsample(x))
            if i in self.out_indices:
                # mmcv's operators (RoIAlign among them) read channels_last maps as if contiguous.
                outs.append(getattr(self, f'norm{i}')(x).contiguous())
        return tuple(outs)

    def init_weights(self) -> None:
        first = not self.is_init
        super().init_weights()
        if first:
            for cfg in self.pretrained:
                load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Every way of loading passes here, inside a detector or a segmentor too.
        fit_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> ConvNeur:
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen_norms = (
            getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages
        )
        for module in (
            *self.downsample_layers[: max(1, self.frozen_stages)],
            *self.stages[: self.frozen_stages],
            *frozen_norms,
        ):
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, and how many depths there are, for layer-wise decay.

        The stem is depth 0. Three blocks of a stage make a depth, the downsampling before the stage
        belongs to the first of them, and the last depth is the rest: output norms, other modules.
        As in ConvNeXt (arXiv 2201.03545, appendix A): 6 groups of blocks in T, 12 in S and B.
        """
        groups = (-(-len(stage) // 3) for stage in self.stages)
        first_depths = [*accumulate(groups, initial=1)]  # of each stage, then of the rest
        last = first_depths.pop()
        layer, *indices = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or layer not in ('downsample_layers', 'stages'):
            return last, last + 1
        stage = int(indices[0])
        if layer == 'stages':
            return first_depths[stage] + int(indices[1]) // 3, last + 1
        return first_depths[stage] if stage else 0, last + 1

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise UsageError(f'ConvNeur takes (B, C, H, W) and got {tuple(x.shape)}')
        if x.size(1) != self.in_channels:
            raise UsageError(
                f'ConvNeur was built for {self.in_channels} channels and got {x.size(1)}: '
                'set in_channels of the backbone'
            )
        if x.size(2) < MIN_SIZE or x.size(3) < MIN_SIZE:
            raise UsageError(
                f'ConvNeur needs images of at least {MIN_SIZE} x {MIN_SIZE} pixels and got '
                f'{x.size(2)} x {x.size(3)}: resize or pad them'
            )


def build_mixer(cfg: dict, dim: int) -> nn.Module:
    """A global branch for ``dim`` channels from its config; short names and scoped names work.

    Raises:
        UsageError: For an unknown name or option, or a mixer that changes the shape of a map.
    """
    if not isinstance(cfg, dict):
        raise UsageError(f"global_mixer {cfg!r}: give a config, dict(type='NeuralMemory')")
    cfg = dict(cfg)
    name = cfg.pop('type', None)
    mixer = MIXERS.get(name) if isinstance(name, str) else name
    if mixer is None:
        check_choice('global mixer', name, sorted(MIXERS.module_dict))
    unknown = set(cfg) - set(inspect.signature(mixer).parameters)
    if unknown:
        valid = ', '.join(list(inspect.signature(mixer).parameters)[1:])
        raise UsageError(f'{name} has no option {", ".join(sorted(unknown))}: it takes {valid}')
    mixer = mixer(dim, **cfg)
    check_contract(mixer, dim)
    return mixer


def resolve_arch(arch: str | dict) -> dict:
    """The sizes of a named or given arch, every entry filled in."""
    if isinstance(arch, str):
        check_choice('arch', arch, ARCHS)
        arch = ARCHS[arch]
    unknown = set(arch) - {'channels', 'depths', *ARCH_DEFAULTS}
    if unknown or not {'channels', 'depths'} <= set(arch):
        raise UsageError(
            f'arch has the keys {", ".join(arch)}: it takes channels and depths, '
            f'and optionally {", ".join(ARCH_DEFAULTS)}'
        )
    if len(arch['channels']) != len(arch['depths']):
        raise UsageError(
            f'arch has {len(arch["channels"])} channels and {len(arch["depths"])} depths: '
            'give one of each per stage'
        )
    return ARCH_DEFAULTS | dict(arch)


def resolve_out_indices(out_indices: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Stage indices, ascending, with negative ones counted from the last stage."""
    out_indices = [out_indices] if isinstance(out_indices, int) else out_indices
    wanted = [i + num_stages if i < 0 else i for i in out_indices]
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(range(num_stages)):
        raise UsageError(
            f'out_indices={tuple(out_indices)}: choose distinct stages '
            f'from {-num_stages} to {num_stages - 1}'
        )
    return tuple(sorted(wanted))


def resolve_placement(placement: str | Sequence[int], depths: Sequence[int]) -> set:
    """The ``(stage, block)`` pairs that have a global branch."""
    if placement == 'block':
        return {(i, j) for i, depth in enumerate(depths) for j in range(depth)}
    stages = range(len(depths)) if placement == 'stage' else placement
    if isinstance(stages, (str, int)) or not set(stages) <= set(range(len(depths))):
        raise UsageError(
            f"unknown placement {placement!r}: choose 'stage', 'block' "
            f'or a list of stages from 0 to {len(depths) - 1}'
        )
    return {(i, 0) for i in stages}


def per_stage(name: str, value: object, num_stages: int) -> list:
    """``value`` for every stage, or the values of a sequence with one per stage."""
    if not isinstance(value, (list, tuple)):
        return [value] * num_stages
    if len(value) != num_stages:
        raise UsageError(
            f'{name} has {len(value)} entries: give one, or {num_stages}, one per stage'
        )
    return list(value)
