"""Do neck and heads take the maps of the backbone? They are run to find out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageErrors
from ..models.backbones.base import StagedBackbone

# Where a layer keeps the width it was built for, and the axis of its input that has to be so wide.
WIDTHS = {'in_channels': 1, 'in_features': -1, 'num_features': 1, 'num_channels': 1}


@torch.no_grad()
def check_widths(model: nn.Module) -> None:
    """Raise ``UsageErrors`` for every part that cannot take the maps of a backbone of ours.

    A small image of zeros runs through backbone, neck and those heads that take maps alone. Only
    widths and numbers of maps count: whatever else fails may need what it is given in training.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    problems = [
        problem
        for module in modes
        if isinstance(backbone := getattr(module, 'backbone', None), StagedBackbone)
        for problem in _problems(module, backbone)
    ]
    for module, mode in modes.items():
        module.training = mode
    if problems:
        raise UsageErrors(list(dict.fromkeys(problems)))


def _problems(model: Any, backbone: StagedBackbone) -> Iterator[str]:
    image = next(backbone.parameters()).new_zeros(1, backbone.in_channels, 64, 64)
    maps, giver = backbone(image), 'backbone'
    parts: list[tuple[str, Callable[[Any], Any]]] = []
    if hasattr(model, 'neck'):
        parts.append(('neck', lambda _: model.extract_feat(image)))
    for name, part in model.named_children():
        if name.endswith('head'):
            parts += [(name, one) for one in (part if isinstance(part, nn.ModuleList) else [part])]
    for name, part in parts:
        try:
            result = part(maps)
        except Exception as error:
            problem = width_problem(error, model) or _number_problem(error, model, len(maps))
            if problem:
                widths = [x.size(1) for x in maps]
                yield f'{problem}, but the {giver} gives {widths}: change one of them'
            if name == 'neck':
                return
        else:
            if name == 'neck':
                maps, giver = result, name
            levels = getattr(getattr(part, 'prior_generator', None), 'num_levels', len(maps))
            if name in ('rpn_head', 'bbox_head') and levels != len(maps):
                yield (
                    f'model.{name} has anchors or points of {levels} levels (strides), but the '
                    f'{giver} gives {len(maps)} maps: change one of them'
                )
    for head, region in _heads_of_regions(getattr(model, 'roi_head', None), maps):
        try:
            head(region)
        except Exception as error:
            if problem := width_problem(error, model):
                shape = list(region.shape[1:])
                yield f'{problem}, but regions of the {giver} are {shape}: change one of them'


def _heads_of_regions(roi_head: Any, maps: Sequence[Tensor]) -> Iterator[tuple[nn.Module, Tensor]]:
    """The heads of regions, each with a region as the extractor cuts it out of a map."""
    if roi_head is None or roi_head.with_shared_head:  # which changes the width
        return
    for kind in ('bbox', 'mask'):
        cut: Any = getattr(roi_head, f'{kind}_roi_extractor', None)
        head: Any = getattr(roi_head, f'{kind}_head', None)
        several = isinstance(head, nn.ModuleList)
        for extractor, one in zip(cut, head, strict=False) if several else [(cut, head)]:
            if type(extractor).__name__ == 'SingleRoIExtractor':  # others put maps together
                size = extractor.roi_layers[0].output_size
                yield one, maps[0].new_zeros(1, maps[0].size(1), *size)


def width_problem(error: BaseException, root: nn.Module | None = None) -> str | None:
    """Which layer was given other channels than it was built for, if that is what failed.

    Args:
        error: With its traceback.
        root: The model that layers are named in; default: the outermost in the traceback.
    """
    frames = _module_frames(error)
    if not frames:
        return None
    frame, layer = frames[-1]
    inputs = [x for x in frame.f_locals.values() if isinstance(x, Tensor) and x.dim() > 1]
    built = next(((getattr(layer, a), i) for a, i in WIDTHS.items() if hasattr(layer, a)), None)
    if not inputs or built is None or built[0] == (got := inputs[0].size(built[1])):
        return None
    root = root or frames[0][1]
    problem = f'{_name(layer, root)} takes {built[0]} channels and gets {got}'
    for _, owner in frames:
        if hasattr(owner, 'in_channels') and owner is not layer:
            return f'{_name(owner, root)}.in_channels={_listed(owner.in_channels)}: {problem}'
    return problem


def _number_problem(error: Exception, root: nn.Module, number: int) -> str | None:
    """Which neck or head takes other maps than there are, if that is what failed."""
    frames = _module_frames(error)
    if not frames or not isinstance(error, (AssertionError, IndexError)):
        return None
    part = frames[-1][1]
    index = getattr(part, 'in_index', None)
    if index is not None and beyond(index, number):
        return f'{_name(part, root)}.in_index={_listed(index)}'
    wanted = getattr(part, 'in_channels', None)
    if not isinstance(wanted, (list, tuple)):
        return None
    return None if len(wanted) == number else f'{_name(part, root)}.in_channels={_listed(wanted)}'


def beyond(index: int | Sequence[int], number: int) -> bool:
    """Whether an ``in_index`` of mmseg's heads, one or several, names none of ``number`` maps."""
    indices = [index] if isinstance(index, int) else index
    return not all(-number <= i < number for i in indices)


def _module_frames(error: BaseException) -> list[tuple[FrameType, nn.Module]]:
    """The calls of modules in a traceback, outermost first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [
        (f, f.f_locals['self']) for f in frames if isinstance(f.f_locals.get('self'), nn.Module)
    ]


def _name(module: nn.Module, root: nn.Module) -> str:
    name = next((name for name, m in root.named_modules() if m is module), type(module).__name__)
    return f'model.{name.removeprefix("module.")}'


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
