"""Loading of a state dict: recognise the layout, fold in neutral gates, report."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import load_state_dict
from torch import Tensor, nn

from ..errors import UsageError
from .layouts import Supplied, recognise
from .report import LoadReport, compare
from .trunk import NOT_IN_CONVNEXT, Trunk, find_trunk, read_backbone, started

if TYPE_CHECKING:
    from ..models.backbones.base import StagedBackbone

FROM_SCRATCH = 'to start from scratch: --cfg-options model.backbone.init_cfg=None'
STAGE = re.compile(r'(?:stages|downsample_layers)\.(\d+)\.')
COUNTER = 'num_batches_tracked'


def split_init_cfg(init_cfg: dict | Sequence[dict] | None) -> tuple[list[dict], list[dict]]:
    """The files of an ``init_cfg``, which :func:`load_pretrained` takes, and what MMEngine does."""
    cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    listed = isinstance(cfgs, (list, tuple))
    if not listed or not all(isinstance(cfg, dict) and 'type' in cfg for cfg in cfgs):
        raise UsageError(
            f"init_cfg={init_cfg!r}: write init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    files = [cfg for cfg in cfgs if reads_file(cfg['type'])]
    return files, [cfg for cfg in cfgs if cfg not in files]


def reads_file(kind: str | type) -> bool:
    """Whether MMEngine's initialiser of a name, or this class, fills a model from a file."""
    kind = WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind
    return kind is PretrainedInit


def load_pretrained(backbone: StagedBackbone, files: Sequence[dict]) -> None:
    """Fill a backbone from the files of ``dict(type='Pretrained', checkpoint=..., prefix=...)``.

    Args:
        backbone: What is filled.
        files: ``checkpoint`` is a path or URL; ``prefix`` where in the file the backbone is, which
            is otherwise found by looking at the keys.

    Raises:
        UsageError: If a file cannot be read safely, or does not fit.
    """
    for cfg in files:
        try:
            state = read_backbone(cfg['checkpoint'], cfg.get('prefix'))
        except UsageError as error:
            raise UsageError(f'{error}; {FROM_SCRATCH}') from None
        load_state_dict(backbone, state)


