"""ResNet-50 and -101 with Spatial Bias in the bottlenecks of their first three stages.

Source: "Spatial Bias for Attention-free Non-local Neural Networks" (arXiv 2302.12505).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import get_type_hints

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...errors import UsageError, check_types
from ...weights.loading import load_pretrained, rewrite, split_init_cfg, tensors_in
from ...weights.report import LoadReport, compare
from ..layers.padding import Layers, coarser, finite_padding, own_area, without_padding
from ..mixers.spatial_bias import NUM_BIASES, SpatialBiasMaps
from .base import check_frozen_stages, resolve_out_indices

try:
    from mmdet.models.backbones.resnet import Bottleneck, ResLayer, ResNet
except ImportError:
    try:  # the same network with other defaults, which are set below
        from mmseg.models.backbones.resnet import Bottleneck, ResLayer, ResNet
    except ImportError as error:
        raise UsageError('SpatialBiasResNet needs mmdet or mmseg: install one of them') from error

NUM_BIASED_STAGES = 3
FIRST_KEY = 'layer1.0.conv1.weight'  # of every ResNet that torchvision's names fit
RESNET_TYPES = dict(
    in_channels=int,
    base_channels=int,
    num_stages=int,
    strides=Sequence[int],
    dilations=Sequence[int],
    out_indices=int | Sequence[int],
    frozen_stages=int,
)
# A norm that changes nothing: what the channels of the bias start with.
IDENTITY_NORM = dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0)


class MaskedBottleneck(Bottleneck):
    """ResNet's bottleneck, whose 3x3 convolution can see zeros in place of padding."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, local_mask: Tensor | None = None
    ) -> Tensor:
        """``(B, C, H, W) -> (B, C', H', W')``; masks as in :class:`LocalBlock`."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self.block, x, mask, local_mask, use_reentrant=False)
        return self.block(x, mask, local_mask)

    def block(self, x: Tensor, mask: Tensor | None, local_mask: Tensor | None) -> Tensor:
        a = self.relu(self.norm1(self.conv1(x)))
        mask = coarser(mask, self.conv1_stride, a)
        local = self.conv2(without_padding(a, coarser(local_mask, self.conv1_stride, a)))
        out = self.norm3(self.conv3(self.relu(self.norm2(self.widen(a, local, mask)))))
        if self.downsample is not None:
            # An average pool before the 1x1 convolution looks around.
            x = self.downsample(without_padding(x, local_mask))
        return self.relu(out + x)

    def widen(self, a: Tensor, local: Tensor, mask: Tensor | None) -> Tensor:
        return local


class SpatialBiasBottleneck(MaskedBottleneck):
    """A bottleneck whose last convolution sees the whole image.

        a = ReLU(BN(W_1 x)),   out = ReLU(x + BN(W_3 ReLU(BN[W_2 * a, bias(a)])))

    W_1 and W_3 are 1x1 convolutions, W_2 is the 3x3 one, bias: :class:`SpatialBiasMaps`. W_3 and
    the norm before it have 3 channels more than in a ResNet.
    """

    def __init__(self, inplanes: int, planes: int, **kwargs) -> None:
        super().__init__(inplanes, planes, **kwargs)
        width = planes + NUM_BIASES
        self.spatial_bias = SpatialBiasMaps(planes, self.norm_cfg)
        self.add_module(self.norm2_name, build_norm_layer(self.norm_cfg, width, postfix=2)[1])
        self.conv3 = build_conv_layer(
            self.conv_cfg, width, planes * self.expansion, kernel_size=1, bias=False
        )

    def widen(self, a: Tensor, local: Tensor, mask: Tensor | None) -> Tensor:
        out_mask = coarser(mask, self.conv2_stride, local)
        return torch.cat([local, self.spatial_bias(a, local.shape[-2:], mask, out_mask)], dim=1)


class ResStage(ResLayer):
    """A stage of ResNet whose blocks get the masks too."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, local_mask: Tensor | None = None
    ) -> Tensor:
        for block in self:
            x = block(x, mask, local_mask)
            mask, local_mask = (coarser(m, block.stride, x) for m in (mask, local_mask))
        return x


