"""Learning rates and weight decay per parameter, to fine-tune any detector or segmentor.

Sources: layer-wise decay from BEiT (arXiv 2106.08254) and ConvNeXt (arXiv 2201.03545, appendix A);
``get_layer_depth`` is the interface of mmpretrain's backbones, ``no_weight_decay`` that of Swin.
"""

from __future__ import annotations

from collections.abc import Callable

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..errors import UsageError
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

PARAMWISE_KEYS = (  # the first is ours, the others are DefaultOptimWrapperConstructor's
    'layer_decay_rate',
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LearningRateDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Smaller steps for shallower layers, and no weight decay where it would do harm.

        lr(p) = lr * layer_decay_rate ** (num_layers - 1 - depth(p))

    ``(depth, num_layers)`` is what the outermost submodule around a parameter that has
    ``get_layer_depth(param_name)`` answers: ConvNeur, or of mmpretrain ConvNeXt, ViT, Swin.
    The stem has depth 0; what no such submodule holds (neck, heads) has the last depth: ``lr``.
    Weight decay is 0 for parameters with at most one axis longer than 1 (norms, biases, layer
    scales, scalars) and for the names in any submodule's ``no_weight_decay()``.

    Parameters with the same depth and options share a group; its ``group_name`` is
    ``layer_<depth>_decay`` or ``layer_<depth>_no_decay``, then any custom options. Frozen
    parameters are left out; a parameter with two names is taken once, under the first.

    Args:
        optim_wrapper_cfg: MMEngine's; the optimizer needs ``lr`` and ``weight_decay``.
        paramwise_cfg: ``layer_decay_rate`` in (0, 1], and the keys of MMEngine's
            :class:`DefaultOptimWrapperConstructor`; its multipliers multiply what the rules above
            give, so that nothing they exempt from weight decay decays again.

    Raises:
        UsageError: For an unknown key, a bad ``layer_decay_rate``, no ``lr`` or ``weight_decay``, a
            model without ``get_layer_depth``, and FSDP, whose shards have other names and shapes.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = sorted(set(self.paramwise_cfg) - set(PARAMWISE_KEYS))
        if unknown:
            raise UsageError(
                f'paramwise_cfg has no key {", ".join(unknown)} with layer-wise decay: it takes '
                f'{", ".join(PARAMWISE_KEYS)}; the backbone knows its own layers'
            )
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise UsageError(
                f'paramwise_cfg.layer_decay_rate is {rate}: set it above 0 and at most 1'
            )
        if self.base_lr is None or self.base_wd is None:
            raise UsageError('layer-wise decay scales lr and weight_decay: set both in optimizer')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        if isinstance(model, FullyShardedDataParallel):
            raise UsageError(
                'layer-wise decay cannot tell the layers of a model in FSDP: train with DDP, or '
                'remove constructor and layer_decay_rate from optim_wrapper'
            )
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append the groups of ``module``, the whole model, to ``params``."""
        depths, exempt = layer_depths(module), names_without_decay(module)
        multiplied = self._multiplied(module)
        groups: dict[tuple, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            depth, num_layers = depths[name]
            custom = multiplied[parameter]
            lr = custom.pop('lr', self.base_lr)
            lr *= self.paramwise_cfg['layer_decay_rate'] ** (num_layers - 1 - depth)
            decay = custom.pop('weight_decay', self.base_wd) * (name not in exempt)
            label = f'layer_{depth}_{"decay" if decay else "no_decay"}'
            label += ''.join(f', {key}={value}' for key, value in custom.items())
            group = dict(custom, group_name=label, lr=lr, weight_decay=decay, params=[])
            groups.setdefault((label, lr, decay), group)['params'].append(parameter)
        params.extend(groups.values())
        lines = (
            f'{group["group_name"]}: lr {group["lr"]:.3g}, weight decay {group["weight_decay"]:g}, '
            f'{len(group["params"])} tensors'
            for group in params
        )
        print_log('Parameter groups\n' + '\n'.join(lines), logger='current')

    def _multiplied(self, model: nn.Module) -> dict[Tensor, dict]:
        """The options that MMEngine's constructor gives each parameter, without any depth."""
        groups: list[dict] = []
        default = DefaultOptimWrapperConstructor(
            dict(optimizer=self.optimizer_cfg), self.paramwise_cfg
        )
        default.add_params(groups, model)
        # From the last name of a shared parameter to the first, which stays.
        return {group.pop('params')[0]: group for group in reversed(groups)}


def layer_depths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """``(depth, num_layers)`` of every parameter of ``model``, by name.

    Raises:
        UsageError: If no submodule has ``get_layer_depth``.
    """
    # By prefix; outer ones come first and answer for inner ones.
    owners: dict[str, Callable[[str], tuple[int, int]]] = {}
    for path, module in model.named_modules():
        prefix = f'{path}.' if path else ''
        answer = getattr(module, 'get_layer_depth', None)
        if answer and not prefix.startswith(tuple(owners)):
            owners[prefix] = answer
    if not owners:
        raise UsageError(
            f'layer-wise decay: nothing in {type(model).__name__} has get_layer_depth; take '
            'ConvNeur or a backbone of mmpretrain that has it (ConvNeXt, ViT, Swin), or '
            'remove constructor and layer_decay_rate from optim_wrapper'
        )
    depths = {
        name: answer(name.removeprefix(prefix))
        for prefix, answer in owners.items()
        for name, _ in model.named_parameters()
        if name.startswith(prefix)
    }
    num_layers = max(num_layers for _, num_layers in depths.values())
    rest = {name: (num_layers - 1, num_layers) for name, _ in model.named_parameters()}
    return rest | depths


def names_without_decay(model: nn.Module) -> set[str]:
    """Flat parameters, and those that a submodule lists in ``no_weight_decay()``."""
    flat = {
        name
        for name, parameter in model.named_parameters()
        if sum(size > 1 for size in parameter.shape) <= 1
    }
    listed = {
        f'{path}.{name}' if path else name
        for path, module in model.named_modules()
        if hasattr(module, 'no_weight_decay')
        for name in module.no_weight_decay()
    }
    return flat | listed
