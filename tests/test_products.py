import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from mmconvneur.models.mixers.products import gram, product, unit_length

BATCH, TOKENS, INNER, OUT = 2, 7, 5, 3
EXACT = dict(rtol=0, atol=1e-12)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()


def operands(transpose_a, transpose_b):
    a = draw(BATCH, *((INNER, TOKENS) if transpose_a else (TOKENS, INNER)))
    b = draw(BATCH, *((OUT, INNER) if transpose_b else (INNER, OUT)), seed=1)
    return a, b, dict(transpose_a=transpose_a, transpose_b=transpose_b)


@pytest.mark.parametrize('bias', [None, (OUT,), (TOKENS, 1)])
@pytest.mark.parametrize('transpose_b', [False, True])
@pytest.mark.parametrize('transpose_a', [False, True])
def test_product_equals_its_sum(transpose_a, transpose_b, bias):
    a, b, which = operands(transpose_a, transpose_b)
    inputs = [a, b] if bias is None else [a, b, draw(*bias, seed=2)]
    into = f'n{"kt" if transpose_a else "tk"},n{"ok" if transpose_b else "ko"}->nto'
    expected = torch.einsum(into, a, b) + sum(inputs[2:])
    torch.testing.assert_close(product(*inputs, **which), expected, **EXACT)
    assert gradcheck(lambda *inputs: product(*inputs, **which), inputs)
    assert gradgradcheck(lambda *inputs: product(*inputs, **which), inputs)


@pytest.mark.parametrize('transpose_b', [False, True])
@pytest.mark.parametrize('transpose_a', [False, True])
def test_gradients_of_a_product_lie_like_its_operands(transpose_a, transpose_b):
    a, b, which = operands(transpose_a, transpose_b)
    for gradient in torch.autograd.grad(product(a, b, **which).sin().sum(), [a, b]):
        assert gradient.is_contiguous()


def test_product_with_a_frozen_operand():
    a, b, which = operands(False, True)
    for moving, frozen in (a, b), (b, a):
        frozen.requires_grad_(False)
        assert gradcheck(lambda a, b: product(a, b, **which), [a, b])
        assert product(a, b, **which).grad_fn.next_functions[moving is b][0] is not None
        frozen.requires_grad_()


def test_product_under_autocast():
    a, b = (draw(2, 11, 11, seed=seed, dtype=torch.float32) for seed in (0, 1))
    bias, grads = draw(11, seed=2, dtype=torch.float32), []
    for function in (
        lambda: product(a, b, bias, transpose_b=True),
        lambda: torch.baddbmm(bias, a, b.mT),
    ):
        with torch.autocast('cpu', torch.bfloat16):
            out = function()
        assert out.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(out.float().square().sum(), [a, b, bias]))
    for actual, expected in zip(*grads, strict=True):
        assert actual.dtype == torch.float32
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-2 * scale)


def test_gram_equals_its_sum():
    x = draw(BATCH, TOKENS, INNER)
    torch.testing.assert_close(gram(x), torch.einsum('nti,ntj->nij', x, x), **EXACT)
    assert gradcheck(gram, [x])
    assert gradgradcheck(gram, [x])


def test_unit_length_equals_a_division_by_the_norm():
    x = draw(BATCH, 3, 5, 7)
    torch.testing.assert_close(unit_length(x), F.normalize(x, dim=2, eps=1e-6), **EXACT)
    assert gradcheck(unit_length, [x])
    assert gradgradcheck(unit_length, [x])


def test_a_vector_shorter_than_the_floor_is_divided_by_it():
    x = (1e-8 * draw(BATCH, 3, 5, 7).detach()).requires_grad_()
    direction = draw(BATCH, 3, 5, 7, seed=1).detach()
    torch.testing.assert_close(unit_length(x), x * 1e6, **EXACT)
    (gradient,) = torch.autograd.grad(unit_length(x), x, direction)
    torch.testing.assert_close(gradient, direction * 1e6, rtol=1e-12, atol=0)


def test_nothing_is_kept_where_no_gradient_is_needed():
    x = draw(BATCH, 3, 5, 7)
    expected = unit_length(x), gram(x[0]), product(x, x, transpose_b=True)
    with torch.no_grad():
        actual = unit_length(x), gram(x[0]), product(x, x, transpose_b=True)
    for a, e in zip(actual, expected, strict=True):
        assert a.grad_fn is None and e.grad_fn is not None
        torch.testing.assert_close(a, e, **EXACT)
