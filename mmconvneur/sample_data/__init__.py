"""Small data sets made from the photographs that scikit-image carries in its wheel.

`sample` is detection, instance and semantic segmentation of real coins and photo-textured shapes.
In `cue` and `legend` the class of an object can only be known from a far corner of the image.
"""

from .scenes import (
    CUE_CLASSES,
    LEGEND_CLASSES,
    PALETTE,
    STUFF_CLASSES,
    THING_CLASSES,
    Scene,
    cue_scene,
    far_from_corners,
    legend_scene,
    sample_scene,
)
from .writer import TASKS, make_dataset, make_scene

__all__ = [
    'CUE_CLASSES',
    'LEGEND_CLASSES',
    'PALETTE',
    'STUFF_CLASSES',
    'TASKS',
    'THING_CLASSES',
    'Scene',
    'cue_scene',
    'far_from_corners',
    'legend_scene',
    'make_dataset',
    'make_scene',
    'sample_scene',
]
