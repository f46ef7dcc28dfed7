"""Compact tokens against loops over positions."""

import pytest
import torch

from mmconvneur import ConvNeur
from mmconvneur.models.layers.tokens import pool_tokens, spread_tokens

pytestmark = pytest.mark.usefixtures('device')

BATCH, DIM = 2, 3
every_size = pytest.mark.parametrize('size', [2, 4])
every_shape = pytest.mark.parametrize('shape', [(4, 5), (8, 12), (11, 7), (13, 17)])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rectangles(height: int, width: int) -> torch.Tensor:
    """A mask whose images are valid in rectangles of different sizes."""
    mask = torch.zeros(BATCH, 1, height, width)
    mask[0, :, : max(1, height - 3)] = 1
    mask[1, :, :, : max(1, width - 5)] = 1
    return mask


def slow_pool(x, size, mask):
    """Tokens position by position, 0 for those without any valid position."""
    batch, dim, height, width = x.shape
    rows, columns = height // size, width // size
    tokens = torch.zeros(batch, dim, rows, columns).double()
    counts = torch.zeros(batch, rows, columns)
    places = [
        (b, i, j)
        for b in range(batch)
        for i in range(rows * size)
        for j in range(columns * size)
        if mask is None or mask[b, 0, i, j]
    ]
    for b, i, j in places:
        counts[b, i // size, j // size] += 1
    for b, i, j in places:
        tokens[b, :, i // size, j // size] += x[b, :, i, j] / counts[b, i // size, j // size]
    return tokens, counts > 0


def slow_spread(tokens, shape, valid):
    """Bilinear between the centres of valid tokens, which lie evenly over the map."""
    batch, dim, rows, columns = tokens.shape
    out = torch.zeros(batch, dim, *shape).double()
    for b in range(batch):
        for i in range(shape[0]):
            for j in range(shape[1]):
                total = 0.0
                for r in range(rows):
                    for c in range(columns):
                        weight = near(i, shape[0], r, rows) * near(j, shape[1], c, columns)
                        if weight and (valid is None or valid[b, r, c]):
                            out[b, :, i, j] += weight * tokens[b, :, r, c]
                            total += weight
                if total:
                    out[b, :, i, j] /= total
    return out


def near(position: int, length: int, token: int, count: int) -> float:
    place = min(max((position + 0.5) * count / length - 0.5, 0), count - 1)
    return max(0.0, 1 - abs(place - token))


@pytest.mark.parametrize('masked', [False, True])
@every_shape
@every_size
def test_tokens_are_means_over_valid_positions(size, shape, masked):
    x, mask = draw(BATCH, DIM, *shape), rectangles(*shape) if masked else None
    tokens, valid = pool_tokens(x, size, mask)
    expected, expected_valid = slow_pool(x, size, mask)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)
    if masked:
        assert torch.equal(valid[:, 0], expected_valid)
    else:
        assert valid is None and expected_valid.all()


@pytest.mark.parametrize('masked', [False, True])
@every_shape
@every_size
def test_the_way_back_interpolates_between_centres(size, shape, masked):
    rows, columns = (length // size for length in shape)
    tokens, valid = draw(BATCH, DIM, rows, columns), None
    if masked:
        _, valid = pool_tokens(draw(BATCH, DIM, *shape), size, rectangles(*shape))
    actual = spread_tokens(tokens, shape, valid)
    expected = slow_spread(tokens, shape, None if valid is None else valid[:, 0])
    assert actual.shape == (BATCH, DIM, *shape)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@every_size
def test_a_padded_image_is_the_image_alone(size):
    """Whatever the padding holds, and however much of it there is, up to whole tokens."""
    x, mask = draw(1, DIM, 12, 16), torch.zeros(1, 1, 32, 24)
    mask[..., :11, :13] = 1
    padded = torch.where(mask.bool(), torch.zeros(1, DIM, 32, 24).double(), torch.nan)
    padded[..., :11, :13] = x[..., :11, :13]

    def there_and_back(x, mask):
        tokens, valid = pool_tokens(x, size, mask)
        return spread_tokens(tokens.sin(), x.shape[2:], valid)[..., :11, :13]

    alone = there_and_back(padded[..., :12, :16], mask[..., :12, :16])
    torch.testing.assert_close(there_and_back(padded, mask), alone, rtol=0, atol=1e-12)
    assert alone.isfinite().all()


def test_gradients_of_the_way_there_and_back():
    mask = rectangles(5, 7)

    def there_and_back(x):
        tokens, valid = pool_tokens(x, 2, mask)
        return spread_tokens(tokens, (5, 7), valid)

    assert torch.autograd.gradcheck(there_and_back, draw(BATCH, DIM, 5, 7).requires_grad_())


@pytest.mark.parametrize('stride, sizes', [(1, [1] * 4), (8, [2, 1, 1, 1]), (16, [4, 2, 1, 1])])
def test_a_stage_is_pooled_to_the_token_stride(stride, sizes):
    arch = dict(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), mlp_ratio=1, kernel_size=3)
    net, seen = ConvNeur(arch, token_stride=stride), []
    for stage in net.stages:
        stage[0].global_branch.register_forward_hook(
            lambda module, inputs, output: seen.append(tuple(output.shape[2:]))
        )
    net(torch.randn(1, 3, 132, 164))
    maps = [(33, 41), (16, 20), (8, 10), (4, 5)]
    assert seen == [
        (height // size, width // size) for (height, width), size in zip(maps, sizes, strict=True)
    ]
