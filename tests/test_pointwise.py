import pytest
import torch
from torch.nn import functional as F

from mmconvneur.models import pointwise
from mmconvneur.models.local_branch import LocalBranch

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
def test_strips_are_pieces_of_the_whole(monkeypatch, length):
    monkeypatch.setattr(pointwise, 'STRIP', length)
    weight = draw(OUT, DIM, seed=1)

    def function(x):
        return (x @ weight.T).sin()

    x = draw(BATCH, POSITIONS, DIM)
    sizes = {strip.size(1) for strip in pointwise.strips(x)}
    assert max(sizes) == min(max(1, length // BATCH), POSITIONS)
    assert_same(lambda x: pointwise.by_strips(function, x), function, [x], 1e-14)


@pytest.mark.parametrize('strided', [False, True])
def test_linear_equals_the_matrix_product(monkeypatch, strided):
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args: calls.append(1) or conv2d(*args))
    x = draw(BATCH, 2 * POSITIONS, DIM, dtype=torch.float32)
    x = x[:, ::2] if strided else x[:, :POSITIONS]
    weight, bias = draw(OUT, DIM, seed=1, dtype=torch.float32), draw(OUT, dtype=torch.float32)
    assert_same(pointwise.linear, F.linear, [x, weight, bias], 1e-6)
    assert calls  # it was the convolution that computed this


def test_few_rows_and_other_dtypes_take_the_matrix_product(monkeypatch):
    monkeypatch.setattr(F, 'conv2d', None)
    for positions, dtype in [(7, torch.float32), (POSITIONS, torch.float64)]:
        x, weight = draw(BATCH, positions, DIM, dtype=dtype), draw(OUT, DIM, seed=1, dtype=dtype)
        bias = draw(OUT, seed=2, dtype=dtype)
        torch.testing.assert_close(pointwise.linear(x, weight, bias), F.linear(x, weight, bias))


def test_gelu_is_in_place_only_where_nothing_needs_its_input():
    x = draw(5, 7)
    kept, expected = x.clone(), F.gelu(x)
    torch.testing.assert_close(pointwise.GELU()(x), expected, rtol=0, atol=0)
    assert torch.equal(x, kept)
    with torch.no_grad():
        out = pointwise.GELU()(x)
    assert out is x and torch.equal(x, expected)


def test_local_branch_in_strips_equals_its_equation(monkeypatch):
    monkeypatch.setattr(pointwise, 'STRIP', 11)
    torch.manual_seed(0)
    branch = LocalBranch(7, mlp_ratio=3, kernel_size=5, layer_scale=0.7).double()

    def equation(x):
        y = F.conv2d(x, branch.depthwise_conv.weight, branch.depthwise_conv.bias, 1, 2, 1, 7)
        y = branch.norm(y.movedim(1, -1))
        y = F.gelu(y @ branch.expand.weight.T + branch.expand.bias)
        y = y @ branch.project.weight.T + branch.project.bias
        return (branch.layer_scale * y).movedim(-1, 1)

    parameters = list(branch.parameters())
    x = draw(2, 7, 13, 19)
    assert_same(lambda x, *_: branch(x), lambda x, *_: equation(x), [x, *parameters], 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(branch(x), equation(x), rtol=0, atol=1e-12)
