"""Data sets on disk: pictures, COCO annotations, semantic masks, and things by their class."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mmconvneur.errors import UsageError, check_choice

from .corners import CUE_CLASSES, LEGEND_CLASSES, cue_scene, legend_scene
from .fashion import FASHION_CLASSES, fashion_items, fashion_scene
from .photographs import SPLITS
from .scenes import STUFF_CLASSES, Scene, sample_scene
from .things import THING_CLASSES

MAKER = 'mmconvneur.sample_data 4'  # raise the number when the pictures change
SMALLEST = 64


class Task(NamedTuple):
    """How a task's scenes are made, their classes, and how many of which size by default.

    For classification, `things/` gets cut-outs from the scenes or `items(split, **options)`: class,
    name and picture of each.
    """

    scene: Callable[..., Scene]
    things: tuple[str, ...]
    stuff: tuple[str, ...]
    num_train: int
    num_val: int
    size: int
    cut_out: bool = False
    items: Callable[..., Iterable[tuple[int, str, np.ndarray]]] | None = None


TASKS = {
    'sample': Task(sample_scene, THING_CLASSES, STUFF_CLASSES, 750, 100, 192, cut_out=True),
    'cue': Task(cue_scene, CUE_CLASSES, (), 3000, 300, 128),
    'legend': Task(legend_scene, LEGEND_CLASSES, (), 6000, 300, 128),
    'fashion': Task(
        fashion_scene, FASHION_CLASSES, STUFF_CLASSES, 4000, 500, 256, items=fashion_items
    ),
}


def make_scene(task: str, split: str, index: int, size: int, seed: int = 0, **options) -> Scene:
    """Scene `index` of a split, the same however many others are made.

    Raises:
        UsageError: unknown task or split; what the task's scene function raises.
    """
    check_choice('task', task, TASKS)
    check_choice('split', split, SPLITS)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    return TASKS[task].scene(split, size, rng, **options)


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """COCO annotations of what is visible of each thing."""
    found = []
    for index, label in enumerate(scene.labels):
        rle = coco_mask.encode(np.asfortranarray(scene.owner == index + 1, np.uint8))
        found.append(
            dict(
                id=first_id + index,
                image_id=image_id,
                category_id=label + 1,
                bbox=coco_mask.toBbox(rle).tolist(),
                area=int(coco_mask.area(rle)),
                iscrowd=0,
                segmentation=dict(size=rle['size'], counts=rle['counts'].decode('ascii')),
            )
        )
    return found


def _save_png(path: Path, image: np.ndarray) -> None:
    """Write a label map `(H, W)`, or a picture `(H, W, 3)`, RGB."""
    path.write_bytes(cv2.imencode('.png', image[..., ::-1] if image.ndim == 3 else image)[1])


def _crop(scene: Scene, index: int) -> np.ndarray:
    """The smallest square inside the picture around a thing and a tenth of its side beyond."""
    x, y, width, height = cv2.boundingRect((scene.owner == index + 1).astype(np.uint8))
    side = min(round(1.2 * max(width, height)), *scene.owner.shape)
    bottom, right = (limit - side for limit in scene.owner.shape)
    top = min(max(y + (height - side) // 2, 0), bottom)
    left = min(max(x + (width - side) // 2, 0), right)
    return scene.image[top : top + side, left : left + side]


def _write_things(
    root: Path, split: str, things: tuple[str, ...], items: Iterable[tuple[int, str, np.ndarray]]
) -> None:
    for name in things:
        (root / 'things' / split / name).mkdir(parents=True, exist_ok=True)
    for label, name, picture in items:
        _save_png(root / 'things' / split / things[label] / f'{name}.png', picture)


def _write_split(
    root: Path, split: str, scenes: Iterable[Scene], things: tuple[str, ...], cut_out: bool
) -> None:
    for kind in ('images', 'semantic'):
        (root / kind / split).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for index, scene in enumerate(scenes):
        name = f'{index:06d}.png'
        _save_png(root / 'images' / split / name, scene.image)
        _save_png(root / 'semantic' / split / name, scene.semantic)
        if cut_out:
            crops = ((x, f'{index:06d}_{i}', _crop(scene, i)) for i, x in enumerate(scene.labels))
            _write_things(root, split, things, crops)
        height, width = scene.owner.shape
        record = dict(id=index, file_name=name, width=width, height=height)
        images.append(record | dict(sources=scene.sources, marks=scene.marks))
        annotations += _annotations(scene, index, len(annotations) + 1)
    document = dict(
        info=dict(description=f'{MAKER}: {split}', version=MAKER.split()[1]),
        licenses=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(things)],
        images=images,
        annotations=annotations,
    )
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(document))


def _described(root: Path) -> dict | None:
    """Content of dataset.json in `root`; None if this module did not write it."""
    try:
        found = json.loads((root / 'dataset.json').read_text())
    except (OSError, ValueError):
        return None
    made_here = isinstance(found, dict) and str(found.get('maker')).startswith(MAKER.split()[0])
    return found if made_here else None


def make_dataset(
    task: str,
    root: str | Path,
    num_train: int | None = None,
    num_val: int | None = None,
    size: int | None = None,
    seed: int = 0,
    progress: Callable[..., Iterable[int]] = lambda numbers, description: numbers,
    **options,
) -> bool:
    """Writes a data set to `root`, unless it already holds the same one.

    It is made beside `root` and renamed when it is whole. Numbers and size (side in pixels) left
    out are the task's own; `options` go to the task's functions. `progress(range,
    description)` iterates over the range, e.g. `rich.progress.track`.

    Returns:
        Whether something was made.

    Raises:
        UsageError: a number that makes no sense, or `root` holds something else.
    """
    check_choice('task', task, TASKS)
    chosen = TASKS[task]
    numbers = dict(
        num_train=chosen.num_train if num_train is None else num_train,
        num_val=chosen.num_val if num_val is None else num_val,
        size=chosen.size if size is None else size,
    )
    for (name, value), least in zip([*numbers.items(), ('seed', seed)], (1, 1, SMALLEST, 0),
                                    strict=True):  # fmt: skip
        if value < least:
            raise UsageError(f'{name}={value} is too small: choose {least} or more')
    root = Path(root).resolve()
    description = dict(
        maker=MAKER, task=task, seed=seed, **numbers, options=options,
        things=list(chosen.things), stuff=list(chosen.stuff),
    )  # fmt: skip
    there = _described(root)
    if there == description:
        return False
    if there is None and root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UsageError(f'{root} holds something else: move it away or choose another directory')

    partial = root.with_name(f'.{root.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for split in SPLITS:
            indices = progress(range(numbers[f'num_{split}']), f'{task} {split}')
            scenes = (make_scene(task, split, i, numbers['size'], seed, **options) for i in indices)
            _write_split(partial, split, scenes, chosen.things, chosen.cut_out)
            if chosen.items:
                _write_things(partial, split, chosen.things, chosen.items(split, **options))
        (partial / 'dataset.json').write_text(json.dumps(description, indent=1) + '\n')
        if root.exists():
            shutil.rmtree(root)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True
