"""Models as ONNX files: the values of PyTorch at every size, and what is needed to use them."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from steps import CONFIGS, build
from test_tools import DETECTION, SEGMENTATION, TOOLS, failing
from torch.nn import functional as F

from mmconvneur import UsageError
from mmconvneur.apis import export
from mmconvneur.apis.model_zoo import released
from mmconvneur.registry import MIXERS
from mmconvneur.weights import read_state_dict

SIZES = [(3, 101, 173), (1, 64, 32)]  # neither is the exporter's


@pytest.mark.parametrize('size', [1, 7, (3, 5), (None, 2)])
def test_pooling_by_products_is_that_of_pytorch(size):
    x = torch.randn(2, 3, 13, 17, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(export.adaptive_avg_pool2d(x, size), expected, rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize('name', [DETECTION, SEGMENTATION])
def test_the_file_gives_what_pytorch_gives(name, sample_dir, tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnx', reason='onnx is not installed')
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    monkeypatch.chdir(sample_dir)
    out = tmp_path / 'model.onnx'
    argv = ['export.py', name, name, '--out', str(out), '--check']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(TOOLS / 'export.py'), run_name='__main__')
    printed = capsys.readouterr().out
    for part in ('tolerance 1e-04', f'{out.stat().st_size / 1e6:.1f} MB, opset ', '/ PyTorch: '):
        assert part in printed
    assert list(tmp_path.iterdir()) == [out]

    session = onnxruntime.InferenceSession(out)
    model = build(Config.fromfile(released(name).config)).eval()
    model.load_state_dict(read_state_dict(released(name).weights))
    for batch, height, width in SIZES:
        image = torch.randn(batch, 3, height, width)
        found = [torch.from_numpy(a) for a in session.run(None, {'image': image.numpy()})]
        with torch.no_grad():
            if name == DETECTION:
                torch.testing.assert_close(
                    found, list(model.extract_feat(image)), rtol=0, atol=1e-4
                )
            else:
                logits = model.encode_decode(image, [dict(img_shape=image.shape[2:])])
                assert (found[0] != logits.argmax(1)).float().mean() <= 1e-4
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held['classes'])[:5] == ['coin', 'star', 'triangle', 'ring', 'bar']
    prepare = model.data_preprocessor
    for key in ('mean', 'std'):
        torch.testing.assert_close(
            torch.tensor(json.loads(held[key])), getattr(prepare, key).flatten()
        )
    assert held['channels'] == 'RGB' and held['config'] == name


def test_a_segmentor_of_one_output_gives_two_classes():
    class Segmentor(torch.nn.Module):
        decode_head = type('Head', (), dict(threshold=0.3))

        def encode_decode(self, image, metas):
            return image[:, :1]

    scores = torch.tensor([0.1, 0.29, 0.31, 0.9])
    (labels,) = export.LabelMap(Segmentor())(scores.logit().reshape(1, 1, 2, 2))
    assert labels.tolist() == [[[0, 0], [1, 1]]]


TINY = dict(type='mmconvneur.ConvNeur', arch=dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1)))
MIXERS.import_from_location()
BACKBONES = dict(
    {name: dict(TINY, global_mixer=dict(type=name)) for name in MIXERS.module_dict},
    glnet=dict(type='mmconvneur.GLNet', arch='stl'),
    spatial_bias_resnet=dict(type='mmconvneur.SpatialBiasResNet', depth=50),
)
CHUNKED = {'ChunkedNeuralMemory', 'PublishedNeuralMemory'}


@pytest.mark.parametrize('name', sorted({*BACKBONES} - CHUNKED))
@pytest.mark.parametrize('untrained', [True, False])
def test_maps_of_every_backbone(name, untrained):
    """An untrained one has many equal weights, ones and zeros, and its global branch is silent."""
    pytest.importorskip('onnx', reason='onnx is not installed')
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.extract_feat = MODELS.build(BACKBONES[name])

    torch.manual_seed(0)
    network = export.FeatureMaps(Detector()).eval()
    for parameter in () if untrained else network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    session = onnxruntime.InferenceSession(export.to_onnx(network, torch.randn(1, 3, 64, 96), {}))
    assert [node.name for node in session.get_inputs()] == ['image']
    image = torch.randn(2, 3, 101, 173)
    image[1, :, 67:], image[1, :, :, 97:] = 0, 0  # padding
    found = [torch.from_numpy(a) for a in session.run(None, {'image': image.numpy()})]
    with torch.no_grad():
        for a, e in zip(found, network(image), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-4 * float(e.abs().max()))


# --------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_without_a_package(package, sample_dir, monkeypatch, capsys):
    monkeypatch.setattr(
        export, 'find_spec', lambda name: None if name == package else find_spec(name)
    )
    message = failing(monkeypatch, capsys, 'export', DETECTION, DETECTION, '--out', 'x.onnx')
    assert f'needs {package}: pip install onnx onnxruntime' in message


@pytest.mark.parametrize(
    ('args', 'parts'),
    [
        (['--out', 'x.pt'], ['--out x.pt', '.onnx']),
        (['--out', 'file/x.onnx'], ['--out file', 'file is a file']),
        (['--out', 'folder.onnx'], ['--out folder.onnx is a folder']),
        (['--out', 'x.onnx', '--image', 'no.png'], ['no image found at no.png']),
        (['--out', 'x.onnx'], ['data/sample/', 'is missing', '--image']),
        (['--out', 'x.onnx', '--image', 'small.png'], ['at least 32 x 32 pixels', '16 x 24']),
    ],
)
def test_bad_input_is_one_line(args, parts, tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (24, 16)).save('small.png')
    Path('file').touch()
    Path('folder.onnx').mkdir()
    message = failing(monkeypatch, capsys, 'export', SEGMENTATION, SEGMENTATION, *args)
    for part in parts:
        assert part in message, message
    assert not Path('x.onnx').exists()


def test_a_config_without_a_model(monkeypatch, capsys):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    path = str(CONFIGS / 'deploy' / 'upernet_onnxruntime.py')
    message = failing(monkeypatch, capsys, 'export', path, SEGMENTATION, '--out', 'x.onnx')
    assert f'{path} has no model: give a config for' in message


def test_a_model_of_another_package(tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    path = tmp_path / 'backbone.py'
    path.write_text("model = dict(type='mmconvneur.ConvNeur', arch='m1')\n")
    message = failing(monkeypatch, capsys, 'export', str(path), SEGMENTATION, '--out', 'x.onnx')
    assert f'{path} is for another package: give a config for detection' in message


def test_a_file_that_differs_is_refused():
    compare = runpy.run_path(str(TOOLS / 'export.py'))['compare']
    map_ = torch.tensor([[5.0, -10.0]])
    compare([map_.numpy() + np.float32(9e-4)], (map_,), 'image')
    for found in (map_ + 1.1e-3, map_ * torch.nan):
        with pytest.raises(UsageError, match=r'differ.*image: difference'):
            compare([found.numpy()], (map_,), 'image')
    with pytest.raises(UsageError, match=r'share of pixels.*2.0e-01'):
        compare([np.array([[1, 2, 3, 4, 5]])], (torch.tensor([[1, 2, 3, 4, 6]]),), 'image')


@pytest.mark.parametrize('name', sorted(CHUNKED))
def test_a_memory_of_chunks_is_refused(name):
    pytest.importorskip('onnx', reason='onnx is not installed')
    mixer = MIXERS.get(name)(16)
    with pytest.raises(UsageError, match=f'^{name} takes a step per chunk.*export NeuralMemory$'):
        export.to_onnx(mixer, torch.randn(1, 3, 32, 32), {})


def test_what_the_exporter_cannot_express_is_one_line():
    class Network(torch.nn.Module):
        def forward(self, image):
            return (torch.linalg.cholesky(image @ image.mT),)

    pytest.importorskip('onnx', reason='onnx is not installed')
    with pytest.raises(UsageError, match='cannot export this network to ONNX'):
        export.to_onnx(Network(), torch.randn(1, 3, 32, 32), {})
