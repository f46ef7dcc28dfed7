"""Load a model, and prepare an image file as its input."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import Tensor

from ..errors import UsageError
from ..utils.configs import datasets
from ..weights.loading import check_heads
from ..weights.reading import read_state_dict


def load_model(cfg: Config, weights: str) -> BaseModel:
    """The detector or segmentor of a config in evaluation mode, with all its weights.

    Raises:
        UsageError: If the weights cannot be read, or are not those of the model.
    """
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import init_detector as init
    else:
        from mmseg.apis import init_model as init
    model = init(cfg, weights, device=get_device())
    check_heads(model, read_state_dict(weights), complete=True)
    return model


def read_image(path: Path) -> np.ndarray:
    """BGR ``(H, W, 3)``; raises ``UsageError`` if it is not an image."""
    if not path.is_file():
        raise UsageError(f'no image found at {path}: give the path of one')
    image = mmcv.imread(path)
    if image is None:
        raise UsageError(f'{path} cannot be read as an image: it is damaged or something else')
    return image


def preprocess(model: BaseModel, cfg: Config, path: Path) -> tuple[Tensor, tuple[float, float]]:
    """Input of the backbone for an image file, ``(1, 3, H, W)``, and the image's scale in it.

    The scale is that of the width and of the height, without padding.

    The test pipeline of the config without its annotations, then the data preprocessor: resized,
    normalised and padded as in testing. Segmentors that slide a window get the whole image.
    """
    init_default_scope(cfg.default_scope)
    pipeline = next(datasets(cfg.test_dataloader)).pipeline
    steps = [step for step in pipeline if 'Annotations' not in step.type]
    batch = pseudo_collate([Compose(steps)(dict(img_path=str(path), img_id=0))])
    data = model.data_preprocessor(batch, False)
    return data['inputs'], data['data_samples'][0].get('scale_factor', (1.0, 1.0))
