"""Starting from the ConvNeXts of DINOv3 and OpenCLIP, and from checkpoints in several files."""

from __future__ import annotations

import http.server
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file
from steps import SAMPLE_CONFIGS, build
from test_weights import (
    ARCH,
    CHANNELS,
    DEPTHS,
    LAYOUTS,
    LOCAL,
    SIZES,
    assert_same_maps,
    counts,
    randomised,
    renamed,
    report_of,
)
from test_weights import server as server  # fixtures
from test_weights import source as source
from torch.nn import functional as F

from mmconvneur import ConvNeur, UsageError
from mmconvneur.weights import read_checkpoint
from mmconvneur.weights.files import fetch

transformers = pytest.importorskip('transformers', minversion='4.56')  # the first with DINOv3
pytestmark = pytest.mark.usefixtures('device')

WRAPPERS = ['', 'module.', 'model.', 'backbone.', 'teacher.backbone.', 'model_ema.module.']


@pytest.fixture(scope='module')
def dinov3() -> transformers.DINOv3ConvNextModel:
    """An independent implementation with random weights."""
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=list(CHANNELS), depths=list(DEPTHS))
    return randomised(transformers.DINOv3ConvNextModel(config))


def in_a_file(state: dict) -> dict:
    """As transformers itself writes them; see the test of several files."""
    return {key.removeprefix('model.'): value for key, value in state.items()}


def in_the_repository(state: dict) -> dict:
    """As facebookresearch/dinov3 names them; its norm of the last map is there twice."""
    block = r'stages\.(\d)\.layers\.(\d)\.'
    trunk = renamed(
        in_a_file(state),
        (r'stages\.(\d)\.downsample_layers\.(.*)', r'downsample_layers.\1.\2'),
        (block + r'depthwise_conv\.(.*)', r'stages.\1.\2.dwconv.\3'),
        (block + r'layer_norm\.(.*)', r'stages.\1.\2.norm.\3'),
        (block + r'pointwise_conv(\d)\.(.*)', r'stages.\1.\2.pwconv\3.\4'),
        (block + 'gamma', r'stages.\1.\2.gamma'),
    )
    norms = {
        f'{norm}.{part}': state[f'layer_norm.{part}']
        for norm in ('norm', 'norms.3')
        for part in ('weight', 'bias')
    }
    return trunk | norms


FORMS = {'transformers': dict, 'file': in_a_file, 'repository': in_the_repository}


def assert_maps_of_dinov3(backbone: ConvNeur, dinov3: transformers.DINOv3ConvNextModel) -> None:
    """Its maps are normalised without scale and shift, but the last, which its own norm takes."""
    backbone.eval()
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            theirs, ours = dinov3(image, output_hidden_states=True), backbone(image)
        *maps, last = theirs.hidden_states[1:]
        expected = [
            F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-6).movedim(-1, 1) for x in maps
        ]
        tokens = theirs.last_hidden_state[:, 1:]  # without the class token
        expected.append(tokens.movedim(-1, 1).reshape(last.shape))
        for mine, its in zip(ours, expected, strict=True):
            assert its.std() > 0.05
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('prefix', WRAPPERS)
def test_dinov3_gives_the_maps_of_its_source(form, prefix, dinov3):
    state = FORMS[form](dinov3.state_dict())
    backbone = ConvNeur(ARCH)
    line = report_of(backbone, {prefix + key: value for key, value in state.items()})
    name = 'ConvNeXt (official' if form == 'repository' else 'DINOv3 ConvNeXt'
    assert line.startswith(f'ConvNeur from {name}')
    memory = [key for key in backbone.state_dict() if '.global_branch.' in key]
    twice = 2 if form == 'repository' else 0
    assert counts(line) == [LOCAL + 2, len(memory) + 6, 0, 0, 0, twice]
    assert_maps_of_dinov3(backbone, dinov3)


@pytest.mark.parametrize('scope', SAMPLE_CONFIGS)
def test_dinov3_starts_the_backbone_of_a_detector_and_of_a_segmentor(scope, dinov3):
    cfg = Config.fromfile(SAMPLE_CONFIGS[scope])
    cfg.model.backbone.update(arch=ARCH)
    if scope == 'mmdet':
        cfg.model.neck.in_channels = list(CHANNELS)
    else:
        cfg.model.decode_head.in_channels = list(CHANNELS)
        cfg.model.auxiliary_head.in_channels = CHANNELS[cfg.model.auxiliary_head.in_index]
    model = build(cfg)
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    trunk = in_a_file(dinov3.state_dict())
    model.load_state_dict(heads | {f'backbone.{k}': v for k, v in trunk.items()})
    assert_maps_of_dinov3(model.backbone, dinov3)


