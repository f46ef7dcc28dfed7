import pytest
import torch
from reference import inner, step

from mmconvneur.models.mixers.inner_models import INNER_MODELS, RIDGE

TOKENS, WIDTH = 13, 7


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', INNER_MODELS)
def test_closed_form_is_the_step_down_the_loss(name):
    model = INNER_MODELS[name]
    weights = tuple(draw(WIDTH, WIDTH, seed=i) for i in range(model.num_weights))
    keys, values, w = draw(TOKENS, WIDTH, seed=5), draw(TOKENS, WIDTH, seed=6), draw(TOKENS, seed=7)
    expected = step(name, weights, keys, values, w.abs())
    actual = model.step(weights, keys, values, w.abs())
    assert len(actual) == len(expected) == model.num_weights
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', INNER_MODELS)
def test_apply_and_change(name):
    model = INNER_MODELS[name]
    new = tuple(draw(WIDTH, WIDTH, seed=i) for i in range(model.num_weights))
    old = tuple(draw(WIDTH, WIDTH, seed=9 + i) for i in range(model.num_weights))
    x = draw(TOKENS, WIDTH, seed=3)
    torch.testing.assert_close(model.apply(new, x), inner(name, new, x), rtol=0, atol=1e-10)
    expected = inner(name, new, x) - inner(name, old, x)
    change = tuple(a - b for a, b in zip(new, old, strict=True))
    torch.testing.assert_close(model.change(old, change, x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', INNER_MODELS)
def test_closed_form_is_differentiable(name):
    """The outer network trains through the inner step: second derivatives are right."""
    model = INNER_MODELS[name]
    weights = tuple(draw(3, 3, seed=i).requires_grad_() for i in range(model.num_weights))
    keys, values = draw(5, 3, seed=5).requires_grad_(), draw(5, 3, seed=6).requires_grad_()
    w = draw(5, seed=7).abs().requires_grad_()

    def closed_form(keys, values, w, *weights):
        return model.step(weights, keys, values, w)

    assert torch.autograd.gradcheck(closed_form, (keys, values, w, *weights))


def test_ridge_step_leads_to_the_minimum():
    """Where the loss plus lambda/2 ||W' - W||^2 is flat; a rare key is read as it was written."""
    model, start = INNER_MODELS['ridge'], draw(WIDTH, WIDTH, seed=1)
    keys, values, w = draw(TOKENS, WIDTH, seed=5), draw(TOKENS, WIDTH, seed=6), draw(TOKENS, seed=7)
    (change,) = model.step((start,), keys, values, w.abs())
    end = (start - change).requires_grad_()
    errors = (keys @ end - values).square().sum(1)
    total = (w.abs() * errors).sum() / 2 + RIDGE / 2 * (end - start).square().sum()
    (slope,) = torch.autograd.grad(total, end)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)

    eye = torch.eye(WIDTH, dtype=torch.float64)  # orthogonal keys, the first with a weight of 0.1
    w = torch.tensor([0.1] + [0.9 / (WIDTH - 1)] * (WIDTH - 1), dtype=torch.float64)
    (change,) = model.step((0 * eye,), eye, values[:WIDTH], w)
    expected = -values[:1] * 0.1 / (0.1 + RIDGE)
    torch.testing.assert_close(change[:1], expected, rtol=0, atol=1e-10)
