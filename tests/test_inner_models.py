import pytest
import torch
from test_chunked_memory import inner, slope

from mmconvneur.models.mixers.inner_models import INNER_MODELS

pytestmark = pytest.mark.usefixtures('device')

TOKENS, WIDTH = 13, 7


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('name', INNER_MODELS)
def test_closed_form_is_the_gradient_of_the_loss(name):
    model = INNER_MODELS[name]
    weights = tuple(draw(WIDTH, WIDTH, seed=i) for i in range(model.num_weights))
    keys, values, w = draw(TOKENS, WIDTH, seed=5), draw(TOKENS, WIDTH, seed=6), draw(TOKENS, seed=7)
    expected = slope(name, weights, keys, values, w.abs())
    actual = model.gradient(weights, keys, values, w.abs())
    assert len(actual) == len(expected) == model.num_weights
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', INNER_MODELS)
def test_apply(name):
    model = INNER_MODELS[name]
    weights = tuple(draw(WIDTH, WIDTH, seed=i) for i in range(model.num_weights))
    x = draw(TOKENS, WIDTH, seed=3)
    torch.testing.assert_close(model.apply(weights, x), inner(name, weights, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', INNER_MODELS)
def test_closed_form_is_differentiable(name):
    """The outer network trains through the inner step: second derivatives are right."""
    model = INNER_MODELS[name]
    weights = tuple(draw(3, 3, seed=i).requires_grad_() for i in range(model.num_weights))
    keys, values = draw(5, 3, seed=5).requires_grad_(), draw(5, 3, seed=6).requires_grad_()
    w = draw(5, seed=7).abs().requires_grad_()

    def closed_form(keys, values, w, *weights):
        return model.gradient(weights, keys, values, w)

    assert torch.autograd.gradcheck(closed_form, (keys, values, w, *weights))
