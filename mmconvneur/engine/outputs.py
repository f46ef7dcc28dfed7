"""What a test keeps for every image, under the image's name and in its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from ..registry import HOOKS
from ..utils.files import common_folder


def enlarge(
    image: np.ndarray, sample: BaseDataElement, side: int = 500
) -> tuple[np.ndarray, BaseDataElement]:
    """An image ``(H, W, 3)`` and its sample, as many whole times larger as fit in ``side`` pixels.

    The visualizers write labels of a fixed size, which cover the objects of a small image.
    """
    height, width = image.shape[:2]
    factor = side // max(height, width)
    if factor < 2:
        return image, sample
    size = height * factor, width * factor

    def grow(name: str, value: Any) -> Any:
        if name == 'bboxes':
            return getattr(value, 'tensor', value) * factor
        if hasattr(value, 'to_ndarray'):  # mmdet's masks, of annotations
            return value.resize(size)
        if getattr(value, 'shape', ())[-2:] != (height, width):
            return value
        return torch.as_tensor(value).repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    larger = sample.new()
    for part, data in sample.items():
        if part == 'seg_logits':  # is not drawn, and is large
            continue
        fields = {name: grow(name, value) for name, value in data.items()}
        setattr(larger, part, type(data)(metainfo=data.metainfo, **fields))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC), larger


def draw_sample(
    visualizer: Visualizer,
    name: str,
    image: np.ndarray,
    sample: BaseDataElement,
    out_file: str,
    **options,
) -> None:
    """Draw truth and predictions on an RGB image ``(H, W, 3)``, with any family's visualizer."""
    if hasattr(visualizer, 'visualize_cls'):  # mmpretrain's, of many tasks
        visualizer.visualize_cls(image, sample, name=name, out_file=out_file, **options)
    else:
        visualizer.add_datasample(name, *enlarge(image, sample), out_file=out_file, **options)


class PerImageHook(Hook):
    """Writes a file for every tested image to ``folder``.

    Where the images are in several folders, the files are in folders of the same names.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        self._images = common_folder(
            dataset.get_data_info(index)['img_path'] for index in range(len(dataset))
        )

    def after_test_iter(self, runner: Runner, outputs: list[BaseDataElement], **kwargs) -> None:
        for sample in outputs:
            name = os.path.relpath(os.path.abspath(sample.img_path), self._images)
            self.write(runner, sample, self.folder / name)

    def write(self, runner: Runner, sample: BaseDataElement, path: Path) -> None:
        raise NotImplementedError


@HOOKS.register_module()
class PictureHook(PerImageHook):
    """Draws ground truth beside predictions, with the runner's visualizer; small images enlarged.

    Args:
        folder: Where to.
        backend_args: Of the images' storage, as for MMEngine's readers.
        **options: Of the visualizer, as in :func:`draw_sample`.
    """

    def __init__(self, folder: str | Path, backend_args: dict | None = None, **options) -> None:
        super().__init__(folder)
        self.backend_args, self.options = backend_args, options

    def write(self, runner: Runner, sample: BaseDataElement, path: Path) -> None:
        content = get(sample.img_path, backend_args=self.backend_args)
        image = mmcv.imfrombytes(content, channel_order='rgb')
        draw_sample(runner.visualizer, path.name, image, sample, str(path), **self.options)


@HOOKS.register_module()
class LabelMapHook(PerImageHook):
    """Writes the predicted label maps as PNG files, in the numbers of the annotation."""

    def write(self, runner: Runner, sample: BaseDataElement, path: Path) -> None:
        labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()  # (H, W)
        if sample.get('reduce_zero_label', False):
            labels = labels + 1
        mmcv.imwrite(labels.astype(np.uint8), str(path.with_suffix('.png')))
