"""Maps of what a backbone does: their values, and the files that show them."""

from __future__ import annotations

import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models import ResNet, SwinTransformer
from mmengine.config import Config
from PIL import Image
from steps import SAMPLE_CONFIGS, build
from test_neural_memory import reference
from test_tools import TOOLS, failing
from torch import nn

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models.layers.tokens import pool_tokens, spread_tokens
from mmconvneur.models.mixers import NeuralMemory
from mmconvneur.registry import MIXERS
from mmconvneur.visualization import (
    ReceptiveField,
    capture,
    effective_receptive_field,
    gate,
    read_weights,
    slot_assignment,
    square_holding,
    write_weights,
)
from mmconvneur.visualization.drawing import Backdrop

EXACT = dict(rtol=0, atol=1e-10)  # float64
# Distinct primes: a swapped axis cannot pass.
DIM, HEADS, WIDTH, H, W = 13, 3, 2, 5, 7
TINY = dict(channels=(11, 13), depths=(2, 1))
RELEASED = 'mask_rcnn_convneur_m1_sample'
IMAGE = torch.randn(2, DIM, H, W, generator=torch.Generator().manual_seed(1)).double()


class Affinity(nn.Module):
    def forward(self, slots, x):  # (B, S, C), (B, C, H, W) -> (B, S, N)
        return slots @ x.flatten(2)


