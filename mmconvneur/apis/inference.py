"""Load a model, and prepare an image file as its input."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..errors import UsageError
from ..utils.configs import datasets, scope_of, type_name
from ..weights.loading import check_heads
from ..weights.reading import read_state_dict


def load_model(cfg: Config, weights: str) -> BaseModel:
    """The detector or segmentor of a config in evaluation mode, with all its weights.

    Its ``dataset_meta`` (classes, palette) is that of the weights, else that of the test data.

    Raises:
        UsageError: If the weights cannot be read, or are not those of the model.
    """
    init_default_scope(scope_of(cfg))
    parts = dict(cfg.model)
    if cfg.get('data_preprocessor'):
        parts.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(parts))
    checkpoint = load_checkpoint(model, weights, map_location='cpu')
    check_heads(model, read_state_dict(weights), complete=True)
    meta = checkpoint.get('meta')
    meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or not meta:
        meta = DATASETS.build(dict(_test_data(cfg), lazy_init=True)).metainfo
    model.dataset_meta = dict(meta)
    if isinstance(meta.get('palette'), list):  # mmdet takes a list for several colours
        model.dataset_meta['palette'] = [tuple(colour) for colour in meta['palette']]
    model.cfg = cfg  # mmdet's and mmseg's inference functions read it
    return model.to(get_device()).eval()


def read_image(path: Path) -> np.ndarray:
    """BGR ``(H, W, 3)``; raises ``UsageError`` if it is not an image."""
    if not path.is_file():
        raise UsageError(f'no image found at {path}: give the path of one')
    image = mmcv.imread(path)
    if image is None:
        raise UsageError(f'{path} cannot be read as an image: it is damaged or something else')
    return image


def inference_pipeline(cfg: Config) -> Compose:
    """The test pipeline of a config without its annotations, for an image file."""
    init_default_scope(scope_of(cfg))
    steps = _test_data(cfg).pipeline
    return Compose([step for step in steps if 'Annotations' not in type_name(step)])


def infer(model: BaseModel, pipeline: Compose, path: Path) -> BaseDataElement:
    """What a model finds in an image file, which is read as in testing."""
    batch = pseudo_collate([pipeline(dict(img_path=str(path), img_id=0))])
    with torch.no_grad():
        return model.test_step(batch)[0]


def preprocess(model: BaseModel, cfg: Config, path: Path) -> tuple[Tensor, tuple[float, float]]:
    """Input of the backbone for an image file, ``(1, C, H, W)``, and the image's scale in it.

    The scale is that of the width and of the height, without padding.

    The pipeline of :func:`infer`, then the data preprocessor: resized, normalised and padded as in
    testing. Segmentors that slide a window get the whole image.
    """
    batch = pseudo_collate([inference_pipeline(cfg)(dict(img_path=str(path), img_id=0))])
    data = model.data_preprocessor(batch, False)
    return data['inputs'], data['data_samples'][0].get('scale_factor', (1.0, 1.0))


def _test_data(cfg: Config) -> ConfigDict:
    return next(datasets(cfg.get('test_dataloader') or cfg.val_dataloader))
