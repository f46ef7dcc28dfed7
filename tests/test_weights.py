"""Starting from other networks' weights, and knowing what was loaded."""

from __future__ import annotations

import functools
import http.server
import logging
import os
import pickle
import re
import runpy
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from steps import ROOT, SAMPLE_CONFIGS, build
from torch import nn
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
)

from mmconvneur import ConvNeur, UsageError
from mmconvneur.weights import read_checkpoint, read_state_dict, recognise
from mmconvneur.weights.files import fetch
from mmconvneur.weights.reading import load_safely

pytestmark = pytest.mark.usefixtures('device')

CHANNELS, DEPTHS = (8, 12, 20, 28), (2, 1, 3, 1)
ARCH = dict(channels=CHANNELS, depths=DEPTHS)
BLOCKS = sum(DEPTHS)
LOCAL = 2 * 2 + 3 * 2 * 2 + BLOCKS * 9  # tensors of stem, downsampling and blocks
NORMS = 2 * 4
CONFIG = dict(
    hidden_sizes=list(CHANNELS),
    depths=list(DEPTHS),
    out_features=[f'stage{i + 1}' for i in range(4)],
    layer_scale_init_value=1.0,
)
SIZES = [(64, 96), (67, 101), (223, 33)]


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


@pytest.fixture(scope='module')
def source() -> ConvNextBackbone:
    """An independent implementation with random weights."""
    return randomised(ConvNextBackbone(ConvNextConfig(**CONFIG)))


def assert_same_maps(backbone: ConvNeur, source: ConvNextBackbone, atol: float = 1e-5) -> None:
    backbone.eval()
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            expected, actual = source(image).feature_maps, backbone(image)
        for ours, theirs in zip(actual, expected, strict=True):
            assert theirs.std() > 0.05
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


# ----------------------------------------------------- the layouts, written out from Hugging Face's
def renamed(state: dict, *pairs: tuple[str, str]) -> dict:
    """`state` with each key rewritten by the first pattern that matches the whole of it."""
    result = {}
    for key, value in state.items():
        for pattern, name in pairs:
            if match := re.fullmatch(pattern, key):
                result[name(match) if callable(name) else match.expand(name)] = value
                break
    return result


