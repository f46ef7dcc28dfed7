"""One training and one test step of a config on real images, for the tests of whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'
SAMPLE_CONFIGS = {
    'mmdet': CONFIGS / 'mask_rcnn_convneur_m1_sample.py',
    'mmseg': CONFIGS / 'upernet_convneur_m1_sample.py',
}


def build(cfg: Config) -> nn.Module:
    """The model of a config, with initialised weights."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    return model


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products and convolutions of float32 in full precision on a GPU too."""
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = False
    try:
        yield
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed


def wake_memory(backbone: nn.Module) -> None:
    """Randomise the zero-initialised last layers, behind which no gradient passes."""
    for name, module in backbone.named_modules():
        if name.endswith('global_branch'):
            nn.init.normal_(module.out_proj.weight, std=0.1)


def sample_batch(scope: str, sample_dir: Path, split: str, number: int = 2) -> dict:
    """The first images of the sample data, as the pipelines of the sample configs prepare them."""
    dataset = Config.fromfile(SAMPLE_CONFIGS[scope])[f'{split}_dataloader'].dataset
    dataset.data_root = str(sample_dir / 'data' / 'sample')
    init_default_scope(scope)
    dataset = DATASETS.build(dataset)
    return pseudo_collate([dataset[i] for i in range(number)])


def two_iterations(work_dir: Path, **arch) -> Config:
    """The training of a tiny segmentor on the sample data, with one checkpoint at its end."""
    cfg = Config.fromfile(SAMPLE_CONFIGS['mmseg'])
    cfg.model.backbone.arch = arch
    cfg.model.decode_head.update(in_channels=list(arch['channels']), channels=8)
    cfg.model.auxiliary_head.update(in_channels=arch['channels'][2], channels=8)
    cfg.merge_from_dict({
        'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'param_scheduler': None,
        'work_dir': str(work_dir), 'default_hooks.checkpoint.interval': 2,
        **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
        **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
    })  # fmt: skip
    return cfg


LEARNING_RATE = 0.1


def train_step(model: nn.Module, batch: dict) -> dict[str, float]:
    """The named losses of one step of SGD; gradients are left on the parameters."""
    model.train()
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    optim_wrapper.zero_grad = lambda: None
    losses = model.train_step(batch, optim_wrapper)
    return {name: value.item() for name, value in losses.items() if 'loss' in name}
