"""Base class of the backbones: outputs, freezing, loading and depths of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, get_type_hints

import numpy as np
import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ...errors import UsageError, check_choice, check_types
from ...weights.loading import fit_state_dict, load_pretrained, split_init_cfg
from ...weights.trunk import TRUNK
from ..layers.padding import coarser, finite_padding, own_area, without_padding

MIN_SIZE = 32  # pixels: the last of four stages has stride 32


class StagedBackbone(BaseModule):
    """``(B, in_channels, H, W) ->`` a tuple of normalised maps, one per output stage.

        x_i = stage_i(downsample_i(x_{i-1})),   out_i = norm_i(x_i)

    Global branches take nothing from the padding of an image, which is found in the image itself:
    trailing rows and columns of one constant (see :func:`own_area`). Local convolutions see the
    padding as it is, unless ``batch_invariant``.

    A subclass appends to ``downsample_layers`` (the first is the stem) and ``stages`` for each of
    ``built_stages``, adds the modules ``norm{i}``, and then calls ``_freeze``.

    Args:
        num_stages: Stages of the whole network.
        in_channels: Channels of the image.
        out_indices: Stages (or one) whose maps are returned, in stage order; -1 is the last. Stages
            after the last output are not built.
        frozen_stages: -1: none; 0: the stem; i: the stem and the first i stages with their norms.
        batch_invariant: Local convolutions too take nothing from padding: every one of them sees
            zeros there, as beyond the edge. Then an image has the same maps alone, padded to a
            multiple of 32, and in any batch; they are zero on padding.
        init_cfg: MMEngine's; e.g. ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Raises:
        UsageError: For stages that do not exist, and in ``forward`` for a wrong number of channels
            or an image under 32 pixels.
    """

    reports_loading = True  # see LoadReportHook
    archs: dict[str, dict]  # sizes by name: channels and depths of the stages, and more
    arch_types: dict[str, Any]  # of its entries
    arch_defaults: dict  # of what an arch may leave out

    def __init__(
        self,
        num_stages: int,
        in_channels: int,
        out_indices: int | Sequence[int],
        frozen_stages: int,
        batch_invariant: bool,
        init_cfg: dict | Sequence[dict] | None,
    ) -> None:
        self.pretrained_files, initial = split_init_cfg(init_cfg)
        super().__init__(init_cfg=initial)
        self.in_channels = in_channels
        self.out_indices = resolve_out_indices(out_indices, num_stages)
        check_frozen_stages(frozen_stages, num_stages)
        self.frozen_stages = frozen_stages
        self.batch_invariant = batch_invariant
        self.finds_padding = True
        self.downsample_layers, self.stages = ModuleList(), ModuleList()

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict:
        """The sizes of an arch given by its name or as a dict, every entry filled in."""
        if isinstance(arch, str):
            check_choice('arch', arch, cls.archs)
            arch = cls.archs[arch]
        unknown = set(arch) - set(cls.arch_types)
        if unknown or not {'channels', 'depths'} <= set(arch):
            raise UsageError(
                f'arch has the keys {", ".join(map(str, arch))}: it takes channels and depths, '
                f'and optionally {", ".join(cls.arch_defaults)}'
            )
        check_types('arch', arch, cls.arch_types)
        if len(arch['channels']) != len(arch['depths']):
            raise UsageError(
                f'arch has {len(arch["channels"])} channels and {len(arch["depths"])} depths: '
                'give one of each per stage'
            )
        for name in ('channels', 'depths'):
            if min(arch[name], default=0) < 1:
                raise UsageError(f'arch has {name}={arch[name]}: give positive numbers')
        arch = cls.arch_defaults | dict(arch)
        if int(arch['mlp_ratio'] * min(arch['channels'])) < 1:
            raise UsageError(f'mlp_ratio={arch["mlp_ratio"]} of arch leaves no channel: give 4')
        return arch

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise ``UsageError`` for an option of another type than it is annotated with, or out of
        its range."""
        better = ('init_cfg', 'global_mixer', 'placement')  # are told how they are written
        hints = {k: v for k, v in get_type_hints(cls.__init__).items() if k not in better}
        check_types(cls.__name__, options, hints)
        if options['in_channels'] < 1:
            raise UsageError(f'in_channels={options["in_channels"]} must be positive')
        if not 0 <= options['drop_path_rate'] < 1:
            raise UsageError(f'drop_path_rate={options["drop_path_rate"]}: give 0 to less than 1')

    @property
    def built_stages(self) -> range:
        return range(self.out_indices[-1] + 1)

    def forward(self, x: Tensor, img_shapes: Sequence | Tensor | None = None) -> tuple[Tensor, ...]:
        """``x (B, in_channels, H, W)``; ``img_shapes``: height and width of each image without its
        padding, ``(B, 2)``, where they are known, instead of a search in ``x``."""
        self._check_input(x)
        mask = own_area(x, img_shapes) if self.finds_padding else None
        local_mask = mask if self.batch_invariant else None
        x = finite_padding(x, mask)
        # One conversion here; every layer below then keeps this layout without a copy.
        x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for i in self.built_stages:
            x = self.downsample_layers[i](x, local_mask)
            mask = coarser(mask, 2 if i else 4, x)
            local_mask = mask if self.batch_invariant else None
            x = self.stages[i](x, mask, local_mask)
            if i in self.out_indices:
                out = without_padding(getattr(self, f'norm{i}')(x), local_mask)
                # mmcv's operators (RoIAlign among them) read channels_last maps as if contiguous.
                outs.append(out.contiguous())
        return tuple(outs)

    def init_weights(self) -> None:
        first = not self.is_init
        super().init_weights()
        if first:
            load_pretrained(self, self.pretrained_files)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args
    ) -> None:
        # Every way of loading passes here, inside a detector or a segmentor too.
        fit_state_dict(self, state_dict, prefix, local_metadata.get(TRUNK))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def train(self, mode: bool = True) -> StagedBackbone:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for module in self.frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def frozen_modules(self) -> Iterator[nn.Module]:
        """What does not learn and stays in evaluation mode."""
        if self.frozen_stages >= 0:
            yield from self.downsample_layers[: max(1, self.frozen_stages)]
            yield from self.stages[: self.frozen_stages]
            yield from (
                getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages
            )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, and how many depths there are, for layer-wise decay.

        The stem is depth 0. Three blocks of a stage make a depth, the downsampling before the stage
        belongs to the first of them, and the last depth is the rest: output norms, other modules.
        As in ConvNeXt (arXiv 2201.03545, appendix A): 6 groups of blocks in T, 12 from S on.
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
        name = type(self).__name__
        if x.dim() != 4:
            raise UsageError(f'{name} takes (B, C, H, W) and got {tuple(x.shape)}')
        if x.size(1) != self.in_channels:
            raise UsageError(
                f'{name} was built for {self.in_channels} channels and got {x.size(1)}: '
                'set in_channels of the backbone'
            )
        smallest = max(MIN_SIZE, 2 ** (len(self.stages) + 1))
        if min(x.shape[2:]) < smallest:
            raise UsageError(
                f'{name} needs images of at least {smallest} x {smallest} pixels and got '
                f'{x.size(2)} x {x.size(3)}: resize or pad them'
            )


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


def check_frozen_stages(frozen_stages: int, num_stages: int) -> None:
    """Raise ``UsageError`` for stages that do not exist."""
    if not -1 <= frozen_stages <= num_stages:
        raise UsageError(
            f'frozen_stages={frozen_stages}: choose -1 (none), 0 (stem) or 1 to {num_stages}'
        )


def per_stage(name: str, value: object, num_stages: int) -> list:
    """``value`` for every stage, or the values of a sequence with one per stage."""
    if not isinstance(value, (list, tuple)):
        return [value] * num_stages
    if len(value) != num_stages:
        raise UsageError(
            f'{name} has {len(value)} entries: give one, or {num_stages}, one per stage'
        )
    return list(value)


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """The rate of every block of every stage: from 0 linearly to ``last``."""
    rates = iter(np.linspace(0, last, sum(depths)).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]