@ROOT_MODELS.register_module()
class SpatialBiasResNet(ResNet):
    """mmdet's ResNet with :class:`SpatialBiasBottleneck` in layers 1 to 3; where only mmseg is
    installed, mmseg's, which is the same network.

    +429,588 parameters on ResNet-50, +1,015,544 on ResNet-101. Weights of any ResNet of the same
    depth start it, torchvision's, mmdet's or open-mmlab's, alone or inside another model: the
    columns of W_3 for the bias start at zero, so that it computes what that ResNet computes. (The
    norm before them starts as the identity: a second zero would leave both without a gradient.)

    A frozen stage keeps its zero columns, so its bias stays without effect: with such weights set
    ``frozen_stages=0``. With ``norm_eval`` the norms of the bias keep mean 0 and variance 1.

    Args:
        depth: 50 or 101.
        norm_cfg: As in ResNet, but no group norm: planes + 3 channels have no equal groups.
        norm_eval, stem_channels: As in mmdet's ResNet.
        init_cfg: MMEngine's; ``dict(type='Pretrained', checkpoint='torchvision://resnet50')``.
        batch_invariant: As in :class:`GLNet`.
        dcn, plugins: Do not combine with it.
        kwargs: As in ResNet: ``out_indices``, ``frozen_stages``, ``with_cp``, ``style``, ...

    Raises:
        UsageError: For another depth, stages that do not exist, ``dcn``, ``plugins`` or a group
            norm; while loading, if the
            checkpoint holds no ResNet of this depth.
    """

    arch_settings = {depth: ResNet.arch_settings[depth] for depth in (50, 101)}
    reports_loading = True  # see LoadReportHook

    def __init__(
        self,
        depth: int = 50,
        stem_channels: int | None = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),  # noqa: B006
        norm_eval: bool = True,
        init_cfg: dict | Sequence[dict] | None = None,
        dcn: dict | None = None,
        plugins: Sequence[dict] | None = None,
        batch_invariant: bool = False,
        **kwargs,
    ) -> None:
        options = dict(kwargs, depth=depth, norm_cfg=norm_cfg, norm_eval=norm_eval)
        hints = get_type_hints(SpatialBiasResNet.__init__)
        check_types('SpatialBiasResNet', options, hints | RESNET_TYPES)
        if depth not in self.arch_settings:
            raise UsageError(f'SpatialBiasResNet has no depth {depth}: choose 50 or 101')
        if dcn is not None or plugins is not None:
            raise UsageError('SpatialBiasResNet takes no dcn and no plugins: leave them out')
        if norm_cfg.get('type') == 'GN':
            raise UsageError('SpatialBiasResNet takes no group norm: set norm_cfg to BN or SyncBN')
        stages = kwargs.get('num_stages', 4)
        for name, default in (('strides', (1, 2, 2, 2)), ('dilations', (1, 1, 1, 1))):
            values = kwargs.get(name, default)
            if len(values) != stages or min(values, default=1) < 1:
                raise UsageError(
                    f'{name}={values}: give positive numbers, one for each of num_stages={stages}'
                )
        options['out_indices'] = resolve_out_indices(
            kwargs.get('out_indices', range(stages)), stages
        )
        check_frozen_stages(kwargs.get('frozen_stages', -1), stages)
        files, initial = split_init_cfg(init_cfg)
        try:
            super().__init__(
                stem_channels=stem_channels or kwargs.get('base_channels', 64),
                init_cfg=initial or None,
                **options,
            )
        except Exception as error:
            problem = f'{type(error).__name__} {error}'
            raise UsageError(f'ResNet cannot be built from {options}: {problem}') from error
        self.pretrained_files = files
        self.batch_invariant = batch_invariant
        if self.deep_stem:
            self.stem: nn.Sequential = Layers(*self.stem.children())

    def make_res_layer(self, block: type[nn.Module], **kwargs) -> nn.Module:
        biased = len(self.res_layers) < NUM_BIASED_STAGES
        return ResStage(block=SpatialBiasBottleneck if biased else MaskedBottleneck, **kwargs)

    def forward(self, x: Tensor, img_shapes: Sequence | Tensor | None = None) -> tuple[Tensor, ...]:
        """``x (B, in_channels, H, W)``; ``img_shapes`` as in :class:`StagedBackbone`."""
        mask = own_area(x, img_shapes)
        x = finite_padding(x, mask)
        if self.deep_stem:
            x = self.stem(x, self.local(mask))
        else:
            x = self.relu(self.norm1(self.conv1(without_padding(x, self.local(mask)))))
        mask = coarser(mask, 2, x)
        x = self.maxpool(without_padding(x, self.local(mask)))  # zeros never exceed a ReLU's
        mask = coarser(mask, 2, x)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x, mask, self.local(mask))
            mask = coarser(mask, self.strides[i], x)
            if i in self.out_indices:
                outs.append(without_padding(x, self.local(mask)).contiguous())  # as the others'
        return tuple(outs)

    def local(self, mask: Tensor | None) -> Tensor | None:
        return mask if self.batch_invariant else None

    def init_weights(self) -> None:
        first = not self.is_init
        super().init_weights()
        if first:
            load_pretrained(self, self.pretrained_files)

    def train(self, mode: bool = True) -> SpatialBiasResNet:
        super().train(mode)  # mmdet's returns None
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Every way of loading passes here, inside a detector or a segmentor too.
        fit_resnet(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit_resnet(
    backbone: SpatialBiasResNet, state_dict: MutableMapping[str, Tensor], prefix: str
) -> LoadReport:
    """Rewrite the entries of ``state_dict`` under ``prefix`` to those of a backbone, and report.

    Raises:
        UsageError: If they hold no ResNet, or one that leaves something of the backbone out.
    """
    start = prefix + find_resnet(k.removeprefix(prefix) for k in state_dict if k.startswith(prefix))
    inside = {k.removeprefix(start): v for k, v in tensors_in(state_dict, start).items()}
    tensors = widened(backbone, inside)
    own = backbone.state_dict()
    plain = not any('.spatial_bias.' in name for name in tensors)
    new = [
        name
        for name in own
        # Files of Caffe and of old PyTorch have no counters.
        if name.endswith('.num_batches_tracked') or (plain and '.spatial_bias.' in name)
    ]
    # Classifiers, heads, stages that are not built.
    unused = [name for name in tensors if not hasattr(backbone, name.split('.')[0])]
    report = compare(own, tensors, new, unused)
    if report.missing or not report.enough:
        raise UsageError(
            f'the checkpoint does not fit SpatialBiasResNet of depth {backbone.depth}: {report}; '
            'choose depth, deep_stem and base_channels that belong to the checkpoint'
        )
    rewrite(state_dict, prefix, own, tensors, report, 'SpatialBiasResNet')
    return report


def find_resnet(keys: Iterable[str]) -> str:
    """Prefix of the ResNet's keys in a state dict: ``''``, ``'backbone.'``, ``'module.'``, ..."""
    keys = list(keys)
    starts = [key.removesuffix(FIRST_KEY) for key in keys if f'.{key}'.endswith(f'.{FIRST_KEY}')]
    if not starts:
        raise UsageError(
            f'the checkpoint holds no ResNet with bottlenecks: no key ends with {FIRST_KEY}, '
            f'its keys are like {keys[:1]}'
        )
    if len(starts) > 1:
        found = ', '.join(map(repr, starts))
        raise UsageError(f'the checkpoint holds several ResNets: set init_cfg.prefix to {found}')
    return starts[0]


def widened(backbone: SpatialBiasResNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's tensors with the channels of the bias, which start without effect.

    Columns of W_3 are zero and norms the identity; tensors that have these channels stay.
    """
    tensors = dict(tensors)
    for path, block in backbone.named_modules():
        if not isinstance(block, SpatialBiasBottleneck):
            continue
        conv = f'{path}.conv3.weight'
        if conv in tensors and tensors[conv].size(1) == block.planes:
            tensors[conv] = F.pad(tensors[conv], (0, 0, 0, 0, 0, NUM_BIASES))
        for part, value in IDENTITY_NORM.items():
            name = f'{path}.{block.norm2_name}.{part}'
            if name in tensors and len(tensors[name]) == block.planes:
                tensors[name] = F.pad(tensors[name], (0, NUM_BIASES), value=value)
    return tensors
