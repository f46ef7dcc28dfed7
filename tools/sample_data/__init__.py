"""Small data sets on the photographs that scikit-image carries in its wheel.

`sample` is detection, instance and semantic segmentation of real coins and photo-textured shapes.
In `cue` and `legend` the class of a thing can only be known from a far corner of the picture.
`fashion` is as `sample`, with the items of Fashion-MNIST, which the user has.
"""

from .corners import CUE_CLASSES, LEGEND_CLASSES, far_from_corners, legend_plan
from .fashion import FASHION_CLASSES
from .scenes import STUFF_CLASSES, Scene
from .things import THING_CLASSES
from .writer import TASKS, make_dataset, make_scene

__all__ = [
    'CUE_CLASSES',
    'FASHION_CLASSES',
    'LEGEND_CLASSES',
    'STUFF_CLASSES',
    'TASKS',
    'THING_CLASSES',
    'Scene',
    'far_from_corners',
    'legend_plan',
    'make_dataset',
    'make_scene',
]
