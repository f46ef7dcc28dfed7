"""The photographs, and which part of each belongs to which split.

A training crop comes from the left 58 % of a photograph, a validation crop from the right 38 %;
coins are dealt out whole. Every function here takes `split` ('train' or 'val') and says what it
used as a source `[name, x, y, width, height]` in pixels of the photograph.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage
from scipy import ndimage
from skimage import filters, measure, morphology, segmentation

from mmconvneur.errors import UsageError

GROUNDS = ('brick', 'grass', 'gravel')
COLOURED = ('astronaut', 'chelsea', 'coffee', 'ihc', 'motorcycle', 'rocket')
GREY = ('brick', 'camera', 'grass', 'gravel')
FILES = {name: f'{name}.png' for name in (*COLOURED, *GREY, 'coins')}
FILES |= {'motorcycle': 'motorcycle_left.png', 'rocket': 'rocket.jpg'}
SPLITS = ('train', 'val')
SPANS = {'train': (0.0, 0.58), 'val': (0.62, 1.0)}  # shares of a photograph's width

Source = list  # [name, x, y, width, height]


@cache
def photograph(name: str) -> np.ndarray:
    """One photograph, (height, width, 3) uint8 RGB.

    Raises:
        UsageError: this scikit-image does not carry it (it is never downloaded).
    """
    path = Path(skimage.__file__).parent / 'data' / FILES[name]
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UsageError(
            f'the photograph {path} is missing: scikit-image {skimage.__version__} does not carry '
            "it; install a release that does with: pip install 'scikit-image>=0.25,<0.27'"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def crop(name: str, split: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Source]:
    """A random square of a photograph's part for `split`, mirrored or not, resized.

    Returns the crop, (size, size, 3) float32 in 0..255, and its source.
    """
    image = photograph(name)
    height, width = image.shape[:2]
    left, right = (round(share * width) for share in SPANS[split])
    side = min(int(rng.integers(110, 191)), right - left, height)
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, height - side + 1))
    square = image[y : y + side, x : x + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    how = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
    square = cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=how)
    return square.astype(np.float32), [name, x, y, side, side]


class Pictured(NamedTuple):
    """A thing cut out of a picture."""

    grey: np.ndarray  # (height, width) float32 in 0..255
    matte: np.ndarray  # (height, width) float32 in 0..1
    source: Source


@cache
def coins(split: str) -> tuple[Pictured, ...]:
    """The coins of `split`, cut out of the coins photograph by a watershed on its gradient."""
    grey = photograph('coins')[..., 0]
    markers = np.where(grey < 30, 1, np.where(grey > 150, 2, 0))
    inside = segmentation.watershed(filters.sobel(grey), markers) == 2
    inside = morphology.opening(ndimage.binary_fill_holes(inside), morphology.disk(2))
    found = [r for r in measure.regionprops(measure.label(inside)) if r.area > 300]
    cut = []
    for index, region in enumerate(found):
        if (index % 4 == 3) != (split == 'val'):
            continue
        top, left, bottom, right = region.bbox
        # One pixel is shaved off, since the rim's own pixels are mixed with the black cloth.
        matte = morphology.erosion(np.pad(region.image, 1), morphology.disk(1))[1:-1, 1:-1]
        matte = cv2.GaussianBlur(matte.astype(np.float32), (0, 0), 0.6)
        patch = grey[top:bottom, left:right].astype(np.float32)
        cut.append(Pictured(patch, matte, ['coins', left, top, right - left, bottom - top]))
    return tuple(cut)


def luminance(image: np.ndarray) -> np.ndarray:
    """(height, width, 3) RGB -> (height, width, 1)."""
    return (image @ np.float32([0.299, 0.587, 0.114]))[..., None]
