"""The items of Fashion-MNIST (arXiv 1708.07747), alone and in scenes.

The data set is four files in IDX format, which Debian's package dataset-fashion-mnist installs;
nothing is downloaded here. Its training split makes the training data, its test split the
validation data.
"""

from __future__ import annotations

import colorsys
import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from mmconvneur.errors import UsageError

from .photographs import Pictured, Source
from .scenes import Scene, scene_of
from .things import Cutout, lay

FASHION_CLASSES = (
    *('t-shirt', 'trouser', 'pullover', 'dress', 'coat'),
    *('sandal', 'shirt', 'sneaker', 'bag', 'boot'),
)  # in the order of the data set
FOLDER = '/usr/share/datasets/fashion-mnist'  # of Debian's package
PREFIXES = {'train': 'train', 'val': 't10k'}
LENGTHS = (28, 120)  # pixels in a picture of 256
TURN = 0.25 * np.pi  # to either side at most
BACKGROUND = 10  # grey levels up to this one are no part of an item


@cache
def fashion(split: str, folder: str = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """All items of a split, (N, 28, 28) uint8 in light grey on black, and their classes, (N,).

    Raises:
        UsageError: a file is missing or holds something else.
    """
    return _idx(folder, f'{PREFIXES[split]}-images-idx3-ubyte', 3), _idx(
        folder, f'{PREFIXES[split]}-labels-idx1-ubyte', 1
    )


def _idx(folder: str, name: str, axes: int) -> np.ndarray:
    """An array of bytes in IDX format, plain or zipped."""
    found = [path for path in (Path(folder, name), Path(folder, f'{name}.gz')) if path.is_file()]
    if not found:
        raise UsageError(
            f'{Path(folder, name)}, alone or as .gz, does not exist: give the folder of the four '
            'files of Fashion-MNIST with --items, or install the Debian package '
            'dataset-fashion-mnist'
        )
    content = found[0].read_bytes()
    content = gzip.decompress(content) if found[0].suffix == '.gz' else content
    shape = np.frombuffer(content, '>i4', axes, 4) if len(content) > 16 else np.zeros(axes)
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) != 4 + 4 * axes + np.prod(shape):
        raise UsageError(f'{found[0]} is no IDX file of {axes} axes, or is damaged: get it again')
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def fashion_items(split: str, folder: str = FOLDER) -> Iterator[tuple[int, str, np.ndarray]]:
    """Class, name and picture, (28, 28, 3), of every item of a split."""
    for index, (image, label) in enumerate(zip(*fashion(split, folder), strict=True)):
        yield int(label), f'{index:05d}', image[..., None].repeat(3, 2)


def item(split: str, index: int, folder: str = FOLDER) -> Pictured:
    """An item without the black around it."""
    image = fashion(split, folder)[0][index]
    inside = ndimage.binary_fill_holes(image > BACKGROUND)
    x, y, width, height = cv2.boundingRect(inside.astype(np.uint8))
    matte = cv2.GaussianBlur(np.pad(inside.astype(np.float32), 1), (0, 0), 0.6)
    grey = np.pad(image.astype(np.float32), 1)
    window = slice(y, y + height + 2), slice(x, x + width + 2)
    return Pictured(grey[window], matte[window], ['fashion', x, y, width, height])


def _fabric(
    cutout: Cutout, split: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """An item's own pattern in some colour."""
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.7, 1.15))
    return (25 + 0.9 * cutout.face) * np.float32(colour), []


def fashion_scene(split: str, size: int, rng: np.random.Generator, folder: str = FOLDER) -> Scene:
    """Two to seven items of any class in some colour, turned by up to 45 degrees or mirrored."""
    labels = fashion(split, folder)[1]

    def draw() -> tuple[int, Cutout]:
        index = int(rng.integers(len(labels)))
        length = np.exp(rng.uniform(*np.log(LENGTHS))) * size / 256
        centre, angle = rng.uniform(0.08, 0.92, 2) * size, rng.uniform(-TURN, TURN)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn[:, 0] *= rng.choice((-1, 1))
        return int(labels[index]), lay(item(split, index, folder), size, centre, length, turn)

    return scene_of(draw, _fabric, len(FASHION_CLASSES), split, size, rng)
