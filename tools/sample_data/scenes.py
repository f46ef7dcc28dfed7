"""The scene that every task returns, and the scenes of things on photographed ground.

A scene is a pure function of the split, its side `size` in pixels and a random generator.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .photographs import COLOURED, GREY, GROUNDS, Source, crop, luminance
from .things import THING_CLASSES, Cutout, compose, cut, owner_map, stands_out

STUFF_CLASSES = GROUNDS
GROUND_TINTS = {'brick': (1.2, 0.93, 0.82), 'grass': (0.98, 1.12, 0.7), 'gravel': (1.04, 1, 0.94)}
METALS = ((1.2, 1.02, 0.62), (1.05, 1.05, 1.08), (1.2, 0.85, 0.66))  # gold, silver, copper
SHORTEST = {'ring': 18, 'bar': 28}  # pixels in a picture of 192; the others: 14
LONGEST = 90
TRIES = 20  # at finding a material that can be told from what lies beneath


class Scene(NamedTuple):
    """A picture and its truth.

    image: (size, size, 3) uint8 RGB. owner: (size, size) int, 1 + the index of the visible thing,
    0 where there is none. labels: each thing's class, from 0. ground: (size, size) uint8, the
    semantic value where there is no thing. sources: what was taken from which photograph.
    marks: for cue and legend, dict(name, box=[x, y, width, height]) of what the corners hold.
    """

    image: np.ndarray
    owner: np.ndarray
    labels: list[int]
    ground: np.ndarray
    sources: list[Source]
    marks: list[dict]

    @property
    def semantic(self) -> np.ndarray:
        """(size, size) uint8: 1 + the class of the visible thing, or the ground's value."""
        values = np.array([0, *(label + 1 for label in self.labels)], np.uint8)
        return np.where(self.owner > 0, values[self.owner], self.ground)


def finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A canvas with a little sensor noise, as uint8."""
    noisy = canvas + rng.normal(0, rng.uniform(2, 6), canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _grounds(
    split: str, size: int, rng: np.random.Generator, things: int
) -> tuple[np.ndarray, np.ndarray, list[Source]]:
    """One to three grounds with wavy borders: the canvas, its semantic values, its sources.

    The values of the grounds come after those of so many `things`.
    """
    along = np.linspace(0, 1, size, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = along[None], along[:, None]
    across = x * np.cos(angle) + y * np.sin(angle)
    beside = y * np.cos(angle) - x * np.sin(angle)
    for waves in (1, 3):
        phase = rng.uniform(0, 2 * np.pi)
        across = across + rng.uniform(0, 0.08 / waves) * np.sin(2 * np.pi * waves * beside + phase)
    cuts = {1: [], 2: [rng.uniform(0.3, 0.7)], 3: [rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.8)]}
    borders = np.quantile(across, cuts[rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25])])
    names = rng.permutation([*GROUNDS, 'other'])[: len(borders) + 1]
    canvas, values, sources = 0, np.zeros((size, size), np.uint8), []
    for name, border in zip(names, [-np.inf, *borders], strict=True):
        photo = rng.choice([*COLOURED, 'camera']) if name == 'other' else name
        picture, source = crop(str(photo), split, size, rng)
        sources.append(source)
        if name != 'other':
            picture = picture * np.float32(GROUND_TINTS[name] * rng.uniform(0.9, 1.1, 3))
        picture = picture * np.float32(rng.uniform(0.75, 1.2))
        share = np.clip((across - border) * size + 0.5, 0, 1)[..., None]
        canvas = canvas * (1 - share) + picture * share
        value = GROUNDS.index(name) + things + 1 if name != 'other' else 0
        values[share[..., 0] >= 0.5] = value
    return canvas, values, sources


def _material(
    cutout: Cutout, split: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """Material of a thing over the whole canvas: metal for a coin, else a photograph."""
    if cutout.face is not None:
        tint = np.float32(METALS[rng.integers(len(METALS))] * rng.uniform(0.95, 1.05, 3))
        return cutout.face * tint * np.float32(rng.uniform(0.55, 1.05)), []
    name = str(rng.choice(COLOURED + GREY))
    picture, source = crop(name, split, len(cutout.cover), rng)
    if name in GREY or rng.random() < 0.4:
        colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.85), 1.35)
        picture = luminance(picture) * np.float32(colour)
    return picture * np.float32(rng.uniform(0.8, 1.25)), [source]


def sample_scene(split: str, size: int, rng: np.random.Generator) -> Scene:
    """Two to seven coins and textured shapes."""

    def draw() -> tuple[int, Cutout]:
        label = int(rng.integers(len(THING_CLASSES)))
        shortest = SHORTEST.get(THING_CLASSES[label], 14)
        length = np.exp(rng.uniform(np.log(shortest), np.log(LONGEST))) * size / 192
        centre = rng.uniform(0.06, 0.94, 2) * size
        return label, cut(THING_CLASSES[label], split, size, centre, length, rng)

    return scene_of(draw, _material, len(THING_CLASSES), split, size, rng)


def scene_of(
    draw: Callable[[], tuple[int, Cutout]],
    material: Callable[[Cutout, str, np.random.Generator], tuple[np.ndarray, list[Source]]],
    classes: int,
    split: str,
    size: int,
    rng: np.random.Generator,
) -> Scene:
    """Two to seven things, each with a class, on photographed ground, some hiding others.

    A thing of which too little shows to be recognised (under 45 %, or a few pixels) is left out of
    the picture. `material` gives a thing what it is made of, over the whole canvas.
    """
    canvas, ground, sources = _grounds(split, size, rng, classes)
    drawn = [draw() for _ in range(rng.integers(2, 8))]
    least = max(12, 50 * (size / 192) ** 2)
    owner = owner_map([cutout for _, cutout in drawn], size)
    visible = np.bincount(owner.ravel(), minlength=len(drawn) + 1)[1:]
    labels, cutouts = [], []
    for (label, cutout), area in zip(drawn, visible, strict=True):
        if area >= max(least, 0.45 * cutout.area):
            labels.append(label)
            cutouts.append(cutout)
    light = rng.uniform(0, 2 * np.pi)
    for cutout in cutouts:
        sources += cutout.sources
        for _ in range(TRIES):
            made_of, used = material(cutout, split, rng)
            if stands_out(canvas, cutout, made_of):
                break
        compose(canvas, cutout, made_of, light)
        sources += used
    canvas = canvas * np.float32(rng.uniform(0.93, 1.07, 3))
    return Scene(finish(canvas, rng), owner_map(cutouts, size), labels, ground, sources, [])
