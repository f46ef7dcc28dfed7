"""What only a GPU can show: half precision, compiled and recorded passes, no waiting, no NaN."""

from __future__ import annotations

import pytest
import torch
from steps import wake_memory, without_tf32
from torch import Tensor, nn

from benchmarking.measure import record
from mmconvneur import ConvNeur

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch sees no GPU'),
]
MIXERS = ['NeuralMemory', 'ChunkedNeuralMemory', 'GLMix', None]
SMALL = dict(channels=(64, 128, 192, 256), depths=(1, 1, 2, 1))
# Error over the norm of the float64 values: (maps, gradients). float32 rounds at 6e-8, float16 at
# 5e-4, bfloat16 at 4e-3; a map is the end of a dozen layers.
TOLERANCES = {None: (1e-5, 1e-4), torch.float16: (5e-3, 2e-2), torch.bfloat16: (4e-2, 1e-1)}


@pytest.fixture(autouse=True)
def full_float32():
    with without_tf32():
        yield


def network(mixer: str | None = 'NeuralMemory', arch: str | dict = SMALL, **cfg) -> ConvNeur:
    torch.manual_seed(0)
    net = ConvNeur(arch, global_mixer=mixer and dict(type=mixer), **cfg)
    net.init_weights()
    wake_memory(net)
    return net.cuda()


def image(batch: int = 2, height: int = 131, width: int = 197) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).cuda()


def passes(net: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> tuple[list, list]:
    """Maps, and the gradients of the sum of their products with fixed noise."""
    net.zero_grad()
    with torch.autocast('cuda', dtype, enabled=dtype is not None):
        maps = net(x)
    noise = torch.Generator().manual_seed(2)
    directions = [torch.randn(m.shape, generator=noise).to(m) for m in maps]
    torch.autograd.backward(maps, directions)
    return [m.detach() for m in maps], [p.grad for p in net.parameters()]


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error of a tensor, in norms and relative."""
    pairs = zip(actual, expected, strict=True)
    return max(((a - e).norm() / e.norm().clamp(min=1e-6)).item() for a, e in pairs)


def joined(gradients: list[Tensor]) -> list[Tensor]:
    """As one vector: some gradients are zero but for rounding."""
    return [torch.cat([g.flatten().double() for g in gradients])]


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('mixer', MIXERS)
def test_values_are_those_of_float64(mixer, dtype):
    net, x = network(mixer), image()
    maps, gradients = passes(net, x, dtype)
    reference_maps, reference_gradients = passes(net.double(), x.double())
    for_maps, for_gradients = TOLERANCES[dtype]
    assert error([m.double() for m in maps], reference_maps) < for_maps
    assert error(joined(gradients), joined(reference_gradients)) < for_gradients


@pytest.mark.parametrize('mixer', MIXERS)
def test_the_layout_of_the_image_does_not_matter(mixer):
    net, x = network(mixer), image()
    expected, _ = passes(net, x)
    actual, _ = passes(net, x.contiguous(memory_format=torch.channels_last))
    assert all(m.is_contiguous() for m in actual)
    assert error(actual, expected) < 1e-6


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_a_compiled_backbone_computes_the_same(mode):
    net, x = network(), image()
    expected, expected_gradients = passes(net, x)
    expected_gradients = [g.clone() for g in expected_gradients]
    compiled = torch.compile(net, mode=mode)
    for _ in range(3):  # the later ones are replayed
        maps, gradients = passes(compiled, x)
    assert error(maps, expected) < 1e-5
    assert error(joined(gradients), joined(expected_gradients)) < 1e-4
    torch.compiler.reset()


@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize('mixer', MIXERS)
def test_a_recorded_pass_computes_the_same(mixer, dtype):
    """A new image is copied to the place of the recorded one."""
    net, x, outs = network(mixer), image(), []

    def step() -> None:
        with torch.no_grad(), torch.autocast('cuda', dtype, enabled=dtype is not None):
            outs[:] = net(x)

    replay = record(step)
    x.copy_(torch.randn_like(x))
    replay()
    replayed = [out.clone() for out in outs]
    step()
    assert error(replayed, outs) < (1e-6 if dtype is None else 1e-2)


@pytest.mark.parametrize('img_shapes', [None, [(131, 197), (97, 101)]], ids=['searched', 'given'])
@pytest.mark.parametrize('dtype', [None, torch.float16], ids=str)
@pytest.mark.parametrize('mixer', MIXERS)
def test_nothing_waits_for_the_gpu(mixer, dtype, img_shapes):
    """In a forward pass, with gradients and without."""
    net, x = network(mixer), image()
    passes(net, x, dtype)  # handles and workspaces
    torch.cuda.set_sync_debug_mode('error')
    try:
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            net(x, img_shapes)
            with torch.no_grad():
                net(x, img_shapes)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('mixer', MIXERS)
def test_deterministic_algorithms_repeat_every_bit(mixer, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    net, x = network(mixer), image()
    torch.use_deterministic_algorithms(True)
    try:
        (first, first_gradients), *others = (
            ([m.clone() for m in maps], [g.clone() for g in gradients])
            for maps, gradients in (passes(net, x) for _ in range(3))
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for maps, gradients in others:
        assert all(map(torch.equal, maps, first))
        assert all(map(torch.equal, gradients, first_gradients))


@pytest.mark.slow
@pytest.mark.parametrize('layer_scale', [1e-6, 1.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_200_steps_in_half_precision_stay_finite(dtype, layer_scale):
    """ConvNeur-T at 800 x 1280 from scratch, and with layer scales as large as trained ones."""
    net = network(arch='t', layer_scale_init_value=layer_scale).train()
    x = image(2, 800, 1280)
    with torch.no_grad():
        targets = [torch.randn_like(m) for m in net(x)]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.05)
    scaler, losses = torch.amp.GradScaler('cuda', enabled=dtype == torch.float16), []
    for _ in range(200):
        optimizer.zero_grad()
        with torch.autocast('cuda', dtype):
            maps = net(x)
            loss = sum((m - t).float().square().mean() for m, t in zip(maps, targets, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    losses = torch.stack(losses)
    assert losses.isfinite().all()
    assert all(p.isfinite().all() for p in net.parameters())
    assert losses[-20:].mean() < losses[:20].mean()
    assert scaler.get_scale() >= 2**8 or dtype != torch.float16  # few steps were left out