def test_openclip_gives_the_maps_of_its_source(source):
    trunk = {
        f'visual.trunk.{k}': v for k, v in renamed(source.state_dict(), *LAYOUTS['timm']).items()
    }
    others = [
        *('visual.trunk.head.norm.weight', 'visual.head.proj.weight', 'logit_scale'),
        *('token_embedding.weight', 'transformer.resblocks.0.ln_1.weight', 'ln_final.bias'),
    ]
    backbone = ConvNeur(ARCH)
    line = report_of(backbone, trunk | {key: torch.zeros(3) for key in others})
    assert line.startswith('ConvNeur from ConvNeXt (timm): ')
    assert counts(line)[0] == LOCAL and counts(line)[2:] == [0, 0, 0, len(others)]
    for i in range(4):
        norm = source.hidden_states_norms[f'stage{i + 1}']
        getattr(backbone, f'norm{i}').load_state_dict(norm.state_dict())
    assert_same_maps(backbone, source)


# ------------------------------------------------------------------------------------------- files
def start(checkpoint, **init_cfg) -> ConvNeur:
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), **init_cfg)
    backbone = ConvNeur(ARCH, init_cfg=init_cfg)
    backbone.init_weights()
    return backbone


@pytest.mark.parametrize('form', FORMS)
def test_files_of_dinov3(form, dinov3, tmp_path):
    state = {k: v.clone() for k, v in FORMS[form](dinov3.state_dict()).items()}
    torch.save(state, tmp_path / 'a.pth')
    save_file(state, tmp_path / 'a.safetensors')
    for name in ('a.pth', 'a.safetensors'):
        assert_maps_of_dinov3(start(tmp_path / name), dinov3)


def test_a_teacher_is_taken_before_its_student(dinov3, tmp_path):
    state = {f'backbone.{k}': v for k, v in in_the_repository(dinov3.state_dict()).items()}
    student = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save(dict(student=student, teacher=state), tmp_path / 'a.pth')
    assert_maps_of_dinov3(start(tmp_path / 'a.pth'), dinov3)
    both = {f'{name}.{k}': v for name, part in (('student', student), ('teacher', state))
            for k, v in part.items()}  # fmt: skip
    torch.save(dict(state_dict=both), tmp_path / 'b.pth')
    with pytest.raises(UsageError, match=r"one of 'student\.backbone\.', 'teacher\.backbone\.'"):
        start(tmp_path / 'b.pth')
    assert_maps_of_dinov3(start(tmp_path / 'b.pth', prefix='teacher.backbone'), dinov3)


@pytest.fixture
def parts(dinov3, tmp_path):
    """The index of a checkpoint that transformers itself wrote in several files."""
    dinov3.save_pretrained(tmp_path / 'parts', max_shard_size='20KB')
    assert len(list((tmp_path / 'parts').glob('*.safetensors'))) > 3
    return tmp_path / 'parts' / 'model.safetensors.index.json'


def test_a_checkpoint_in_several_files_is_read_by_its_index(parts, dinov3):
    assert read_checkpoint(parts).keys() == in_a_file(dinov3.state_dict()).keys()
    assert_maps_of_dinov3(start(parts), dinov3)


def test_a_checkpoint_in_several_files_is_downloaded(parts, dinov3, server):
    folder, url = server
    for path in parts.parent.iterdir():
        path.rename(folder / path.name)
    assert_maps_of_dinov3(start(f'{url}/{parts.name}'), dinov3)


def test_an_index_without_its_files_is_refused(parts, tmp_path):
    lost = max(parts.parent.glob('*.safetensors'))
    lost.unlink()
    with pytest.raises(UsageError, match=rf'{parts.name} is not complete: .*{lost.name} does not'):
        read_checkpoint(parts)
    for content in ('{', '[]', '{}', '{"weight_map": {}}', '{"weight_map": {"a": "../a.pth"}}'):
        parts.write_text(content)
        with pytest.raises(UsageError, match=f'{parts} is damaged or not a checkpoint'):
            read_checkpoint(parts)


@pytest.mark.parametrize('code', [401, 403])
def test_a_gated_file_is_named_with_its_place(code, server, tmp_path, monkeypatch):
    folder, url = server
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, 'do_GET', lambda self: self.send_error(code)
    )
    with pytest.raises(UsageError) as refused:
        start(f'{url}/dinov3_convnext_tiny-21b726bb.pth')
    place = tmp_path / 'cache' / 'checkpoints' / 'dinov3_convnext_tiny-21b726bb.pth'
    message = str(refused.value)
    assert f'is gated (HTTP Error {code}' in message and '\n' not in message
    assert f'accept its licence, download it and put it at {place};' in message


def test_a_gated_file_is_taken_from_its_place(parts, dinov3, server):
    """Downloaded by hand, it is found where the message says."""
    _, url = server
    with pytest.raises(UsageError) as refused:
        fetch(f'{url}/model.safetensors')
    place = Path(re.search('put it at (.*)', str(refused.value))[1])
    save_file(read_checkpoint(parts), place)
    assert_maps_of_dinov3(start(f'{url}/model.safetensors'), dinov3)