BLOCK = r'encoder\.stages\.(\d)\.layers\.(\d)\.'
LAYOUTS = {
    'official repository': [
        (r'embeddings\.patch_embeddings\.(.*)', r'downsample_layers.0.0.\1'),
        (r'embeddings\.layernorm\.(.*)', r'downsample_layers.0.1.\1'),
        (r'encoder\.stages\.(\d)\.downsampling_layer\.(.*)', r'downsample_layers.\1.\2'),
        (BLOCK + r'layernorm\.(.*)', r'stages.\1.\2.norm.\3'),
        (BLOCK + 'layer_scale_parameter', r'stages.\1.\2.gamma'),
        (BLOCK + '(.*)', r'stages.\1.\2.\3'),
    ],
    'mmpretrain': [
        (r'embeddings\.patch_embeddings\.(.*)', r'downsample_layers.0.0.\1'),
        (r'embeddings\.layernorm\.(.*)', r'downsample_layers.0.1.\1'),
        (r'encoder\.stages\.(\d)\.downsampling_layer\.(.*)', r'downsample_layers.\1.\2'),
        (BLOCK + r'layernorm\.(.*)', r'stages.\1.\2.norm.\3'),
        (BLOCK + 'layer_scale_parameter', r'stages.\1.\2.gamma'),
        (BLOCK + r'dwconv\.(.*)', r'stages.\1.\2.depthwise_conv.\3'),
        (BLOCK + r'pwconv(\d)\.(.*)', r'stages.\1.\2.pointwise_conv\3.\4'),
        (r'hidden_states_norms\.stage(\d)\.(.*)', lambda m: f'norm{int(m[1]) - 1}.{m[2]}'),
    ],
    'timm': [
        (r'embeddings\.patch_embeddings\.(.*)', r'stem.0.\1'),
        (r'embeddings\.layernorm\.(.*)', r'stem.1.\1'),
        (r'encoder\.stages\.(\d)\.downsampling_layer\.(.*)', r'stages.\1.downsample.\2'),
        (BLOCK + r'layernorm\.(.*)', r'stages.\1.blocks.\2.norm.\3'),
        (BLOCK + 'layer_scale_parameter', r'stages.\1.blocks.\2.gamma'),
        (BLOCK + r'dwconv\.(.*)', r'stages.\1.blocks.\2.conv_dw.\3'),
        (BLOCK + r'pwconv(\d)\.(.*)', r'stages.\1.blocks.\2.mlp.fc\3.\4'),
    ],
    'torchvision': [
        (r'embeddings\.patch_embeddings\.(.*)', r'features.0.0.\1'),
        (r'embeddings\.layernorm\.(.*)', r'features.0.1.\1'),
        (
            r'encoder\.stages\.(\d)\.downsampling_layer\.(.*)',
            lambda m: f'features.{2 * int(m[1])}.{m[2]}',
        ),
        (
            BLOCK + '(dwconv|layernorm|pwconv1|pwconv2)(.*)',
            lambda m: (
                f'features.{2 * int(m[1]) + 1}.{m[2]}.block.'
                f'{dict(dwconv=0, layernorm=2, pwconv1=3, pwconv2=5)[m[3]]}{m[4]}'
            ),
        ),
        (
            BLOCK + 'layer_scale_parameter',
            lambda m: f'features.{2 * int(m[1]) + 1}.{m[2]}.layer_scale',
        ),
    ],
    'Hugging Face': [('(.*)', r'\1')],
}
CLASSIFIERS = {
    'official repository': ['norm.weight', 'norm.bias', 'head.weight', 'head.bias'],
    'mmpretrain': ['head.fc.weight', 'head.fc.bias'],
    'timm': ['head.norm.weight', 'head.norm.bias', 'head.fc.weight', 'head.fc.bias'],
    'torchvision': ['classifier.0.weight', 'classifier.2.weight', 'classifier.2.bias'],
    'Hugging Face': ['layernorm.weight', 'layernorm.bias'],
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'prefix', ['', 'module.', 'backbone.', 'module.backbone.', 'teacher.', 'model_ema.module.']
)
def test_every_layout_gives_the_maps_of_its_source(layout, prefix, source):
    state = renamed(source.state_dict(), *LAYOUTS[layout])
    has_norms = layout in ('mmpretrain', 'Hugging Face')
    assert len(state) == LOCAL + NORMS * has_norms
    if layout == 'torchvision':  # layer scales of shape (C, 1, 1)
        state = {k: v[:, None, None] if 'layer_scale' in k else v for k, v in state.items()}
    if layout == 'mmpretrain':  # 1x1 convolutions in place of linear layers
        state = {k: v[..., None, None] if re.search(r'pointwise.*weight', k) else v
                 for k, v in state.items()}  # fmt: skip
    state |= {key: torch.zeros(3) for key in CLASSIFIERS[layout]}
    backbone = ConvNeur(ARCH)
    backbone.load_state_dict({prefix + key: value for key, value in state.items()})
    if not has_norms:  # a classifier has none: they start as 1 and 0, and the source's are set
        for i in range(4):
            norm, theirs = (
                getattr(backbone, f'norm{i}'),
                source.hidden_states_norms[f'stage{i + 1}'],
            )
            assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
            norm.load_state_dict(theirs.state_dict())
    assert_same_maps(backbone, source)


@pytest.mark.parametrize('kind', [ConvNextModel, ConvNextForImageClassification])
def test_hugging_face_models_start_a_backbone_as_they_are(kind):
    model = randomised(kind(ConvNextConfig(**CONFIG)))
    backbone = ConvNeur(ARCH).eval()
    backbone.load_state_dict(model.state_dict())
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(image, output_hidden_states=True).hidden_states[1:]
            actual = backbone(image)
        for ours, theirs in zip(actual, expected, strict=True):
            mean = theirs.mean(1, keepdim=True)
            deviation = theirs.var(1, keepdim=True, unbiased=False).add(1e-6).sqrt()
            torch.testing.assert_close(ours, (theirs - mean) / deviation, rtol=0, atol=1e-5)


