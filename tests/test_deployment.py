"""The default backbone leaves Python: ONNX by both exporters, TorchScript, and few kernels."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmconvneur import ConvNeur
from mmconvneur.models.layers import tiles

TINY = dict(channels=(8, 16, 24, 40), depths=(1, 2, 1, 1), mlp_ratio=2, kernel_size=5)
SIZES = [(1, 64, 64), (3, 100, 172), (2, 229, 131)]  # none of them the example's


def network(**cfg) -> ConvNeur:
    """Random everywhere, so that no zero hides the memory."""
    torch.manual_seed(0)
    net = ConvNeur(TINY, **cfg).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def image(batch: int, height: int, width: int) -> torch.Tensor:
    """The last of three is padded."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 3, height, width, generator=generator)
    if batch > 2:
        x[-1, :, :, -21:] = 0.5
    return x


@pytest.mark.slow
@pytest.mark.parametrize('token_stride', [8, 16])
@pytest.mark.parametrize('dynamo', [True, False], ids=['present', 'older'])
def test_onnx_with_dynamic_sizes_equals_pytorch(dynamo, token_stride, tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    net, example, path = network(token_stride=token_stride), image(2, 96, 128), tmp_path / 'a.onnx'
    if dynamo:
        if torch.__version__ < '2.6':
            pytest.skip('PyTorch before 2.6 has no torch.export.Dim.DYNAMIC')
        dynamic = torch.export.Dim.DYNAMIC
        shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
        torch.onnx.export(net, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        axes = dict(image={0: 'batch', 2: 'height', 3: 'width'})
        names = dict(input_names=['image'], dynamic_axes=axes)
        if torch.__version__ >= '2.5':  # before, the only one
            names['dynamo'] = False
        torch.onnx.export(net, (example,), path, **names)
    session = onnxruntime.InferenceSession(path)
    (name,) = (node.name for node in session.get_inputs())
    for size in SIZES:
        x = image(*size)
        with torch.no_grad():
            expected = net(x)
        for a, e in zip(session.run(None, {name: x.numpy()}), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), e, rtol=0, atol=1e-4)


@pytest.mark.parametrize('grad', [True, False])
def test_torchscript_traces_and_saves(grad, tmp_path):
    net = network()
    with torch.set_grad_enabled(grad):
        torch.jit.trace(net, image(2, 96, 128)).save(tmp_path / 'net.pt')
    loaded = torch.jit.load(tmp_path / 'net.pt')
    for size in SIZES:
        x = image(*size)
        for a, e in zip(loaded(x), net(x), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


class Kernels(TorchDispatchMode):
    """Counts the operators that compute: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        returned = (r.alias_info for r in function._schema.returns)
        view = name == 'aten::_unsafe_view' or any(a and not a.is_write for a in returned)
        self.count += not view and name not in ('aten::promote_types', 'aten::scalar_tensor')
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('batch', [1, 2])
def test_a_memory_adds_few_kernels(batch, monkeypatch):
    """ConvNeur-T against the same network without a memory, as on a GPU: in one tile."""
    monkeypatch.setattr(tiles, 'TILE', 10**9)
    counts, x = {}, image(batch, 64, 96)
    for mixer in (None, dict(type='NeuralMemory')):
        net = ConvNeur('t', global_mixer=mixer).eval()
        with torch.no_grad(), Kernels() as kernels:
            net(x)
        counts[mixer is None] = kernels.count
    assert counts[True] == 143  # nobody asks for padding
    assert counts[False] <= 1.8 * counts[True], counts