def fit_state_dict(
    backbone: StagedBackbone,
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    trunk: Mapping | None = None,
) -> LoadReport:
    """Rewrite the entries of ``state_dict`` under ``prefix`` to those of a backbone, and report.

    A network without global branches (a ConvNeXt, or a ConvNeur of ``global_mixer=None``) starts
    one with them so that it computes the same: their gates start at 1/2, so the layer scale of
    their blocks is doubled. What such a network cannot supply keeps its initial value.

    Args:
        backbone: What the entries are for.
        state_dict, prefix: The entries, and those of other models.
        trunk: The fields of a :class:`Trunk`, which completes a learned part alone.

    Raises:
        UsageError: If less than 95 % of what the source can supply, or has, finds its place, or a
            global branch of one does not fit the other's; for a learned part without its trunk.
    """
    given = tensors_in(state_dict, prefix)
    if not given:
        raise UsageError(
            f'the checkpoint has no key that starts with {prefix!r}, where the backbone is: take '
            'what its own keys start with (module., model., _orig_mod.) off, or load a backbone '
            "alone by init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    inside = {k.removeprefix(prefix): v for k, v in given.items()}
    origin = Trunk(**trunk) if trunk else None
    if origin:
        inside |= find_trunk(backbone, origin)
    own = backbone.state_dict()
    if inside.keys() == own.keys():  # also of layers that were pruned, normalised or adapted
        supplied = Supplied(type(backbone).__name__, inside, [], [], may_lack_norms=False)
    else:
        supplied = recognise(inside)
    tensors, new = started(backbone, supplied)
    not_built = [name for name in tensors if not _is_built(backbone, name)]
    report = compare(own, tensors, new, unused=not_built)
    report = report._replace(
        unexpected=report.unexpected + supplied.unknown, unused=report.unused + supplied.unused
    )
    astray = [*report.unexpected, *report.missing]
    other_branch = any(part in name for name in astray for part in NOT_IN_CONVNEXT)
    if other_branch or not report.enough:
        raise UsageError(_too_little(backbone, inside, supplied, report))
    source = f'{type(backbone).__name__} from {supplied.layout}'
    if origin:
        source += f' (its learned part) and the trunk of {origin.checkpoint} ({origin.sha256[:8]})'
    rewrite(state_dict, prefix, own, tensors, report, source)
    return report


def tensors_in(state: Mapping[str, object], prefix: str = '') -> dict[str, Tensor]:
    """The tensors of a state dict under a prefix: a spoilt one can hold anything."""
    return {k: v for k, v in state.items() if k.startswith(prefix) and isinstance(v, Tensor)}


def rewrite(
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    report: LoadReport,
    source: str,
) -> None:
    """Put what a report says into ``state_dict`` in the place of all that starts with ``prefix``.

    What is new keeps the model's ``own`` state; the rest are the ``tensors`` that the source
    supplies under the model's names. The report is logged with the name of the source.
    """
    level = logging.INFO if report.complete else logging.WARNING
    print_log(f'{source}: {report}', 'current', level)
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    kept = {name: own[name] for name in report.new}
    kept |= {name: value for name, value in tensors.items() if name not in report.unused}
    state_dict.update({prefix + name: value for name, value in kept.items()})


def _is_built(backbone: StagedBackbone, name: str) -> bool:
    if match := STAGE.match(name):
        return int(match[1]) < len(backbone.stages)
    return hasattr(backbone, name.split('.')[0])


def _too_little(
    backbone: StagedBackbone,
    inside: Mapping[str, Tensor],
    supplied: Supplied,
    report: LoadReport,
) -> str:
    theirs, ours = sizes(supplied.tensors), sizes(backbone.state_dict())
    name = type(backbone).__name__
    options = 'arch and global_mixer' if name == 'ConvNeur' else 'arch'
    options += ' as the checkpoint has them'
    if theirs != ours:
        named = {(arch['channels'], arch['depths']): key for key, arch in backbone.archs.items()}
        options = f'arch={named[theirs]!r}' if theirs in named else options
    lost = [*report.missing, *report.mismatched, *report.unexpected][0]
    return (
        f'the checkpoint ({supplied.layout}) fits {report.share:.0%} of this {name}: {report}; '
        f'it has channels, depths {theirs} and the model {ours}, keys like {next(iter(inside))} '
        f'and the model {lost}: choose {options}'
    )


def sizes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and depths of the stages whose tensors, under our names, are given."""
    vectors = re.compile(r'stages\.(\d+)\.\d+\.(?:local_branch\.gamma|norm1\.weight)')
    found = [(int(m[1]), v) for k, v in tensors.items() if (m := vectors.fullmatch(k))]
    depths = Counter(stage for stage, _ in found)
    channels = {stage: value.numel() for stage, value in found}
    return tuple(channels[i] for i in sorted(channels)), tuple(depths[i] for i in sorted(depths))


def check_heads(model: nn.Module, state: Mapping[str, Tensor], complete: bool) -> LoadReport:
    """Compare a state dict with a model, without the backbones that report for themselves.

    Its names are those that the model's own loading gives them: mmdet takes a detector for teacher
    and student of a semi-supervised one, and the heads of an RPN for those of a Mask R-CNN.

    Raises:
        UsageError: If it has to be ``complete`` and a tensor of the model is missing or misshapen.
    """
    backbones = tuple(
        f'{name}.'
        for name, module in model.named_modules()
        if getattr(module, 'reports_loading', False)
    )
    metadata = getattr(state, '_metadata', {})
    given = {key.removeprefix('module.'): value for key, value in tensors_in(state).items()}
    given = _as_loaded(model, given, metadata)
    # MMEngine does not miss a batch norm's counter either.
    own = {k: v for k, v in model.state_dict().items() if k in given or not k.endswith(COUNTER)}
    report = compare(*(_without(backbones, tensors) for tensors in (own, given)))
    if complete and (report.missing or report.mismatched):
        raise UsageError(
            'the checkpoint does not belong to the model of the config: neck and heads have '
            f'{report}; give the config it was trained with, or a backbone alone as '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    return report


def _as_loaded(
    module: nn.Module, state: dict[str, Tensor], metadata: Mapping[str, dict], prefix: str = ''
) -> dict[str, Tensor]:
    """Load a state dict but for our backbones, and return it as the modules renamed it."""
    module._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, [], [], [])
    for name, child in module.named_children():
        if not getattr(child, 'reports_loading', False):
            start = f'{prefix}{name}.'
            inner = {key: state.pop(key) for key in list(state) if key.startswith(start)}
            state |= _as_loaded(child, inner, metadata, start)
    return state


def _without(prefixes: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(prefixes)}