@pytest.mark.parametrize('options', [
    dict(global_mixer=None), dict(fusion='add'), dict(fusion='concat'), dict(placement='block'),
    dict(placement=[2]), dict(out_indices=(0, 2)), dict(out_indices=(1,)),
], ids=str)  # fmt: skip
def test_starts_as_the_source_whatever_the_global_branch(options, source):
    backbone = ConvNeur(ARCH, **options)
    backbone.load_state_dict(source.state_dict())
    image = torch.randn(1, 3, 67, 101, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = source(image).feature_maps, backbone.eval()(image)
    for i, ours in zip(backbone.out_indices, actual, strict=True):
        torch.testing.assert_close(ours, expected[i], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------- files and init_cfg
def test_init_cfg_reads_pth_and_safetensors_and_finds_the_prefix(source, tmp_path):
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(dict(model={f'backbone.{k}': v for k, v in state.items()}), tmp_path / 'b.pth')
    for name, prefix in [('a.safetensors', None), ('b.pth', None), ('b.pth', 'backbone')]:
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / name))
        backbone = ConvNeur(ARCH, init_cfg=init_cfg | (dict(prefix=prefix) if prefix else {}))
        backbone.init_weights()
        assert_same_maps(backbone, source)
    backbone = ConvNeur(ARCH, init_cfg=init_cfg | dict(prefix='encoder.'))
    with pytest.raises(UsageError, match=r"no key that starts with 'encoder\.'.*leave prefix out"):
        backbone.init_weights()


@pytest.mark.parametrize('wrap', [lambda state: state, lambda state: dict(model=state)])
def test_names_that_are_no_strings_are_refused(wrap, tmp_path):
    torch.save(wrap({3: torch.zeros(3)}), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match=r'a\.pth has a tensor whose name is 3, no string'):
        read_state_dict(tmp_path / 'a.pth')


def test_what_is_no_tensor_in_a_state_dict_is_missing(source):
    state = dict(source.state_dict())
    state[next(k for k in state if 'pwconv1.weight' in k)] = {}
    backbone = ConvNeur(ARCH)
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*pointwise_conv1\.weight'):
        backbone.load_state_dict(state)


def test_keys_of_another_network_are_not_converted(source, tmp_path, monkeypatch, capsys):
    given, converted = tmp_path / 'in.pth', tmp_path / 'out.pth'
    name = next(k for k in source.state_dict() if '.stages.' in k)
    strange = name.rsplit('.', 2)[0] + '.mystery.weight'
    torch.save({**source.state_dict(), strange: torch.zeros(3)}, given)
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', str(given), str(converted)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')
    assert f'has 1 keys that it does not have, the first {strange}' in capsys.readouterr().err
    assert not converted.exists()


def test_a_converted_file_gives_the_same_maps(source, tmp_path, monkeypatch, capsys):
    given, converted = tmp_path / 'in.pth', tmp_path / 'out.pth'
    torch.save(dict(state_dict=source.state_dict(), optimizer=dict(lr=1)), given)
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', str(given), str(converted)])
    runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')
    assert f'{LOCAL + NORMS} tensors, 0 left out' in capsys.readouterr().out
    file = torch.load(converted, weights_only=True)
    assert file['meta']['arch'] == dict(channels=CHANNELS, depths=DEPTHS)
    for options in (dict(), dict(global_mixer=None)):
        init_cfg = dict(type='Pretrained', checkpoint=str(converted))
        backbone = ConvNeur(ARCH, init_cfg=init_cfg, **options)
        backbone.init_weights()
        assert_same_maps(backbone, source)


