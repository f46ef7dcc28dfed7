"""Pictures and label maps: one for every image, whatever the images are called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from demo import find_pictures
from mmconvneur import UsageError
from mmconvneur.engine.outputs import LabelMapHook, PictureHook, enlarge

COLOURS = {'left/a/1.png': 10, 'left/b/1.png': 60, 'right/1.png': 110}


class Visualizer:
    """Keeps the colour of an image at its path."""

    def __init__(self) -> None:
        self.drawn = {}

    def add_datasample(self, name, image, sample, out_file, **options) -> None:
        self.drawn[out_file] = int(image[0, 0, 0]), options


class Infos(list):
    get_data_info = list.__getitem__


@pytest.fixture
def images(tmp_path, monkeypatch) -> list[Path]:
    """Three images, two of which share a name; the paths are relative."""
    monkeypatch.chdir(tmp_path)
    for name, colour in COLOURS.items():
        path = Path('images') / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 5, 3), colour, np.uint8)).save(path)
    return [Path('images') / name for name in COLOURS]


def test_files_of_images_with_one_name_are_in_their_folders(images, tmp_path):
    infos = [dict(img_path=str(path)) for path in images]
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=Infos(infos)), visualizer=Visualizer()
    )
    hooks = [PictureHook('shown', pred_score_thr=0.7), LabelMapHook('maps')]
    for hook in hooks:
        hook.before_test(runner)
        for label, info in enumerate(infos):
            sample = SegDataSample(metainfo=dict(info, reduce_zero_label=label > 0))
            labels = torch.full((1, 3, 5), label)
            labels[0, 2, 1] = 7
            sample.pred_sem_seg = PixelData(data=labels)
            hook.after_test_iter(runner, batch_idx=label, data_batch=None, outputs=[sample])
    assert runner.visualizer.drawn == {
        f'shown/{name}': (colour, dict(pred_score_thr=0.7)) for name, colour in COLOURS.items()
    }
    for label, name in enumerate(COLOURS):
        stored = np.asarray(Image.open(tmp_path / 'maps' / name))
        first = int(label > 0)  # the numbers of the annotation, where 0 is ignored
        expected = np.full((3, 5), label + first)
        expected[2, 1] = 7 + first
        assert stored.dtype == np.uint8 and (stored == expected).all()


def test_pictures_of_the_demo_are_in_folders_as_the_images_are(images):
    pictures = find_pictures(images, Path('out'))
    assert pictures == {path: Path('out') / path.relative_to('images') for path in images}
    assert find_pictures(images[:1], Path('out')) == {images[0]: Path('out/1.png')}
    with pytest.raises(UsageError, match='would replace images/left/a/1.png'):
        find_pictures(images, Path('images'))


def test_small_images_are_drawn_larger():
    """Boxes and both kinds of masks, three times as large; an image that is large enough stays."""
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    mask = np.zeros((1, 5, 7), np.uint8)
    mask[0, 1, 2:4] = 1
    box = dict(bboxes=torch.tensor([[2.0, 1.0, 4.0, 2.0]]), labels=torch.tensor([6]))
    sample = DetDataSample(
        gt_instances=InstanceData(masks=BitmapMasks(mask, 5, 7), **box),
        pred_instances=InstanceData(masks=torch.from_numpy(mask).bool(), **box),
    )
    larger, grown = enlarge(image, sample, side=27)
    assert larger.shape == (15, 21, 3)
    expected = mask.repeat(3, 1).repeat(3, 2)
    assert (grown.gt_instances.masks.to_ndarray() == expected).all()
    assert (grown.pred_instances.masks.numpy() == expected).all()
    for instances in grown.gt_instances, grown.pred_instances:
        assert instances.bboxes.tolist() == [[6, 3, 12, 6]] and instances.labels.tolist() == [6]
    assert enlarge(image, sample, side=13) == (image, sample)
