"""An image alone and in a batch, whatever pads it."""

import math

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from test_glnet import HYBRID, PLAIN
from test_mixers import CONFIGS as MIXERS
from torch import nn
from torch.nn import functional as F

from mmconvneur import ConvNeur, UsageError
from mmconvneur.models import GLNet
from mmconvneur.models.backbones.spatial_bias_resnet import SpatialBiasResNet
from mmconvneur.models.layers.padding import own_area

ARCH = dict(channels=(8, 16, 24, 40), depths=(1, 2, 1, 1), mlp_ratio=2, kernel_size=5)
SIZES = [(70, 33), (64, 45), (37, 90)]
MEMORY = dict(type='NeuralMemory')
NETS = {
    **{name: (ConvNeur, ARCH, dict(global_mixer=dict(cfg, type=name), placement='block'))
       for name, cfg in MIXERS.items() if 'num_heads' not in cfg},
    **{name: (ConvNeur, ARCH, dict(global_mixer=dict(cfg, type=name, num_heads=2)))
       for name, cfg in (
           ('SelfAttention', {}),
           ('ChunkedNeuralMemory', dict(chunk_size=61)),
           ('PublishedNeuralMemory', dict(chunk_size=61)),
           ('GLMix', dict(num_slots=9)),
       )},
    'memory, every position': (ConvNeur, ARCH, dict(global_mixer=MEMORY, token_stride=1)),
    'memory, large tokens': (ConvNeur, ARCH, dict(global_mixer=MEMORY, token_stride=32)),
    'memory, added': (ConvNeur, ARCH, dict(global_mixer=MEMORY, fusion='add')),
    'memory, concatenated': (ConvNeur, ARCH, dict(global_mixer=MEMORY, fusion='concat')),
    'GLNet, plain': (GLNet, PLAIN, {}),
    'GLNet, hybrid': (GLNet, HYBRID, {}),
    'ResNet': (SpatialBiasResNet, 50, dict(base_channels=8)),
    'ResNet, deep stem': (
        SpatialBiasResNet,
        50,
        dict(base_channels=8, deep_stem=True, avg_down=True, style='caffe'),
    ),
}  # fmt: skip


def build(name: str, **cfg) -> nn.Module:
    """Random everywhere, with maps whose values are of the order of 1."""
    network, arch, options = NETS[name]
    torch.manual_seed(0)
    net = network(arch, **options, **cfg).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.1, 0.5)
    return net


