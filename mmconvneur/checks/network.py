"""The model of a config without memory for its weights: batch norm, and an estimate of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..apis.model_zoo import find_weights
from ..errors import UsageError, UsageErrors
from ..utils.arguments import usage_message
from ..utils.configs import type_name
from ..utils.widths import check_widths
from ..weights.files import locate
from ..weights.loading import FROM_SCRATCH
from .data import Run, processes
from .findings import Finding, doubt, wrong

BYTES_OF_STATE = dict(SGD=4, Adam=8, AdamW=8)  # per trained parameter, momentum or two moments


def build_model(cfg: Config) -> tuple[nn.Module | None, list[Finding]]:
    """The model on the device ``meta``; ``None`` for one that cannot be built, or not there.

    What is a user's mistake is a finding, anything else is left to the runner.
    """
    message = None
    for device in ('meta', 'cpu'):  # some networks compute with numbers while they are built
        try:
            with torch.device(device):
                # mmdet writes into the config of the model, which checkpoints keep.
                return revert_sync_batchnorm(MODELS.build(deepcopy(cfg.model))), []
        except Exception as error:
            message = usage_message(error)
    # mmcv's SyncBN asks for the process group, which the runner of several processes starts later.
    if message is None or (processes() > 1 and 'process group' in message):
        return None, []
    return None, [wrong(message)]


def check_start(run: Run) -> Iterator[Finding]:
    """The files that a training starts from are there; those on servers are left to the runner."""
    if not run.train:
        return
    starts: list[tuple[Callable[[str], Path], str, str]] = []
    if run.cfg.get('load_from') and not run.resumes:
        starts.append((find_weights, run.cfg.load_from, ''))  # may be a released model
    for module in run.model.modules() if run.model is not None else ():
        for file in getattr(module, 'pretrained_files', ()):
            starts.append((locate, file['checkpoint'], f'; {FROM_SCRATCH}'))
    for find, name, cure in starts:
        if '://' not in name:
            try:
                find(name)
            except UsageError as error:
                yield wrong(f'{error}{cure}')


def check_maps(run: Run) -> Iterator[Finding]:
    """Neck and heads take the maps of the backbone."""
    try:
        if run.model is not None:
            check_widths(run.model)
    except UsageErrors as error:
        yield from map(wrong, error.messages)


SIDE = 256  # of the image whose maps tell their strides


def check_strides(run: Run) -> Iterator[Finding]:
    """Anchors, points and regions of interest lie on the maps as their strides say.

    Maps of less than 4 x 4 pixels are left out: they tell their strides no longer.
    """
    model: Any = run.model
    if not hasattr(model, 'rpn_head') and not hasattr(model, 'bbox_head'):
        return
    image = torch.zeros(1, 3, SIDE, SIDE, device=next(model.parameters()).device)
    with torch.no_grad(), contextlib.suppress(Exception):  # whatever fails, check_maps has said
        strides = [SIDE / x.shape[-1] for x in model.extract_feat(image)]
        for option, given in given_strides(model):
            pairs = list(zip(given, strides, strict=False))
            if any(stated != real for stated, real in pairs if real <= SIDE / 4):
                yield doubt(
                    f'{option}={given}, but the maps have strides of '
                    f'{", ".join(f"{stride:g}" for stride in strides)} pixels: write these'
                )


def given_strides(model: Any) -> Iterator[tuple[str, list[int]]]:
    for name in ('rpn_head', 'bbox_head'):
        generator = getattr(getattr(model, name, None), 'prior_generator', None)
        if generator is not None:
            pairs = [s if isinstance(s, (list, tuple)) else [s] for s in generator.strides]
            yield f'strides of model.{name}', [pair[0] for pair in pairs]
    for name, module in model.named_modules():
        if hasattr(module, 'featmap_strides') and 'semantic' not in name:  # HTC cuts another map
            yield f'model.{name}.featmap_strides', list(module.featmap_strides)


def check_window(run: Run) -> Iterator[Finding]:
    """A segmentor that slides a window knows its size and its step."""
    cfg = getattr(run.model, 'test_cfg', None) or {}
    if not hasattr(run.model, 'decode_head') or cfg.get('mode') != 'slide':
        return
    sizes: list[Any] = [cfg.get('crop_size'), cfg.get('stride')]
    for name, size in zip(('crop_size', 'stride'), sizes, strict=True):
        if not isinstance(size, (list, tuple)) or len(size) != 2:
            yield wrong(
                f"model.test_cfg.mode is 'slide' and {name} is {size}: give height and width, "
                "or mode='whole'"
            )
            return
    crop, stride = sizes
    if stride[0] > crop[0] or stride[1] > crop[1]:
        yield wrong(
            f'model.test_cfg.stride={stride} leaves out pixels between windows of crop_size={crop}:'
            ' take a smaller one'
        )


def check_batch_norm(run: Run) -> Iterator[Finding]:
    """No batch norm gets a single value per channel, which it cannot normalise in training."""
    train = run.train
    if train is None or run.model is None or run.input_shape is None or processes() > 1:
        return
    size = train.loader.get('batch_size')
    sizes = {size: f'train_dataloader.batch_size={size}'} if size else {}
    number = len(train.dataset) if train.dataset is not None else 0
    if size and run.by_epoch and not train.loader.get('drop_last') and number % size:
        sizes.setdefault(
            number % size,
            f'the last batch of an epoch ({number} images, train_dataloader.batch_size={size})',
        )
    for size, name in sizes.items():
        if size == 1 and (layer := starved_layer(run.model, (1, *run.input_shape))):
            yield wrong(
                f'{name} is one image, and {layer} is a batch norm over one pixel of it, which has '
                'no deviation: take batches of two or more, train_dataloader.drop_last=True, or '
                "norm_cfg=dict(type='GN', num_groups=...) in the head"
            )


def starved_layer(model: nn.Module, shape: tuple[int, ...]) -> str | None:
    """The batch norm that refuses a batch of such a shape, by its name."""
    starved: list[str] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        if module.training and x.shape[0] * x[0, 0].numel() == 1:
            starved.append(name)

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    with contextlib.suppress(Exception):  # whatever else it refuses, training will say
        forward(model, shape)
    for handle in handles:
        handle.remove()
    return starved[0] if starved else None


def forward(model: Any, shape: tuple[int, ...]) -> None:
    """Backbone, neck and the dense heads, in training mode."""
    device = next(model.parameters()).device
    model.train()
    maps = model.extract_feat(torch.zeros(shape, device=device))
    for name in ('decode_head', 'auxiliary_head', 'rpn_head', 'bbox_head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList) and name == 'decode_head':  # a cascade
            output = head[0](maps)
            for part in head[1:]:
                output = part(maps, output)
        elif head is not None:
            for part in head if isinstance(head, nn.ModuleList) else [head]:
                part(maps)


def estimate_memory(run: Run) -> dict[str, int]:
    """Bytes of a training process by what they are for.

    Activations are what autograd keeps of backbone, neck and dense heads, without the heads that
    look at single objects. The parts that are unknown are left out.
    """
    if run.model is None:
        return {}
    parameters = list(run.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    kind = type_name((run.cfg.get('optim_wrapper') or {}).get('optimizer') or {})
    parts = dict(
        weights=4 * sum(p.numel() for p in parameters),
        gradients=4 * trained,
        optimizer=BYTES_OF_STATE.get(kind, 8) * trained,
    )
    batch = run.train.loader.get('batch_size') if run.train else None
    on_meta = all(parameter.is_meta for parameter in parameters)
    if batch and run.input_shape and on_meta:
        parts['activations'] = kept_bytes(run.model, (batch, *run.input_shape))
    return parts


def kept_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, each once."""
    kept: dict[int, Tensor] = {}
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        number = x.untyped_storage()._cdata
        if number not in own:
            kept.setdefault(number, x)  # held, so that no other storage gets its number
        return x

    # A head that needs more than the maps, or an operator that has no meta form, ends the count.
    with saved_tensors_hooks(keep, lambda x: x), contextlib.suppress(Exception):
        forward(model, shape)
    return sum(x.untyped_storage().nbytes() for x in kept.values())
