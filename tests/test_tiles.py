import pytest
import torch
from torch.nn import functional as F

from mmconvneur.models.layers import tiles
from mmconvneur.models.layers.local_branch import LocalBranch

BATCH, POSITIONS, DIM, OUT = 2, 263, 11, 17  # 526 rows: enough for the convolution


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_same(function, reference, inputs, tolerance):
    """Equal values, and equal gradients of every input."""
    inputs = [t.requires_grad_() for t in inputs]
    actual, expected = function(*inputs), reference(*inputs)
    direction = draw(*expected.shape, seed=7, dtype=expected.dtype)
    grads = [torch.autograd.grad(out, inputs, direction) for out in (actual, expected)]
    for a, e in zip((actual, *grads[0]), (expected, *grads[1]), strict=True):
        scale = e.abs().max().item()
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('length', [1, 11, 10**6])
def test_tiles_are_pieces_of_the_whole(monkeypatch, length):
    monkeypatch.setattr(tiles, 'TILE', length)
    weight = draw(OUT, DIM, seed=1)

    def function(x):
        return (x @ weight.T).sin()

    x = draw(BATCH, POSITIONS, DIM)
    sizes = {tile.size(1) for tile in tiles.tiles(x)}
    assert max(sizes) == min(max(1, length // BATCH), POSITIONS)
    assert_same(lambda x: tiles.tiled(function, x), function, [x], 1e-14)


@pytest.mark.parametrize('strided', [False, True])
def test_linear_equals_the_matrix_product(monkeypatch, strided):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args: calls.append(1) or conv2d(*args))
    x = draw(BATCH, 2 * POSITIONS, DIM, dtype=torch.float32)
    x = x[:, ::2] if strided else x[:, :POSITIONS]
    weight, bias = draw(OUT, DIM, seed=1, dtype=torch.float32), draw(OUT, dtype=torch.float32)
    assert_same(tiles.linear, F.linear, [x, weight, bias], 1e-6)
    assert calls  # it was the convolution that computed this


def test_few_rows_other_dtypes_and_one_thread_take_the_matrix_product(monkeypatch):
    monkeypatch.setattr(F, 'conv2d', None)
    for positions, dtype, threads in [
        (7, torch.float32, 2),
        (POSITIONS, torch.float64, 2),
        (POSITIONS, torch.float32, 1),
    ]:
        monkeypatch.setattr(torch, 'get_num_threads', lambda threads=threads: threads)
        x, weight = draw(BATCH, positions, DIM, dtype=dtype), draw(OUT, DIM, seed=1, dtype=dtype)
        bias = draw(OUT, seed=2, dtype=dtype)
        torch.testing.assert_close(tiles.linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize('shape', [(601, DIM), (2, 3, 101, DIM), (43, 17, DIM)])
def test_linear_takes_any_leading_dimensions(shape):
    layer, x = tiles.Linear(DIM, OUT), draw(*shape, dtype=torch.float32)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_gelu_linear_equals_its_two_steps():
    layer = tiles.Linear(DIM, OUT).double()

    def apply(x, weight, bias):
        parameters = {'layer.weight': weight, 'layer.bias': bias}
        return torch.func.functional_call(Wrapped(layer), parameters, x)

    inputs = [draw(BATCH, 7, DIM), draw(OUT, DIM, seed=1), draw(OUT, seed=2)]
    assert_same(apply, lambda x, weight, bias: F.linear(F.gelu(x), weight, bias), inputs, 1e-12)
    assert torch.autograd.gradgradcheck(tiles.GELULinear.apply, [t[:3] for t in inputs])


class Wrapped(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return tiles.gelu_linear(x, self.layer)


def test_gelu_overwrites_its_input_only_where_nothing_needs_it():
    layer, x = tiles.Linear(DIM, OUT).double(), draw(2, 5, DIM)
    kept, expected = x.clone(), F.linear(F.gelu(x), layer.weight, layer.bias)
    torch.testing.assert_close(tiles.gelu_linear(x, layer), expected, rtol=0, atol=1e-14)
    assert torch.equal(x, kept)
    with torch.no_grad():
        torch.testing.assert_close(tiles.gelu_linear(x, layer), expected, rtol=0, atol=1e-14)
    assert torch.equal(x, F.gelu(kept))


def test_gelu_linear_keeps_its_input_only():
    layer, kept = tiles.Linear(DIM, OUT), []
    x = draw(2, 5, DIM, dtype=torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tiles.gelu_linear(x, layer)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), layer.weight.data_ptr()]


def test_gelu_linear_with_a_frozen_layer_or_input():
    layer, x = tiles.Linear(DIM, OUT).double(), draw(2, 5, DIM)
    for inputs in ([x.requires_grad_()], [*layer.parameters()]):
        frozen = [t for t in (x, *layer.parameters()) if all(t is not i for i in inputs)]
        for tensor in frozen:
            tensor.requires_grad_(False)
        direction = draw(2, 5, OUT, seed=3)
        actual = torch.autograd.grad(tiles.gelu_linear(x, layer), inputs, direction)
        expected = torch.autograd.grad(layer(F.gelu(x)), inputs, direction)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-12)
        for tensor in frozen:
            tensor.requires_grad_()


def test_a_layer_in_the_place_of_ours_is_called():
    class Adapter(torch.nn.Module):
        def forward(self, x):
            return 3 * x

    x = draw(2, 5, DIM)
    torch.testing.assert_close(tiles.gelu_linear(x, Adapter()), 3 * F.gelu(x))


def test_gelu_linear_under_autocast():
    layer, x = tiles.Linear(DIM, OUT), draw(2, 5, DIM, dtype=torch.float32).requires_grad_()
    grads = []
    for function in (tiles.gelu_linear, lambda x, layer: layer(F.gelu(x))):
        with torch.autocast('cpu', torch.bfloat16):
            out = function(x, layer)
        assert out.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()]))
    for a, e in zip(*grads, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=0, atol=2e-2 * e.abs().max().item())


def test_local_branch_in_tiles_equals_its_equation(monkeypatch):
    monkeypatch.setattr(tiles, 'TILE', 11)
    torch.manual_seed(0)
    branch = LocalBranch(7, mlp_ratio=3, kernel_size=5, gamma=0.7).double()

    def equation(x):
        y = F.conv2d(x, branch.depthwise_conv.weight, branch.depthwise_conv.bias, 1, 2, 1, 7)
        y = branch.norm(y.movedim(1, -1))
        y = F.gelu(y @ branch.pointwise_conv1.weight.T + branch.pointwise_conv1.bias)
        y = y @ branch.pointwise_conv2.weight.T + branch.pointwise_conv2.bias
        return (branch.gamma * y).movedim(-1, 1)

    parameters = list(branch.parameters())
    x = draw(2, 7, 13, 19)
    assert_same(lambda x, *_: branch(x), lambda x, *_: equation(x), [x, *parameters], 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(branch(x), equation(x), rtol=0, atol=1e-12)