def images(sizes: list[tuple[int, int]] = SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def padded(image: torch.Tensor, height: int, width: int, value: float = 0) -> torch.Tensor:
    return F.pad(image, (0, width - image.size(2), 0, height - image.size(1)), value=value)


def alone(image: torch.Tensor) -> torch.Tensor:
    """A batch of one, padded to multiples of 32."""
    height, width = (math.ceil(n / 32) * 32 for n in image.shape[1:])
    return padded(image, height, width)[None]


def own_cells(outs, b: int, image: torch.Tensor) -> list[torch.Tensor]:
    """The cells of each map that hold a pixel of the image."""
    strides = (4 * 2**i for i in range(len(outs)))
    cells = [[math.ceil(n / stride) for n in image.shape[1:]] for stride in strides]
    return [out[b, :, :h, :w] for out, (h, w) in zip(outs, cells, strict=True)]


def assert_same(actual, expected, tolerance: float = 1e-5) -> None:
    for a, e in zip(actual, expected, strict=True):
        atol = tolerance * max(1, e.abs().max().item())
        torch.testing.assert_close(a, e, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------- the maps
@pytest.mark.parametrize('name', NETS)
def test_an_image_has_the_same_maps_alone_and_in_any_batch(name):
    net = build(name, batch_invariant=True)
    with torch.no_grad():
        expected = [own_cells(net(alone(image)), 0, image) for image in images()]
        for value, size in [(7.5, (96, 96)), (math.nan, (160, 128))]:
            outs = net(torch.stack([padded(image, *size, value) for image in images()]))
            assert all(out.isfinite().all() for out in outs)
            for b, image in enumerate(images()):
                assert_same(own_cells(outs, b, image), expected[b])


@pytest.mark.parametrize('name', [n for n, (network, *_) in NETS.items() if network is ConvNeur])
def test_global_branches_take_nothing_from_padding(name, monkeypatch):
    """With local convolutions of 1 x 1 all that an image has from outside is global."""
    monkeypatch.setitem(ARCH, 'kernel_size', 1)
    net, whole = build(name), images([(64, 96), (128, 32)])
    with torch.no_grad():
        outs = net(torch.stack([padded(image, 160, 128, 5.0) for image in whole]))
        for b, image in enumerate(whole):
            assert_same(own_cells(outs, b, image), own_cells(net(image[None]), 0, image))


def test_local_convolutions_see_padding_by_default():
    net, image = build('memory, added'), images()[0]
    with torch.no_grad():
        first, second = (net(padded(image, 96, 160, value)[None]) for value in (0, 5.0))
    assert (first[0] - second[0])[..., :18, :9].abs().max() > 1e-3


def test_a_letterbox_is_padding():
    """Of another constant in every channel."""
    net, image = build('memory, added', batch_invariant=True), images()[0]
    letterbox = torch.tensor([0.3, -2.0, 1.1])[:, None, None].expand(3, 96, 64).clone()
    letterbox[:, :70, :33] = image
    with torch.no_grad():
        expected = own_cells(net(alone(image)), 0, image)
        assert_same(own_cells(net(letterbox[None]), 0, image), expected)


@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_in_training_are_those_of_each_image(with_cp):
    net = build('memory, added', batch_invariant=True, with_cp=with_cp).double().train()

    def gradients(x, whole):
        net.zero_grad()
        outs = net(x)
        cells = [own_cells(outs, b, image) for b, image in enumerate(whole)]
        sum(cell.sin().sum() for image in cells for cell in image).backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    whole = [image.double() for image in images()]
    singly = [gradients(alone(image), [image]) for image in whole]
    batch = torch.stack([padded(image, 96, 128, math.nan) for image in whole])
    assert_same(gradients(batch, whole), [sum(g) for g in zip(*singly, strict=True)], 1e-10)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_layouts_and_autocast(layout, dtype):
    net = build('memory, added', batch_invariant=True).to(memory_format=layout)
    batch = torch.stack([padded(image, 96, 128) for image in images()])
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        outs = net(batch.contiguous(memory_format=layout))
        for b, image in enumerate(images()):
            expected = [cell.float() for cell in own_cells(net(alone(image)), 0, image)]
            actual = [cell.float() for cell in own_cells(outs, b, image)]
            assert_same(actual, expected, 1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize('name', NETS)
def test_nothing_is_read_back_from_the_device(name):
    """Tensors without values cannot be read."""
    net = build(name, batch_invariant=True).to('meta')
    assert net(torch.empty(2, 3, 64, 96, device='meta'))[0].shape[2:] == (16, 24)


@pytest.mark.slow
def test_a_compiled_network_finds_padding_too():
    net = build('memory, added', batch_invariant=True)
    batch = torch.stack([padded(image, 96, 128) for image in images()])
    with torch.no_grad():
        assert_same(torch.compile(net, fullgraph=True, backend='aot_eager')(batch), net(batch))


# ---------------------------------------------------------------------------------- the area
def area(*sizes: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(len(sizes), 1, *shape, dtype=torch.bool)
    for image, (height, width) in zip(mask, sizes, strict=True):
        image[:, :height, :width] = True
    return mask


@pytest.mark.parametrize('pad_value', [0, 114])
def test_what_the_preprocessor_of_mmdet_pads_is_found(pad_value):
    preprocess = DetDataPreprocessor(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_value=pad_value,
    )
    raw = [(50 * image).clamp(-120, 120).add(120).byte() for image in images()]
    x = preprocess(dict(inputs=raw, data_samples=None))['inputs']
    assert torch.equal(own_area(x), area(*SIZES, shape=(96, 96)))


@pytest.mark.parametrize('pad_val', [0, 1])
def test_what_the_preprocessor_of_mmseg_pads_is_found(pad_val):
    preprocess = SegDataPreProcessor(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        size=(192, 160),
        pad_val=pad_val,
    )
    raw = [(50 * image).clamp(-120, 120).add(120).byte() for image in images()]
    samples = [SegDataSample() for _ in raw]
    x = preprocess(dict(inputs=raw, data_samples=samples), training=True)['inputs']
    assert torch.equal(own_area(x), area(*SIZES, shape=(192, 160)))


def test_images_without_padding():
    x = torch.stack(images([(64, 96)] * 2))
    x[1, :, 20] = x[1, :, :, 30] = 0  # lines inside an image are no padding
    assert own_area(x) is None
    assert own_area(torch.full((2, 3, 64, 96), 3.0)) is None  # nothing else to be an image
    assert own_area(x.to('meta')).shape == (2, 1, 64, 96)


def test_the_area_can_be_given():
    net, image = build('memory, added', batch_invariant=True), images()[0]
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    noise[..., :70, :33] = image
    noise[..., -1] = math.inf
    with torch.no_grad():
        outs = net(noise, [(70, 33)])
        assert_same(own_cells(outs, 0, image), own_cells(net(alone(image)), 0, image))
    assert own_area(noise, [(128, 128)]) is None


@pytest.mark.parametrize(
    'img_shapes, problem',
    [
        ([(64, 96)], r'shape \(1, 2\): give height and width of each of the 2 images'),
        ([(64, 97), (64, 96)], 'from 1 x 1 to 64 x 96'),
        ([(0, 96), (64, 96)], 'from 1 x 1'),
    ],
)
def test_wrong_sizes_are_refused(img_shapes, problem):
    with pytest.raises(UsageError, match=problem):
        own_area(torch.zeros(2, 3, 64, 96), img_shapes)