class Clustering(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.affinity = Affinity()
        self.slots = nn.Parameter(torch.randn(64, dim))

    def forward(self, z, x, mask=None):
        logits = self.affinity(self.slots.expand(len(z), -1, -1), z)
        return (logits.softmax(1).mT @ self.slots).mT.unflatten(2, x.shape[-2:])


class StandInSlots(nn.Module):
    """A mixer with the tap point of GLMix: logits of 64 slots through a module ``affinity``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.clustering = Clustering(dim)

    def forward(self, x, mask=None):
        return self.clustering(x, x, mask)


@pytest.fixture
def slots_mixer():
    MIXERS.register_module(module=StandInSlots)
    yield StandInSlots.__name__
    MIXERS.module_dict.pop(StandInSlots.__name__)


def memory_of() -> NeuralMemory:
    torch.manual_seed(0)
    memory = NeuralMemory(DIM, memory_dim=HEADS * WIDTH, num_heads=HEADS).double()
    for parameter in memory.parameters():
        nn.init.normal_(parameter, std=0.3)
    return memory


def heard(memory: NeuralMemory, mask=None):
    """What a memory returned, (C, H, W), and its tap, for the first of two random images."""
    with capture(memory) as taps:
        out = memory(IMAGE, mask)
    return out[0].detach(), taps.memories['']


def backbone_of(**cfg) -> ConvNeur:
    torch.manual_seed(0)
    backbone = ConvNeur(TINY, out_indices=(0, 1), **cfg).eval()
    backbone.init_weights()
    return backbone


# ------------------------------------------------------------------------------------------ capture
@pytest.mark.parametrize('placement', ['stage', 'block'])
def test_outputs_are_the_same_to_the_bit_and_hooks_are_gone(placement, slots_mixer):
    mixers = [dict(type='NeuralMemory', num_heads=2), dict(type=slots_mixer)]
    backbone = backbone_of(global_mixer=mixers, placement=placement)
    image = torch.randn(1, 3, 36, 44)
    before = backbone(image)
    with capture(backbone) as taps:
        during = backbone(image)
    for maps in (during, backbone(image)):
        assert all(torch.equal(a, b) for a, b in zip(before, maps, strict=True))
    for module in backbone.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    blocks = ['stages.0.0', 'stages.0.1', 'stages.1.0']
    fused = blocks if placement == 'block' else blocks[::2]
    assert list(taps.fusions) == fused
    assert list(taps.memories) == [f'{name}.global_branch' for name in fused[:-1]]
    assert list(taps.slots) == ['stages.1.0.global_branch.clustering']


def test_hooks_are_gone_after_an_error():
    backbone = backbone_of(global_mixer=dict(type='NeuralMemory', num_heads=2))
    with pytest.raises(UsageError, match='at least 32'), capture(backbone):
        backbone(torch.zeros(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


# --------------------------------------------------------------------------------------------- maps
def test_a_gate_is_the_sigmoid_of_the_context():
    backbone = backbone_of(global_mixer=dict(type='NeuralMemory', num_heads=2)).double()
    block = backbone.stages[0][0]
    nn.init.normal_(block.global_branch.out_proj.weight)
    image = torch.randn(2, 3, 36, 44, dtype=torch.float64)
    with capture(backbone) as taps:
        backbone(image)
    x = backbone.downsample_layers[0](image)
    tokens, _ = pool_tokens(x, block.token_size)
    context = spread_tokens(reference(block.global_branch, tokens), x.shape[2:])
    expected = 1 / (1 + torch.exp(-context[0]))
    assert expected.std() > 0.01
    torch.testing.assert_close(gate(taps.fusions['stages.0.0']), expected, **EXACT)


@pytest.mark.parametrize('masked', [False, True])
def test_write_weights_are_a_softmax_over_the_real_tokens(masked):
    memory = memory_of()
    mask = torch.ones(2, 1, H, W)
    mask[:, :, :, 5:] = 0
    _, tap = heard(memory, mask if masked else None)
    weights = write_weights(tap)
    valid = tap.tokens[..., : 5 if masked else None]
    score = torch.zeros(HEADS, H, W).double()
    logits = torch.einsum('hc,cyx->hyx', memory.write_logits.weight[..., 0], valid)
    score[..., : valid.size(2)] = logits.exp().detach()
    expected = score / score.sum((1, 2), keepdim=True)
    torch.testing.assert_close(weights, expected, **EXACT)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(HEADS).double(), **EXACT)


@pytest.mark.parametrize('masked', [False, True])
def test_read_weights_give_what_the_memory_returns(masked):
    """The readout is sum_n a_pn v_n, with the values of every token."""
    memory = memory_of()
    mask = torch.ones(2, 1, H, W)
    mask[:, :, 4:] = 0
    out, tap = heard(memory, mask if masked else None)
    values = memory.project(memory.tokens(IMAGE, mask if masked else None))[2][0]  # (h, d, N)
    for row, column in [(0, 0), (1, 6), (3, 2)]:
        weights = read_weights(tap, row, column).flatten(1)
        readout = torch.einsum('hn,hdn->hd', weights, values)
        actual = memory.out_proj(readout.flatten())
        torch.testing.assert_close(actual, out[:, row, column], **EXACT)


def test_slots_of_a_pixel_sum_to_one(slots_mixer):
    backbone = backbone_of(
        global_mixer=dict(type=slots_mixer), placement=[0], token_stride=1
    ).double()
    image = torch.randn(2, 3, 36, 44, dtype=torch.float64)
    with capture(backbone) as taps:
        backbone(image)
    ((name, logits),) = taps.slots.items()
    assert name == 'stages.0.0.global_branch.clustering' and logits.shape == (64, 9, 11)
    slots = slot_assignment(logits)
    torch.testing.assert_close(slots.sum(0), torch.ones(9, 11).double(), **EXACT)
    x = backbone.downsample_layers[0](image)[0, :, 7, 4]
    score = (backbone.stages[0][0].global_branch.clustering.slots @ x).exp().detach()
    torch.testing.assert_close(slots[:, 7, 4], score / score.sum(), **EXACT)


# ---------------------------------------------------------------------------------- receptive field
@pytest.mark.parametrize('channels', [16, 2])
def test_the_field_of_a_convolution_is_its_kernel(channels):
    torch.manual_seed(0)
    net = nn.Conv2d(3, 5, 3, padding=1).double()
    receptive = effective_receptive_field(net, torch.randn(1, 3, 11, 17).double(), channels)
    chosen = range(5) if channels == 16 else (0, 4)
    expected = torch.zeros(11, 17, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            kernel = [net.weight[c, i, row, column].abs() for c in chosen for i in range(3)]
            expected[4 + row, 7 + column] = sum(kernel) / len(chosen)
    torch.testing.assert_close(receptive.field, expected, **EXACT)
    assert (receptive.row, receptive.column) == (5, 8)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    'backbone',
    [
        lambda: ResNet(18),
        lambda: ResNet(18, with_cp=True),
        lambda: SwinTransformer(
            embed_dims=12, depths=(2, 2), num_heads=(2, 3), strides=(4, 2), out_indices=(0, 1)
        ),
        lambda: ConvNeur(TINY, global_mixer=dict(type='NeuralMemory', num_heads=2), out_indices=0),
    ],
    ids=['ResNet', 'ResNet with_cp', 'Swin', 'ConvNeur'],
)
def test_the_field_of_any_backbone_equals_differences(backbone):
    torch.manual_seed(0)
    backbone = backbone().double()
    backbone.eval()
    image, step = torch.randn(1, 3, 64, 96).double(), 1e-6
    field, row, column = effective_receptive_field(backbone, image, channels=3)
    for y, x in [(row, column), (row - 5, column + 11), (31, 47)]:
        moved = image.repeat(6, 1, 1, 1)  # up and down in each colour
        for colour in range(3):
            moved[colour, colour, y, x] += step
            moved[3 + colour, colour, y, x] -= step
        with torch.no_grad():
            maps = backbone(moved)[-1]
        channels = [0, round((maps.size(1) - 1) / 2), maps.size(1) - 1]
        up, down = maps[:, channels, maps.size(2) // 2, maps.size(3) // 2].chunk(2)
        expected = ((up - down) / (2 * step)).abs().sum() / 3
        torch.testing.assert_close(field[y, x], expected, rtol=1e-5, atol=1e-8)
    assert field[row, column] > 0


def test_the_square_that_holds_a_share():
    field = torch.zeros(11, 17)
    field[4, 7], field[2, 8], field[4, 16] = 6.0, 3.0, 1.0
    receptive = ReceptiveField(field, 4, 7)
    assert [square_holding(receptive, share) for share in (0.5, 0.61, 0.9, 0.95)] == [1, 5, 5, 19]


# -------------------------------------------------------------------------------------- the picture
def test_a_pixel_is_found_in_maps_of_a_resized_and_padded_image():
    # 20 x 40 pixels, enlarged 1.5 times to 30 x 60 and padded to 32 x 64; cells of 8.
    backdrop = Backdrop(np.zeros((20, 40, 3)), (1.5, 1.5), (32, 64))
    assert backdrop.shown == (30, 60) and backdrop.at((39, 0)) == (59.25, 0.75)
    assert [backdrop.cell(p, (4, 8)) for p in [(0, 0), (4, 5), (5, 4), (39, 19)]] == [
        *((0, 0), (1, 0), (0, 1), (3, 7))
    ]


class Page(HTMLParser):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.images, self.links = [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.images += [attrs['src']] if tag == 'img' else []
        self.links += [value for name, value in attrs.items() if name in ('href', 'src')]


def picture(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (44, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'scene.png')
    return folder / 'scene.png'


def draw(monkeypatch, out: Path, *args: object) -> Page:
    argv = ['visualize.py', *map(str, args), '--out-dir', str(out), '--dpi', '40']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(TOOLS / 'visualize.py'), run_name='__main__')
    page = Page(out / 'index.html')
    assert page.links == page.images
    assert sorted(path.name for path in out.iterdir()) == sorted(['index.html', *page.images])
    for name in page.images:
        Image.open(out / name).verify()
    return page


def saved(folder: Path, backbone: dict, neck: list[int]) -> tuple[Path, Path]:
    """A detector of a config with another backbone, and its random weights."""
    text = f"""
_base_ = {str(SAMPLE_CONFIGS['mmdet'])!r}
model = dict(backbone=dict(_delete_=True, **{backbone!r}), neck=dict(in_channels={neck}))
"""
    config, weights = folder / 'config.py', folder / 'weights.pth'
    config.write_text(text)
    torch.save(build(Config.fromfile(config)).state_dict(), weights)
    return config, weights


def test_the_page_of_a_released_model(tmp_path, monkeypatch):
    scene = picture(tmp_path)
    args = [RELEASED, RELEASED, scene, '--pixel', 59, 0, '--pixel', 0, 43]
    page = draw(monkeypatch, tmp_path / 'out', *args)
    assert page.images == [
        *('gates.png', 'writes.png', 'reads_59_0.png', 'reads_0_43.png', 'receptive_field.png')
    ]
    text = (tmp_path / 'out' / 'index.html').read_text()
    for fact in ('scene.png', '60 x 44 pixels', '64 x 64 pixels', RELEASED, 'ConvNeur'):
        assert f'{fact}' in text
    assert text.count('<p>') == len(page.images)


def test_the_page_of_slots_and_of_a_memory_in_chunks(slots_mixer, tmp_path, monkeypatch):
    chunked = dict(type='ChunkedNeuralMemory', num_heads=2)
    arch = dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    backbone = dict(
        type='mmconvneur.ConvNeur',
        arch=arch,
        fusion='add',
        global_mixer=[chunked, None, dict(type=slots_mixer), None],
    )
    config, weights = saved(tmp_path, backbone, list(arch['channels']))
    page = draw(monkeypatch, tmp_path / 'out', config, weights, picture(tmp_path))
    assert page.images == [
        *('gates.png', 'slots.png'),
        *('slots_stages.2.0.global_branch.clustering.png', 'receptive_field.png'),
    ]


def test_a_backbone_with_nothing_to_show_has_its_receptive_field(tmp_path, monkeypatch, capsys):
    backbone = dict(type='ResNet', depth=18)
    config, weights = saved(tmp_path, backbone, [64, 128, 256, 512])
    page = draw(monkeypatch, tmp_path / 'out', config, weights, picture(tmp_path))
    assert page.images == ['receptive_field.png']
    note = 'This backbone has no gate, memory or slots: only its receptive field is drawn.'
    assert note in capsys.readouterr().out
    assert note in (tmp_path / 'out' / 'index.html').read_text()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([RELEASED, 'IMAGE', '--pixel', 60, 0], r'--pixel 60 0 .* X goes from 0 to 59, Y .* to 43'),
        ([RELEASED, 'IMAGE', '--pixel', 0, -1], r'--pixel 0 -1 is outside of the image'),
        ([RELEASED, 'no.png'], r'no image found at no.png'),
        ([RELEASED, __file__], r'cannot be read as an image'),
        (['no.pth', 'IMAGE'], r'no.pth does not exist'),
        (['mask_rcnn', 'IMAGE'], rf"unknown model 'mask_rcnn': .*{RELEASED}"),
        (['upernet_convneur_m1_sample', 'IMAGE'], r'neck and heads have'),
    ],
)
def test_bad_input_is_one_line(args, message, tmp_path, monkeypatch, capsys):
    image = picture(tmp_path)
    args = [image if arg == 'IMAGE' else arg for arg in args]
    out = tmp_path / 'out'
    line = failing(monkeypatch, capsys, 'visualize', RELEASED, *args, '--out-dir', out)
    assert re.search(message, line)
    assert not out.exists()