def test_a_convnext_detector_starts_the_backbone_of_a_detector(source):
    cfg = Config.fromfile(SAMPLE_CONFIGS['mmdet'])
    cfg.model.backbone.update(arch=ARCH)
    cfg.model.neck.in_channels = list(CHANNELS)
    detector = build(cfg)
    heads = {k: v for k, v in detector.state_dict().items() if not k.startswith('backbone.')}
    backbone = renamed(source.state_dict(), *LAYOUTS['mmpretrain'])
    detector.load_state_dict(heads | {f'backbone.{k}': v for k, v in backbone.items()})
    assert_same_maps(detector.backbone, source)


# --------------------------------------------------------------------------------- the load report
@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines about ConvNeur that are logged inside."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    lines[:] = [line for line in lines if line.startswith('ConvNeur from')]


def report_of(backbone: ConvNeur, state: dict) -> str:
    with logged() as lines:
        backbone.load_state_dict(state, strict=False)
    (line,) = lines
    return line


def counts(line: str) -> list[int]:
    words = ('matched', 'newly initialised', 'missing', 'unexpected', 'shape mismatched', 'unused')
    return [int(re.search(rf'(\d+) {word}', line)[1]) for word in words]


def test_the_report_counts_every_kind(source):
    memory = [k for k in ConvNeur(ARCH).state_dict() if '.global_branch.' in k]
    line = report_of(ConvNeur(ARCH), source.state_dict())
    assert line.startswith('ConvNeur from ConvNeXt (Hugging Face): ')
    assert counts(line) == [LOCAL + NORMS, len(memory), 0, 0, 0, 0]
    assert 'stages.0.0.global_branch.out_proj.weight' in line

    own = ConvNeur(ARCH).state_dict()
    assert counts(report_of(ConvNeur(ARCH), own)) == [len(own), 0, 0, 0, 0, 0]
    changed = dict(own) | {'stages.0.0.extra': torch.zeros(1), 'head.weight': torch.zeros(1)}
    del changed['norm2.weight'], changed['norm2.bias']
    line = report_of(ConvNeur(ARCH), changed)
    assert counts(line) == [len(own) - 2, 0, 2, 1, 0, 1]
    assert 'norm2.weight, norm2.bias' in line and 'head.weight' in line

    local = ConvNeur(ARCH, global_mixer=None).state_dict()
    assert counts(report_of(ConvNeur(ARCH), local)) == [len(local), len(memory), 0, 0, 0, 0]
    last = ConvNeur(ARCH, out_indices=(0, 1))
    not_built = (
        LOCAL + NORMS - len(ConvNeur(ARCH, global_mixer=None, out_indices=(0, 1)).state_dict())
    )
    assert counts(report_of(last, source.state_dict()))[-1] == not_built


