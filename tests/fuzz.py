"""Tries random configs, checkpoints and annotation files, legal and mutilated ones:

    python tests/fuzz.py --seed 0
    python tests/fuzz.py --only coco --seed 17 --count 1

Legal backbones of every kind give finite maps and gradients, and with ``batch_invariant`` the same
maps alone and in a batch. Whatever is mutilated works nevertheless, or ends in one line that names
what is wrong. A failure is printed with the command that repeats it. Not part of the tests: it
takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import math
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import METRICS, MODELS, init_default_scope
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from steps import SAMPLE_CONFIGS
from test_glnet import checkpoint as published_glnet
from test_padding import alone, assert_same, padded
from test_weights import LAYOUTS, renamed
from torch import Tensor, nn
from transformers import ConvNextBackbone, ConvNextConfig

from mmconvneur.apis.inference import load_model
from mmconvneur.checks.look import examine, sort
from mmconvneur.checks.pictures import name_files
from mmconvneur.checks.summary import tables
from mmconvneur.engine.checkpoints import read_training
from mmconvneur.errors import UsageErrors
from mmconvneur.models.backbones.base import StagedBackbone
from mmconvneur.models.layers.block import FUSIONS
from mmconvneur.utils.arguments import usage_message
from mmconvneur.utils.configs import fill_in
from mmconvneur.weights.reading import load_safely

ROOT = Path(__file__).parent.parent
CHANNELS, DEPTHS = (8, 12, 20, 28), (1, 1, 2, 1)
ARCH = dict(channels=CHANNELS, depths=DEPTHS)
JUNK = (None, -1, 0, 1, 2.5, 3, 99, 'x', '', [], {}, [None], (1, 2, 3), dict(a=1), True)


class Case(NamedTuple):
    """What is tried, in words, and how."""

    what: object
    run: Callable[[], None]


class NotNamed(Exception):
    """A message that does not say what is wrong."""


def silent() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def works_or_names(*culprits: object) -> Iterator[None]:
    """Pass over what the tools print in one line, if it names one of these."""
    try:
        yield
    except NotNamed:
        raise
    except Exception as error:
        message = usage_message(error)
        if message is None:
            raise
        lines = error.messages if isinstance(error, UsageErrors) else [message]
        check_lines([' '.join(line.split()) for line in lines], *culprits)  # as they are printed


def check_lines(lines: list[str], *culprits: object) -> None:
    named = [any(str(culprit) in line for culprit in culprits if str(culprit)) for line in lines]
    if not any(named) or any('\n' in line or len(line) > 1500 for line in lines):
        raise NotNamed(f'{lines} names none of {culprits}')


# ---------------------------------------------------------------------------------- mutilation
def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in nested dicts and lists."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, part in items:
        yield (*path, key)
        yield from places(part, (*path, key))


def mutilate(rng: random.Random, value: Any, path: tuple, junk: tuple = JUNK) -> tuple[Any, list]:
    """A copy with something else at a path, and what may be named of it."""
    key, *rest = path
    named = [key] if isinstance(key, str) else ['stage']  # of lists numbers are told
    items = dict(value) if isinstance(value, Mapping) else dict(enumerate(value))
    if rest:
        items[key], more = mutilate(rng, items[key], tuple(rest), junk)
        named += more
    else:
        old = items.pop(key)
        match rng.choice(('junk', 'junk', 'junk', 'drop', 'again', 'misspelt')):
            case 'junk':
                items[key] = rng.choice(junk)
                named += [repr(items[key])] * (len(repr(items[key])) > 2)  # 1 is in any line
            case 'again' if not isinstance(value, Mapping):
                items |= {key: old, len(items) + 1: old}
            case 'misspelt' if isinstance(key, str):
                items[f'{key}s'] = old
    made = items if isinstance(value, Mapping) else type(value)(items.values())
    return made, named


# ----------------------------------------------------------------------------------- backbones
def random_mixer(rng: random.Random) -> dict:
    heads = rng.choice((1, 2, 4))
    width = heads * rng.choice((1, 3, 8))
    inner_model = rng.choice(('linear', 'two_layer', 'gated'))
    chunks = dict(
        memory_dim=width,
        num_heads=heads,
        inner_model=inner_model,
        gradient=rng.choice(('running', 'start')),
        # Over many chunks, steps of one let the others diverge.
        chunk_size=rng.choice((7, 64, 500)) if inner_model == 'linear' else 500,
    )
    start = rng.choice((None, 10))
    options: dict[str, dict] = dict(
        NeuralMemory=dict(memory_dim=width, num_heads=heads),
        ChunkedNeuralMemory=dict(chunks, read=rng.choice(('before', 'after'))),
        PublishedNeuralMemory=dict(chunks, lr=rng.choice((1, 1e-3))),
        GLMix=dict(num_slots=rng.choice((1, 4, 16)), num_heads=heads, scale_init_value=start),
        SelfAttention=dict(bottleneck_dim=width, num_heads=heads),
        NonLocal=dict(bottleneck_dim=2 * width),
        CBAM=dict(bottleneck_dim=width),
        SpatialBias=dict(norm_cfg=dict(type='BN')),
    )
    name = rng.choice(list(options))
    return dict(options[name], type=rng.choice((name, f'mmconvneur.{name}')))


def random_outputs(rng: random.Random, stages: int) -> int | list[int]:
    chosen = rng.sample(range(stages), rng.randint(1, stages))
    chosen = [i - stages if rng.random() < 0.3 else i for i in chosen]
    return chosen[0] if len(chosen) == 1 and rng.random() < 0.5 else chosen


def random_backbone(rng: random.Random) -> dict:
    stages = rng.choice((1, 2, 3, 4, 4, 4, 5))
    channels = [4 * rng.randint(1, 6) for _ in range(stages)]
    arch = dict(channels=channels, depths=[rng.randint(1, 2) for _ in range(stages)])
    cfg = dict(
        in_channels=rng.choice((1, 3, 3, 4)),
        out_indices=random_outputs(rng, stages),
        frozen_stages=rng.choice((-1, -1, *range(stages + 1))),
        with_cp=rng.choice((False, True)),
        batch_invariant=rng.choice((False, True)),
    )
    if rng.random() < 0.5:
        cfg['with_cp'] = [rng.random() < 0.5 for _ in range(stages)]
    kind = rng.choice(
        ('ConvNeur', 'ConvNeur', 'ConvNeur', 'GLNet', *['SpatialBiasResNet'] * (stages < 5))
    )
    if kind != 'SpatialBiasResNet':
        cfg['drop_path_rate'] = rng.choice((0, 0.0, 0.4))
        arch['mlp_ratio'] = rng.choice((1, 2, 2.5))
    match kind:
        case 'ConvNeur':
            arch['kernel_size'] = rng.choice((1, 3, 5, 7))
            cfg |= dict(
                arch=arch,
                layer_scale_init_value=rng.choice((None, 1, 1e-6)),
                frozen_trunk=rng.random() < 0.2,
                global_mixer=rng.choice(
                    (None, random_mixer(rng), [random_mixer(rng) for _ in channels])
                ),
                placement=rng.choice(('stage', 'block', rng.sample(range(stages), 1))),
                fusion=rng.choice(list(FUSIONS)),
                token_stride=rng.choice((1, 4, 8, 8, 16, 32)),
            )
        case 'GLNet':
            kinds = (['glmix'], ['attention'], ['glmix', 'attention'])
            arch |= dict(
                mixers=[rng.choice(kinds) for _ in channels],
                overlap=rng.random() < 0.5,
                layer_scale=rng.choice((None, 1, 1e-4)),
                head_dim=rng.choice((1, 2, 4)),
            )
            cfg |= dict(arch=arch)
        case _:
            cfg['with_cp'] = rng.random() < 0.3
            cfg |= dict(
                num_stages=stages,
                strides=[rng.choice((1, 2)) if i else 1 for i in range(stages)],
                dilations=[rng.choice((1, 2)) for _ in range(stages)],
                depth=50,
                base_channels=8,
                style=rng.choice(('pytorch', 'caffe')),
                deep_stem=rng.random() < 0.3,
                avg_down=rng.random() < 0.3,
                norm_eval=rng.random() < 0.5,
            )
    return dict(cfg, type=f'mmconvneur.{kind}')


def awake(net: nn.Module) -> nn.Module:
    """With random last layers of global branches, which start at zero."""
    for name, parameter in net.named_parameters():
        if name.endswith('out_proj.weight'):
            nn.init.normal_(parameter, std=0.1)
    return net


def check_step(net: nn.Module, x: Tensor, dtype: str) -> None:
    """Maps and gradients are finite and complete."""
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'autocast'):
        maps = net.train()(x)
    assert len(maps) == len(net.out_indices)
    for feature in maps:
        assert feature.isfinite().all() and feature.size(0) == x.size(0) and feature.is_contiguous()
    if not any(feature.requires_grad for feature in maps):
        return
    sum(feature.float().sin().mean() for feature in maps).backward()  # a sum exceeds float16
    for name, parameter in net.named_parameters():
        # mmdet's ResNet builds stages after the last output too.
        assert parameter.grad is not None or not (
            isinstance(net, StagedBackbone) and parameter.requires_grad
        ), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def own_cells(net: nn.Module, maps: tuple[Tensor, ...], b: int, image: Tensor) -> list[Tensor]:
    """The cells of each map that hold a pixel of image ``b`` of a batch."""
    strides = (
        4 * math.prod(getattr(net, 'strides', (1, 2, 2, 2, 2))[: i + 1]) for i in net.out_indices
    )
    cells = ([math.ceil(n / stride) for n in image.shape[1:]] for stride in strides)
    return [x[b, :, :h, :w] for x, (h, w) in zip(maps, cells, strict=True)]


def legal_backbone(rng: random.Random) -> Case:
    cfg = random_backbone(rng)
    dtype = rng.choice(('float32', 'float32', 'float64', 'bfloat16', 'float16', 'autocast'))
    layout = rng.choice((torch.contiguous_format, torch.channels_last))
    sizes = [(rng.randint(32, 300), rng.randint(32, 300)) for _ in range(rng.choice((2, 2, 3)))]
    smallest = max(32, 2 ** (1 + len(cfg.get('arch', ARCH)['channels'])))
    sizes = [(max(h, smallest), max(w, smallest)) for h, w in sizes]
    if rng.random() < 0.3:
        sizes = [(smallest, smallest)] * len(sizes)
    divisor = rng.choice((1, 32))
    value = rng.choice((0, 0, 114.0, -1.7, math.nan, math.inf))

    def run() -> None:
        net = MODELS.build(copy.deepcopy(cfg))
        net.init_weights()
        kind = torch.float32 if dtype == 'autocast' else getattr(torch, dtype)
        awake(net).to(kind).to(memory_format=layout)
        # Without global branches padding is not looked for, and no more than in any network.
        fill = value if getattr(net, 'finds_padding', True) or math.isfinite(value) else 0
        whole = [torch.randn(cfg['in_channels'], *size).to(kind) for size in sizes]
        height, width = (math.ceil(max(n) / divisor) * divisor for n in zip(*sizes, strict=True))
        x = torch.stack([padded(image, height, width, fill) for image in whole])
        x = x.contiguous(memory_format=layout)
        # Zeros have no deviation: each norm multiplies the gradient of padding by 1000.
        check_step(net, torch.randn_like(x) if dtype == 'float16' else x, dtype)
        with torch.no_grad():
            outs = net.eval()(x)
            assert all(out.isfinite().all() for out in outs)
            if net.batch_invariant and dtype == 'float64' and divisor == 32:
                for b, image in enumerate(whole):
                    assert_same(
                        own_cells(net, outs, b, image), own_cells(net, net(alone(image)), 0, image)
                    )

    return Case(dict(cfg=cfg, dtype=dtype, layout=layout, sizes=sizes, divisor=divisor,
                     value=value), run)  # fmt: skip


def mutilated_backbone(rng: random.Random) -> Case:
    cfg = random_backbone(rng)
    cfg['in_channels'] = 3
    path = rng.choice(list(places(cfg)))
    bad, named = mutilate(rng, cfg, path)
    named += ['stage'] * ('arch' in path)  # whose number other options no longer fit

    def run() -> None:
        with works_or_names(*named):
            net = MODELS.build(copy.deepcopy(bad))
            net.init_weights()
            check_step(awake(net), torch.randn(2, 3, 64, 96), 'float32')

    return Case(dict(cfg=bad, path=path), run)


# --------------------------------------------------------------------------------- checkpoints
@functools.cache
def convnext() -> dict[str, Tensor]:
    config = ConvNextConfig(
        hidden_sizes=list(CHANNELS),
        depths=list(DEPTHS),
        out_features=[f'stage{i + 1}' for i in range(4)],
    )
    return ConvNextBackbone(config).state_dict()


GLNET = dict(channels=(8, 16, 24, 40), depths=(1, 1, 1, 1), head_dim=4)
OWN = dict(  # backbones whose state is a checkpoint too
    ConvNeur=dict(type='mmconvneur.ConvNeur', arch=ARCH, init_cfg=None),
    GLNet=dict(type='mmconvneur.GLNet', arch=GLNET),
    SpatialBiasResNet=dict(type='mmconvneur.SpatialBiasResNet', base_channels=8),
)
PUBLISHED_GLNET = dict(
    type='mmconvneur.GLNet',
    arch=dict(channels=(12, 24, 48, 96), depths=(2, 2, 6, 2), head_dim=4),
)


@functools.cache
def detector() -> Config:
    cfg = Config.fromfile(SAMPLE_CONFIGS['mmdet'])
    cfg.model.backbone.update(arch=ARCH, init_cfg=None)
    cfg.model.neck.update(in_channels=list(CHANNELS), out_channels=8)
    cfg.model.rpn_head.update(in_channels=8, feat_channels=8)
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 8
    cfg.model.roi_head.mask_roi_extractor.out_channels = 8
    cfg.model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=8)
    cfg.model.roi_head.mask_head.update(in_channels=8, conv_out_channels=8, num_convs=1)
    fill_in(cfg)
    return cfg


@functools.cache
def state_of(name: str) -> dict[str, Tensor]:
    init_default_scope('mmdet')
    model = detector().model if name == 'detector' else OWN[name]
    return MODELS.build(copy.deepcopy(model)).state_dict()


def random_checkpoint(rng: random.Random) -> tuple[dict, dict | None]:
    """A state dict, and the backbone that it starts; ``None``: the detector."""
    name = rng.choice((*OWN, *LAYOUTS, 'GLNet, published', 'detector', 'detector'))
    if name in LAYOUTS:
        return renamed(convnext(), *LAYOUTS[name]), OWN['ConvNeur']
    if name == 'GLNet, published':
        return {k: v.float() for k, v in published_glnet('stl').items()}, PUBLISHED_GLNET
    return dict(state_of(name)), OWN.get(name)


def spoil_tensor(rng: random.Random, state: dict) -> tuple[dict, list]:
    key = rng.choice(list(state))
    value = state[key]
    other = rng.choice(
        (
            *(None, 3, 'x', [1.0], value.tolist(), value.double(), value.half(), value.bool()),
            *(value.long(), value.unsqueeze(0), value.flatten()[:1], value.new_empty(0)),
            *(value.to(torch.complex64), value.to_sparse(), nn.Parameter(value.float()), {}),
            *(value.reshape(-1), value * math.nan, value.repeat(2, *[1] * (value.dim() - 1))),
        )
    )
    return {**state, key: other}, [key]


def drop(rng: random.Random, state: dict) -> tuple[dict, list]:
    gone = set(rng.sample(list(state), rng.choice((1, 2, len(state) // 2, len(state) - 1))))
    return {key: value for key, value in state.items() if key not in gone}, [*gone, *state]


def rename(rng: random.Random, state: dict) -> tuple[dict, list]:
    key = rng.choice(list(state))
    new = rng.choice((f'{key}s', key.upper(), f'x.{key}', key.replace('.', '_'), '', 3, ('a',)))
    return {(new if k == key else k): v for k, v in state.items()}, [new, key]


def put_in_front(rng: random.Random, state: dict) -> tuple[dict, list]:
    prefix = rng.choice(('module.', '_orig_mod.', 'model.', 'backbone.', 'x', '.'))
    return {f'{prefix}{key}': value for key, value in state.items()}, [prefix]


def twice(rng: random.Random, state: dict) -> tuple[dict, list]:
    return state | {f'second.{key}': value for key, value in state.items()}, ['second.', 'several']


SPOILS = (spoil_tensor, spoil_tensor, spoil_tensor, drop, rename, rename, put_in_front, twice)
WRAPPERS = (None, 'state_dict', 'model', 'ema', 'teacher', 'whatever')


def mutilated_checkpoint(rng: random.Random) -> Case:
    state, backbone = random_checkpoint(rng)
    spoil = rng.choice((None, *SPOILS))
    made, named = spoil(rng, state) if spoil else (state, [])
    wrapper = rng.choice(WRAPPERS)
    content: Any = {wrapper: made} if wrapper else made
    if rng.random() < 0.2:
        content = {**(content if wrapper else {}), 'meta': rng.choice(JUNK)}
        named += ['meta', 'holds no weights']
    if rng.random() < 0.1:
        content = rng.choice((*JUNK, list(state.values()), {'state_dict': 3}))
    suffix = rng.choice(('.pth', '.pth', '.pth', '.safetensors', '.safetensors.index.json'))
    file = io.BytesIO()
    torch.save(content, file)
    data = file.getvalue()
    if suffix == '.safetensors' and all(isinstance(v, Tensor) for v in made.values()):
        with contextlib.suppress(Exception):
            data = save({str(key): value.contiguous() for key, value in made.items()})
    elif suffix.endswith('.json'):
        index = dict(weight_map={str(k): rng.choice(('a.pth', 'x.pth', '../a')) for k in made})
        data = json.dumps(rng.choice((index, index, [], {}, dict(weight_map=3), 3))).encode()
    how = rng.choice((None, None, None, 'cut off', 'flipped', 'zeros', 'empty', 'text'))
    if how == 'cut off':
        data = data[: rng.randrange(len(data))]
    elif how == 'flipped':
        data = bytearray(data)
        for _ in range(rng.choice((1, 20))):  # most in the head, where the index of a file is
            near = min(len(data), rng.choice((200, 2000, len(data))))
            data[rng.randrange(near)] = rng.randrange(256)
    elif how == 'zeros':
        data = bytes(len(data))
    elif how in ('empty', 'text'):
        data = b'' if how == 'empty' else b'<!DOCTYPE html>\n<html></html>'

    def run() -> None:
        from convert_checkpoint import main

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f'a{suffix}'
            path.write_bytes(data)
            load_safely(trust=False)
            with works_or_names(path, 'the checkpoint', *named), silent():
                if backbone is None:
                    load_model(copy.deepcopy(detector()), str(path))
                else:
                    init = dict(type='Pretrained', checkpoint=str(path))
                    MODELS.build(dict(copy.deepcopy(backbone), init_cfg=init)).init_weights()
            with works_or_names(path, 'the checkpoint', *named):
                sys.argv = ['convert', str(path), str(Path(folder) / 'out.pth')]
                with silent():
                    main.__wrapped__()
            with works_or_names(path, 'the checkpoint', *named):
                read_training(path)

    spoilt = spoil.__name__ if spoil else None
    return Case(dict(backbone=backbone, spoil=spoilt, named=named[:2], wrapper=wrapper,
                     suffix=suffix, how=how, bytes=len(data)), run)  # fmt: skip


# ---------------------------------------------------------------------------------------- COCO
@functools.cache
def sample() -> Path:
    from sample_data import make_dataset

    folder = Path(tempfile.mkdtemp())
    with silent():
        make_dataset('sample', folder / 'sample', num_train=4, num_val=3, size=96)
    return folder / 'sample'


OF_COCO = (
    *JUNK,
    10**9,
    -3.5,
    'coin',
    '000000.png',
    '../x',
    [1, 2, 3, 4],
    [[1, 2, 3]],
    [-1, 0, 0, 0],
)


def mutilated_coco(rng: random.Random) -> Case:
    split = rng.choice(('train', 'val'))
    name = f'annotations/instances_{split}.json'
    text = (sample() / name).read_text()
    content = json.loads(text)
    # Lists of masks' corners have the most places by far.
    found = [path for path in places(content) if rng.random() < 4.0 ** -max(0, len(path) - 2)]
    path = rng.choice(found)
    content, named = mutilate(rng, content, path, OF_COCO)
    if rng.random() < 0.3:
        path = rng.choice([p for p in places(content) if len(p) == 3])
        content, more = mutilate(rng, content, path, OF_COCO)
        named += more
    data = json.dumps(content).encode()
    how = rng.choice((None,) * 8 + ('cut off', 'empty', 'bom', 'utf-16', 'flipped', 'list'))
    if how == 'cut off':
        data = data[: rng.randrange(len(data))]
    elif how == 'empty':
        data = b''
    elif how == 'bom':
        data = b'\xef\xbb\xbf' + data
    elif how == 'utf-16':
        data = text.encode('utf-16')
    elif how == 'flipped':
        data = bytearray(data)
        data[rng.randrange(len(data))] = rng.randrange(256)
    elif how == 'list':
        data = json.dumps(rng.choice((content['annotations'] if 'annotations' in content else [],
                                      3, 'x', None))).encode()  # fmt: skip

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / 'sample'
            shutil.copytree(sample(), root)
            (root / name).write_bytes(data)
            check_run(root, [root / name, *named, 'images/'])

    return Case(dict(split=split, path=path, named=named, how=how), run)


def check_run(root: Path, culprits: list) -> None:
    """The look says what is wrong, or data and evaluation work."""
    cfg = copy.deepcopy(detector())
    cfg.pop('model')  # building it takes the most time and has no part in this
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{root}/'
    cfg.val_evaluator.ann_file = f'{root}/annotations/instances_val.json'
    args = argparse.Namespace(config=str(SAMPLE_CONFIGS['mmdet']), cfg_options={})
    run, findings = examine(cfg, args, 'train', 'val')
    for table in tables(run):
        Console(file=io.StringIO()).print(table)
    doubts, mistakes = sort(findings)
    for line in mistakes:
        check_lines([line], *culprits)
    if mistakes:
        return
    with silent(), works_or_names(*culprits):
        for split in run.splits:
            name_files(split.dataset)
            for index in range(len(split.dataset)):
                split.dataset[index]
    try:
        with silent():
            evaluate(cfg, run.splits[-1].dataset)
    except Exception as error:
        raise RuntimeError(f'the evaluation fails, and the look said {doubts}') from error


def evaluate(cfg: Config, dataset: Any) -> None:
    metric = METRICS.build(dict(cfg.val_evaluator, metric='bbox'))
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        boxes = dict(
            bboxes=torch.tensor([[3.0, 3.0, 20.0, 20.0]]),
            scores=torch.ones(1),
            labels=torch.zeros(1, dtype=torch.long),
        )
        metric.process({}, [dict(pred_instances=boxes, **sample.metainfo)])
    metric.evaluate(len(dataset))


# --------------------------------------------------------------------------------------- all
GROUPS: Mapping[str, tuple[Callable[[random.Random], Case], int]] = MappingProxyType(
    {
        'backbones': (legal_backbone, 300),
        'mutilated-backbones': (mutilated_backbone, 300),
        'checkpoints': (mutilated_checkpoint, 200),
        'coco': (mutilated_coco, 200),
    }
)


def failure(group: str, seed: int) -> str | None:
    """What is wrong in a case."""
    make, _ = GROUPS[group]
    case = make(random.Random(f'{group} {seed}'))
    torch.manual_seed(seed)
    try:
        case.run()
    except Exception:
        shown = traceback.format_exc().splitlines()
        tried = f'python tests/fuzz.py --only {group} --seed {seed} --count 1'
        return '\n'.join([tried, f'  {case.what}', *(f'  {line}' for line in shown[-12:])])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--seed', type=int, default=0, help='of the first case; then one more each')
    parser.add_argument('--count', type=int, help='cases of a group; default: 300 or 200')
    parser.add_argument('--only', choices=GROUPS, help='one of the groups')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    MMLogger.get_instance('fuzz', log_level='ERROR')
    failed = 0
    for group in [args.only] if args.only else GROUPS:
        count = args.count or GROUPS[group][1]
        for seed in track(range(args.seed, args.seed + count), group):
            if problem := failure(group, seed):
                failed += 1
                print(problem, flush=True)
    print(f'{failed} failures')
    sys.exit(bool(failed))


if __name__ == '__main__':
    sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]
    main()
