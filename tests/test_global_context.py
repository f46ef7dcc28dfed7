"""The network of the task cue cannot see a mark from a thing through its convolutions."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

SIZE, STRIDE, NEAREST_MARK = 128, 8, 33


def gradient_maps(global_mixer: dict | None) -> dict[int, torch.Tensor]:
    """|d logits of pixel (p, p) / d image| for the pixels of one cell of the coarsest map."""
    cfg = Config.fromfile('configs/segformer_convneur_cue.py')
    cfg.model.backbone.global_mixer = global_mixer
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).double().eval()
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert sum(p.numel() for p in model.parameters()) < 1e6
    image = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    logits = model.encode_decode(image, [dict(img_shape=(SIZE, SIZE))])
    maps = {}
    for p in range(SIZE // 2, SIZE // 2 + STRIDE):
        target = logits[0, :, p, p].square().sum()
        (gradient,) = torch.autograd.grad(target, image, retain_graph=True)
        maps[p] = gradient.abs().sum((0, 1))
    return maps


def distance_from(p: int) -> torch.Tensor:
    offset = (torch.arange(SIZE) - p).abs()
    return torch.maximum(offset[:, None], offset)


def test_convolutions_see_less_far_than_the_mark():
    reach = max(distance_from(p)[g > 0].max() for p, g in gradient_maps(None).items())
    assert 20 < reach < NEAREST_MARK
    for gradient in gradient_maps(dict(type='NeuralMemory')).values():
        assert (gradient > 0).all()
