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
def test_tiles_put_together_are_the_whole(monkeypatch, length):
    monkeypatch.setattr(tiles, 'TILE', length)
    layer, sizes = torch.nn.Linear(DIM, OUT).double(), []

    def function(x):
        sizes.append(x.size(1))
        return layer(x).sin()

    x = draw(BATCH, POSITIONS, DIM)
    with torch.no_grad():
        actual = tiles.in_tiles(layer, function, x)
    longest = min(max(1, length // BATCH), POSITIONS)
    assert max(sizes) == longest and len(sizes) == -(-POSITIONS // longest)
    torch.testing.assert_close(actual, layer(x).sin(), rtol=0, atol=1e-14)


@pytest.mark.parametrize('why', ['gradient', 'hook', 'pre-hook'])
def test_the_whole_map_at_once_for_a_gradient_or_a_hook(monkeypatch, why):
    monkeypatch.setattr(tiles, 'TILE', 11)
    branch, shapes = LocalBranch(7, mlp_ratio=3, kernel_size=5, gamma=0.7).eval(), []
    if why == 'hook':
        branch.act.register_forward_hook(lambda m, i, o: shapes.append(o.shape))
    elif why == 'pre-hook':
        branch.act.register_forward_pre_hook(lambda m, i: shapes.append(i[0].shape))
    else:
        monkeypatch.setattr(branch.act, 'forward', lambda x: shapes.append(x.shape) or x)
    with torch.set_grad_enabled(why == 'gradient'):
        branch(draw(2, 7, 13, 19, dtype=torch.float32))
    assert shapes == [(2, 13 * 19, 21)]


@pytest.mark.parametrize('strided', [False, True])
def test_linear_equals_the_matrix_product(monkeypatch, strided):
    def linear(x, weight, bias):
        parameters = dict(weight=weight, bias=bias)
        return torch.func.functional_call(tiles.Linear(DIM, OUT), parameters, x)

    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args: calls.append(1) or conv2d(*args))
    x = draw(BATCH, 2 * POSITIONS, DIM, dtype=torch.float32)
    x = x[:, ::2] if strided else x[:, :POSITIONS]
    weight, bias = draw(OUT, DIM, seed=1, dtype=torch.float32), draw(OUT, dtype=torch.float32)
    assert_same(linear, F.linear, [x, weight, bias], 1e-6)
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
        layer = tiles.Linear(DIM, OUT).to(dtype)
        layer.load_state_dict(dict(weight=weight, bias=bias))
        torch.testing.assert_close(layer(x), F.linear(x, weight, bias))


@pytest.mark.parametrize('shape', [(601, DIM), (2, 3, 101, DIM), (43, 17, DIM)])
def test_linear_takes_any_leading_dimensions(shape):
    layer, x = tiles.Linear(DIM, OUT), draw(*shape, dtype=torch.float32)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


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