def test_another_number_of_image_channels_is_reported_and_the_rest_loaded(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    backbone = ConvNeur(ARCH, in_channels=5, init_cfg=init_cfg)
    with logged() as lines:
        backbone.init_weights()
    (line,) = lines
    assert counts(line)[4] == 1 and 'downsample_layers.0.0.weight' in line
    torch.testing.assert_close(
        backbone.stages[0][1].local_branch.pointwise_conv1.weight,
        source.encoder.stages[0].layers[1].pwconv1.weight,
    )


def test_a_converted_classifier_starts_a_backbone_as_the_file_itself(tmp_path, source):
    state = {k: v for k, v in source.state_dict().items() if 'hidden_states_norms' not in k}
    given, ours = ConvNeur(ARCH), ConvNeur(ARCH)
    given.load_state_dict(state)
    line = report_of(ours, recognise(state).tensors)
    memory = [key for key in ours.state_dict() if '.global_branch.' in key]
    assert counts(line) == [LOCAL, len(memory) + NORMS, 0, 0, 0, 0]


def test_a_global_branch_of_another_kind_is_refused():
    source = ConvNeur(ARCH, global_mixer=dict(type='ChunkedNeuralMemory', inner_model='linear'))
    other = ConvNeur(ARCH, global_mixer=dict(type='ChunkedNeuralMemory', inner_model='gated'))
    with pytest.raises(UsageError, match='arch and global_mixer as the checkpoint'):
        other.load_state_dict(source.state_dict(), strict=False)


def test_global_branches_are_compared_block_by_block(source):
    """A block that gets one starts neutral; one that loses its own is refused, however few."""
    arch = dict(channels=CHANNELS, depths=(2, 1, 27, 1))  # one branch is less than 5 %
    some, every = ConvNeur(arch, placement=[0, 1, 2]), ConvNeur(arch)
    for parameter in some.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    line = report_of(every, some.state_dict())
    assert counts(line)[1:] == [len(some.stages[0][0].global_branch.state_dict()), 0, 0, 0, 0]
    image = torch.randn(1, 3, 67, 101, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(every.eval()(image), some.eval()(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match='unexpected'):
        some.load_state_dict(ConvNeur(arch).state_dict(), strict=False)


def test_a_memory_of_another_kind_is_refused(source):
    own = ConvNeur(ARCH).state_dict()
    with pytest.raises(
        UsageError, match=r'fits \d+% of this ConvNeur.*choose arch and global_mixer'
    ):
        ConvNeur(ARCH, global_mixer=None).load_state_dict(own, strict=False)


def larger(source, **changes):
    return randomised(ConvNextBackbone(ConvNextConfig(**CONFIG | changes))).state_dict()


@pytest.mark.parametrize(('make', 'message'), [
    (lambda s: larger(s, depths=[2, 1, 9, 1]), r'unexpected \(stages\.2\.3\..*\(2, 1, 9, 1\)'),
    (lambda s: larger(s, depths=[2, 1, 1, 1]), r'missing \(stages\.2\.1\..*\(2, 1, 1, 1\)'),
    (lambda s: larger(s, hidden_sizes=[8, 12, 20, 30]), r'shape mismatched.*\(8, 12, 20, 30\)'),
    (lambda s: dict(s) | {'encoder.stages.0.layers.0.grn.weight': torch.zeros(3)}, 'ConvNeXt V2'),
    (lambda s: dict(s) | {'encoder.stages.0.layers.0.layernorm.running_mean': torch.zeros(3)},
     'batch norm'),
    (lambda s: {'layer1.0.conv1.weight': torch.zeros(3)},
     r'like layer1\.0\.conv1\.weight, where ConvNeur has stages\.0\.0\.local_branch.*timm'),
    (lambda s: {}, 'no key that starts with'),
    (lambda s: dict(s) | {f'encoder.stages.{i}.layers.0.se.{j}.weight': torch.zeros(3)
                          for i in range(4) for j in range(3)}, r'unexpected \(encoder\.stages'),
    (lambda s: {f'{p}.{k}': v for p in ('a', 'b') for k, v in s.items()}, "one of 'a.', 'b.'"),
], ids='deeper shallower wider v2 bn resnet empty squeeze two'.split())  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(make, message, source):
    backbone = ConvNeur(ARCH)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UsageError, match=message) as refused:
        backbone.load_state_dict(make(source.state_dict()), strict=False)
    assert '\n' not in str(refused.value)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_two_backbones_in_one_file_are_told_apart_by_prefix(source):
    state = {f'{p}.{k}': v for p in ('a', 'b') for k, v in source.state_dict().items()}
    supplied = recognise(state, prefix='b.')
    assert len(supplied.tensors) == LOCAL + NORMS == len(supplied.unused)


# ------------------------------------------------------------------------------------ safe reading
class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_malicious_pickle_does_not_run(zipped, tmp_path):
    file, made = tmp_path / 'evil.pth', tmp_path / 'made'
    torch.save(dict(state_dict={'a': Touch(made)}), file, _use_new_zipfile_serialization=zipped)
    for read in (read_checkpoint, read_state_dict):
        with pytest.raises(UsageError, match=r'posix\.system.*--trust-checkpoint'):
            read(file)
    backbone = ConvNeur(ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    with pytest.raises(UsageError, match='--trust-checkpoint'):
        backbone.init_weights()
    assert not made.exists()
    read_checkpoint(file, trust=True)
    assert made.exists()


def test_archives_of_other_kinds_are_no_checkpoints(tmp_path):
    """Older versions of PyTorch ran code from them, also when asked for weights alone."""
    torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / 'a.pth'))
    evil, made = tmp_path / 'pickle', tmp_path / 'made'
    evil.write_bytes(pickle.dumps(Touch(made)))
    with tarfile.open(tmp_path / 'b.pth', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            archive.add(evil, name)
    for name in ('a.pth', 'b.pth'):
        with pytest.raises(UsageError, match=name):
            read_checkpoint(tmp_path / name)
    assert not made.exists()


@pytest.mark.parametrize(
    'target', [HistoryBuffer, torch._utils._rebuild_tensor_v2], ids=['class', 'function']
)
def test_a_file_changes_no_class_and_no_function(target, tmp_path):
    name = f'{target.__module__}\n{target.__name__}\n'.encode()
    content = pickle.dumps({'mark': 1}, protocol=2)[2:-1]  # between PROTO and STOP
    build = pickle.PROTO + b'\x02' + pickle.GLOBAL + name + pickle.NONE + content
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('a/data.pkl', build + pickle.TUPLE2 + pickle.BUILD + pickle.STOP)
        archive.writestr('a/version', '3\n')
    with pytest.raises(UsageError, match='a.pth'):
        read_checkpoint(tmp_path / 'a.pth')
    assert not hasattr(target, 'mark')


def test_getattr_is_open_for_log_buffers_alone(tmp_path):
    class Reach:
        def __init__(self, *attribute) -> None:
            self.attribute = attribute

        def __reduce__(self):
            return getattr, self.attribute

    for attribute in ((torch.Tensor, 'backward'), (HistoryBuffer, '__class__')):
        torch.save(dict(a=Reach(*attribute)), tmp_path / 'a.pth')
        with pytest.raises(UsageError, match='holds more than tensors'):
            read_checkpoint(tmp_path / 'a.pth')
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(buffer=buffer), tmp_path / 'b.pth')
    assert read_checkpoint(tmp_path / 'b.pth')['buffer'].mean() == 1.5


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_damaged_file_is_named(suffix, source, tmp_path):
    file = tmp_path / f'a{suffix}'
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    torch.save(state, file) if suffix == '.pth' else save_file(state, file)
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    with pytest.raises(UsageError, match=rf'{file} is damaged or not a checkpoint'):
        read_checkpoint(file)
    if suffix == '.pth':  # whole as an archive, spoilt inside
        middle = content.index(b'data.pkl') + 64
        file.write_bytes(content[:middle] + b'\xff' * 64 + content[middle + 64 :])
        with pytest.raises(UsageError, match=f'{file} '):
            read_checkpoint(file)
    with pytest.raises(UsageError, match='does not exist'):
        read_checkpoint(tmp_path / f'b{suffix}')


def test_a_file_without_weights_is_named(tmp_path):
    torch.save(dict(state_dict=dict(a=1)), tmp_path / 'a.pth')
    with pytest.raises(UsageError, match='holds no weights, but a'):
        read_state_dict(tmp_path / 'a.pth')


# -------------------------------------------------------------------------------------- downloads
@pytest.fixture
def server(tmp_path, monkeypatch):
    """The URL of a folder that is served, beside an empty download cache."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{served.server_port}'
        served.shutdown()


def test_a_download_is_verified_and_kept(server, source, tmp_path, capfd):
    folder, url = server
    torch.save(source.state_dict(), folder / 'a.pth')
    digest = sha256((folder / 'a.pth').read_bytes()).hexdigest()
    good, bad = f'a-{digest[:8]}.pth', 'a-00000000.pth'
    (folder / bad).write_bytes((folder / 'a.pth').read_bytes())
    (folder / 'a.pth').rename(folder / good)

    backbone = ConvNeur(ARCH, init_cfg=dict(type='Pretrained', checkpoint=f'{url}/{good}'))
    backbone.init_weights()
    assert_same_maps(backbone, source)
    assert '100%' in capfd.readouterr().err  # a bar
    (folder / good).unlink()
    assert fetch(f'{url}/{good}') == tmp_path / 'cache' / 'checkpoints' / good
    with pytest.raises(UsageError, match='does not have the hash 00000000'):
        fetch(f'{url}/{bad}')
    with pytest.raises(UsageError, match=r'cannot be downloaded \(.*404.*put it at'):
        fetch(f'{url}/none.pth')
    assert [path.name for path in (tmp_path / 'cache').rglob('*.*')] == [good]


def test_files_of_one_name_are_told_apart_and_half_ones_are_not_kept(server, tmp_path):
    folder, url = server
    for number in (1.0, 2.0):
        (folder / str(number)).mkdir()
        save_file({'a': torch.full((1000,), number)}, folder / str(number) / 'model.safetensors')
    for number in (1.0, 2.0, 1.0):
        state = read_state_dict(f'{url}/{number}/model.safetensors')
        assert state['a'].eq(number).all()
    whole = (folder / '1.0' / 'model.safetensors').read_bytes()
    (folder / 'half.safetensors').write_bytes(whole[:-9])
    (folder / 'page.pth').write_text('<html>log in</html>')
    before = sorted((tmp_path / 'cache').rglob('*.*'))
    for name in ('half.safetensors', 'page.pth'):
        with pytest.raises(UsageError, match='not a complete checkpoint'):
            fetch(f'{url}/{name}')
    assert sorted((tmp_path / 'cache').rglob('*.*')) == before


def test_a_hash_is_verified_in_the_cache_and_a_date_is_none(server, tmp_path):
    folder, url = server
    cache = tmp_path / 'cache' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(dict(a=torch.zeros(3)), cache / 'a-00000000.pth')
    with pytest.raises(UsageError, match='does not have the hash 00000000: delete it'):
        fetch(f'{url}/a-00000000.pth')
    torch.save(dict(a=torch.zeros(3)), folder / 'a-20240101.pth')
    assert fetch(f'{url}/a-20240101.pth').name == 'a-20240101.pth'


def test_numbers_of_numpy_are_no_code_also_as_numpy_1_wrote_them(tmp_path):
    file = tmp_path / 'a.pth'
    meta = dict(a=np.int32(3), b=np.bool_(True), c=np.arange(3, dtype=np.uint8), d=np.float16(2))
    torch.save(dict(meta=meta), file, _use_new_zipfile_serialization=False)
    written = file.read_bytes()
    for content in (written, written.replace(b'numpy._core.', b'numpy.core.')):
        file.write_bytes(content)
        assert read_checkpoint(file)['meta']['a'] == 3


def test_nested_wrappers_are_opened_and_other_files_are_named(source, tmp_path):
    torch.save(dict(model=dict(state_dict=source.state_dict())), tmp_path / 'a.pth')
    assert read_state_dict(tmp_path / 'a.pth').keys() == source.state_dict().keys()
    torch.save([torch.zeros(1)], tmp_path / 'b.pth')
    with pytest.raises(UsageError, match='holds a list'):
        read_checkpoint(tmp_path / 'b.pth')
    with pytest.raises(UsageError, match='is a folder'):
        read_checkpoint(tmp_path)


def test_every_reader_in_a_process_is_safe(tmp_path, monkeypatch):
    """Also MMEngine's loaders of named models, which end in torch.load."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    file, made = tmp_path / 'evil.pth', tmp_path / 'made'
    torch.save(dict(a=Touch(made)), file)
    load_safely(trust=False)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert not made.exists()
    load_safely(trust=True)
    read_checkpoint(file)
    assert made.exists()
    load_safely(trust=False)


def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(UsageError) as refused:
        checkpoint = 'https://127.0.0.1:9/convnext-tiny-795e9634.pth'
        ConvNeur(ARCH, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)).init_weights()
    message = str(refused.value)
    assert f'put it at {tmp_path}/checkpoints/convnext-tiny-795e9634.pth' in message
    assert '--cfg-options model.backbone.init_cfg=None' in message
