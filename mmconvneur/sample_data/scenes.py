"""One scene of each task, as a pure function of a random generator.

A scene is a square picture of side `size`. Things are drawn four times as large and reduced, which
gives anti-aliased edges; a pixel belongs to the topmost thing that covers at least half of it.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from mmconvneur.errors import UsageError

from .photographs import COLOURED, GREY, GROUNDS, Source, coins, crop, luminance

THING_CLASSES = ('coin', 'star', 'triangle', 'ring', 'bar')
STUFF_CLASSES = GROUNDS
CUE_CLASSES = ('red', 'green', 'blue')
LEGEND_CLASSES = ('disc', 'cross', 'stripes')
PALETTE = (  # RGB, THING_CLASSES then STUFF_CLASSES
    (255, 191, 0),
    (220, 20, 60),
    (0, 130, 200),
    (145, 30, 180),
    (0, 200, 200),
    (170, 90, 60),
    (60, 160, 60),
    (128, 128, 128),
)
CUE_COLOURS = ((205, 45, 40), (40, 175, 55), (45, 70, 215))  # RGB, in the order of CUE_CLASSES
LEGEND_COLOURS = ((205, 45, 40), (40, 165, 55), (45, 70, 215), (225, 205, 40), (40, 195, 205),
                  (205, 60, 200))  # fmt: skip
REFERENCE = 128  # `mark`, `patch` and `distance` below are pixels in a picture of this side
SUPERSAMPLING = 4


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


class Cutout(NamedTuple):
    """A thing's outline on the canvas, and for a coin what it looks like."""

    cover: np.ndarray  # (size, size) float32 in 0..1
    area: float  # in pixels, with what lies outside the canvas
    length: float
    face: np.ndarray | None  # (size, size, 1) float32
    sources: list[Source]


# Outlines: contours in a square of side 2 about the origin, filled by the even-odd rule.


def _ellipse(width: float, height: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack([width * np.cos(turn), height * np.sin(turn)], 1)


def _star(rng: np.random.Generator) -> list[np.ndarray]:
    turn = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1)
    return [np.stack([radius * np.cos(turn), rng.uniform(0.75, 1) * radius * np.sin(turn)], 1)]


def _triangle(rng: np.random.Generator) -> list[np.ndarray]:
    half = rng.uniform(0.55, 1)
    return [np.array([(-half, 1), (half, 1), (rng.uniform(-0.5, 0.5) * half, -1)])]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    height, hole = rng.uniform(0.7, 1), rng.uniform(0.45, 0.62)
    return [_ellipse(1, height), _ellipse(hole, hole * height)]


def _bar(rng: np.random.Generator) -> list[np.ndarray]:
    half = 1 / rng.uniform(3, 6.5)
    return [np.array([(-1, -half), (1, -half), (1, half), (-1, half)])]


OUTLINES: dict[str, Callable] = {
    'star': _star, 'triangle': _triangle, 'ring': _ring, 'bar': _bar
}  # fmt: skip


def _fill(contours: list[np.ndarray], size: int) -> np.ndarray:
    """Contours in pixels of the canvas -> the covered share of each pixel."""
    canvas = np.zeros((size * SUPERSAMPLING,) * 2, np.float32)
    points = [np.round(c * SUPERSAMPLING * 16 - 8).astype(np.int32) for c in contours]
    cv2.fillPoly(canvas, points, 1.0, shift=4)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def _cut(
    name: str, split: str, size: int, centre: np.ndarray, length: float, rng: np.random.Generator
) -> Cutout:
    """A thing of kind `name`, turned at random, `length` pixels long, its middle at `centre`."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if name != 'coin':
        contours = [c @ turn.T * length / 2 for c in OUTLINES[name](rng)]
        areas = [cv2.contourArea(c.astype(np.float32)) for c in contours]
        cover = _fill([c + centre for c in contours], size)
        return Cutout(cover, areas[0] - sum(areas[1:]), length, None, [])
    held = coins(split)
    coin = held[rng.integers(len(held))]
    scale = length / max(coin.grey.shape)
    move = turn * scale * SUPERSAMPLING
    middle = np.array(coin.grey.shape[::-1]) / 2
    offset = np.asarray(centre) * SUPERSAMPLING - move @ middle
    layers = cv2.warpAffine(
        np.dstack([coin.grey, coin.matte]),
        np.column_stack([move, offset]),
        (size * SUPERSAMPLING,) * 2,
        flags=cv2.INTER_LINEAR,
    )
    face, cover = cv2.split(cv2.resize(layers, (size, size), interpolation=cv2.INTER_AREA))
    return Cutout(cover, coin.matte.sum() * scale**2, length, face[..., None], [coin.source])


def _owner(cutouts: list[Cutout], size: int) -> np.ndarray:
    owner = np.zeros((size, size), np.int64)
    for index, cutout in enumerate(cutouts):
        owner[cutout.cover >= 0.5] = index + 1
    return owner


def _compose(canvas: np.ndarray, cutout: Cutout, material: np.ndarray, light: float) -> np.ndarray:
    """The canvas with the thing lying on it, lit from the angle `light`, with a soft shadow."""
    size = len(canvas)
    towards = np.float32([np.cos(light), np.sin(light)])
    soft = max(0.8, 0.07 * cutout.length)
    move = np.float32([[1, 0, 0], [0, 1, 0]])
    move[:, 2] = -towards * soft
    shadow = cv2.GaussianBlur(cv2.warpAffine(cutout.cover, move, (size, size)), (0, 0), soft)
    rim = cv2.GaussianBlur(cutout.cover, (0, 0), soft)
    along = np.arange(size, dtype=np.float32)
    slope = along[None] * towards[0] + along[:, None] * towards[1]
    slope = (slope - (slope * cutout.cover).sum() / cutout.cover.sum()) / cutout.length
    lit = material * ((1 + 0.35 * slope) * (0.65 + 0.4 * rim))[..., None]
    cover = cutout.cover[..., None]
    return canvas * (1 - 0.45 * shadow[..., None]) * (1 - cover) + lit * cover


def _contrast(canvas: np.ndarray, cutout: Cutout, material: np.ndarray) -> float:
    """Distance in RGB between a thing's mean colour and that of what it would hide."""
    weight = cutout.cover[..., None] / cutout.cover.sum()
    return float(np.linalg.norm(((material - canvas) * weight).sum((0, 1))))


def _finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = canvas + rng.normal(0, rng.uniform(2, 6), canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


# Task `sample`

GROUND_TINTS = {'brick': (1.2, 0.93, 0.82), 'grass': (0.98, 1.12, 0.7), 'gravel': (1.04, 1, 0.94)}
METALS = ((1.2, 1.02, 0.62), (1.05, 1.05, 1.08), (1.2, 0.85, 0.66))


def _grounds(
    split: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[Source]]:
    """One to three grounds with wavy borders: the picture, its semantic values, its sources."""
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
        picture, source = crop(photo, split, size, rng)
        sources.append(source)
        if name != 'other':
            picture = picture * np.float32(GROUND_TINTS[name] * rng.uniform(0.9, 1.1, 3))
        picture = picture * np.float32(rng.uniform(0.75, 1.2))
        share = np.clip((across - border) * size + 0.5, 0, 1)[..., None]
        canvas = canvas * (1 - share) + picture * share
        value = GROUNDS.index(name) + len(THING_CLASSES) + 1 if name != 'other' else 0
        values[share[..., 0] >= 0.5] = value
    return canvas, values, sources


def _material(
    cutout: Cutout, split: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """What a thing is made of, over the whole canvas: metal for a coin, else a photograph."""
    if cutout.face is not None:
        tint = np.float32(METALS[rng.integers(3)] * rng.uniform(0.9, 1.1, 3))
        return cutout.face * tint * np.float32(rng.uniform(0.7, 1.2)), []
    name = str(rng.choice(COLOURED + GREY))
    picture, source = crop(name, split, len(cutout.cover), rng)
    if name in GREY or rng.random() < 0.4:
        colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.85), 1.35)
        picture = luminance(picture) * np.float32(colour)
    return picture * np.float32(rng.uniform(0.8, 1.25)), [source]


def sample_scene(split: str, size: int, rng: np.random.Generator) -> Scene:
    """Two to seven coins and textured shapes on photographed ground, some hiding others.

    A thing of which too little shows to be recognised (under 45 %, or a few pixels) is left out of
    the picture.
    """
    canvas, ground, sources = _grounds(split, size, rng)
    labels, cutouts = [], []
    for _ in range(rng.integers(2, 8)):
        label = int(rng.integers(len(THING_CLASSES)))
        shortest = {'ring': 18, 'bar': 28}.get(THING_CLASSES[label], 14)
        length = np.exp(rng.uniform(np.log(shortest), np.log(90))) * size / 192
        centre = rng.uniform(0.06, 0.94, 2) * size
        labels.append(label)
        cutouts.append(_cut(THING_CLASSES[label], split, size, centre, length, rng))
    least = max(12, 50 * (size / 192) ** 2)
    visible = np.bincount(_owner(cutouts, size).ravel(), minlength=len(cutouts) + 1)[1:]
    kept = [i for i, c in enumerate(cutouts) if visible[i] >= max(least, 0.45 * c.area)]
    light = rng.uniform(0, 2 * np.pi)
    for cutout in (cutouts[i] for i in kept):
        for _ in range(10):
            material, used = _material(cutout, split, rng)
            if _contrast(canvas, cutout, material) > 60:
                break
        canvas = _compose(canvas, cutout, material, light)
        sources += cutout.sources + used
    canvas = canvas * np.float32(rng.uniform(0.9, 1.1, 3))
    owner = _owner([cutouts[i] for i in kept], size)
    return Scene(_finish(canvas, rng), owner, [labels[i] for i in kept], ground, sources, [])


# Tasks `cue` and `legend`


def far_from_corners(size: int, width: int, height: int, distance: int) -> np.ndarray:
    """Pixels at least `distance` away from a `width` x `height` box in each corner.

    Distance is the larger of the horizontal and the vertical one, so that a square receptive field
    of side 2 * distance - 1 about such a pixel touches no box. Returns (size, size) bool.
    """
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return (edge - width >= distance)[None] | (edge - height >= distance)[:, None]


def _plain_ground(
    split: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """A photograph in nearly neutral grey, its contrast reduced."""
    picture, source = crop(str(rng.choice(COLOURED + GREY)), split, size, rng)
    grey = luminance(picture)
    grey = (grey - grey.mean()) * min(1.0, 28 / (grey.std() + 1)) + rng.uniform(90, 165)
    return grey * np.float32(rng.uniform(0.95, 1.05, 3)), [source]


def _scatter(split: str, size: int, room: np.ndarray, rng: np.random.Generator) -> list[Cutout]:
    """Two to four things of any kind that lie wholly in `room` and do not touch."""
    wanted, cutouts, free = int(rng.integers(2, 5)), [], room.copy()
    places = np.argwhere(room)[:, ::-1]
    for _ in range(100):
        if len(cutouts) == wanted:
            break
        length = rng.uniform(16, 25) * size / REFERENCE
        centre = places[rng.integers(len(places))] + 0.5
        cutout = _cut(str(rng.choice(THING_CLASSES)), split, size, centre, length, rng)
        if free[cutout.cover > 0].all() and cutout.cover.sum() > 0.98 * cutout.area:
            cutouts.append(cutout)
            free &= cutout.cover == 0
    return cutouts


def _room(size: int, width: int, height: int, distance: float) -> np.ndarray:
    reach = math.ceil(distance * size / REFERENCE)
    room = far_from_corners(size, width, height, reach)
    if not cv2.erode(room.astype(np.uint8), np.ones((math.ceil(size * 0.2),) * 2)).any():
        raise UsageError(
            f'distance={distance} leaves no room for objects between corners of {width} x {height} '
            f'pixels in a picture of {size}: choose a smaller distance or smaller marks'
        )
    return room


def _place(corner: int, size: int, width: int, height: int, slack: int, rng) -> tuple[int, int]:
    """Left and top of a box in a corner (0..3), up to `slack` pixels from its two edges."""
    x, y = (int(v) for v in rng.integers(0, slack + 1, 2))
    return (size - width - x if corner % 2 else x), (size - height - y if corner > 1 else y)


def cue_scene(
    split: str, size: int, rng: np.random.Generator, mark: float = 12, distance: float = 36
) -> Scene:
    """Grey things whose class is the colour of a mark in one corner of the four.

    Each other corner holds a grey mark or none. Nothing about a thing depends on its class.
    mark, distance: the mark's side, and the least distance between things and marks, in pixels of
    a 128-pixel picture (see `far_from_corners`).
    """
    side, slack = round(mark * size / REFERENCE), round(4 * size / REFERENCE)
    room = _room(size, side + slack, side + slack, distance)
    canvas, sources = _plain_ground(split, size, rng)
    cutouts = _scatter(split, size, room, rng)
    light = rng.uniform(0, 2 * np.pi)
    for cutout in cutouts:
        canvas, used = _compose_plain(canvas, cutout, (1, 1, 1), split, light, rng)
        sources += cutout.sources + used
    label, told = int(rng.integers(len(CUE_CLASSES))), int(rng.integers(4))
    marks = []
    for corner in range(4):
        if corner != told and rng.random() < 0.5:
            continue
        x, y = _place(corner, size, side, side, slack, rng)
        colour = CUE_COLOURS[label] if corner == told else [rng.uniform(50, 200)] * 3
        canvas[y : y + side, x : x + side] = colour + rng.uniform(-15, 15)
        name = CUE_CLASSES[label] if corner == told else 'grey'
        marks.append(dict(name=name, box=[x, y, side, side]))
    ground = np.zeros((size, size), np.uint8)
    owner = _owner(cutouts, size)
    return Scene(_finish(canvas, rng), owner, [label] * len(cutouts), ground, sources, marks)


def _compose_plain(
    canvas: np.ndarray, cutout: Cutout, colour, split: str, light: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """A thing of one colour (RGB in 0..1) with the light and dark of a photograph or a coin."""
    used = []
    face = cutout.face
    if face is None:
        picture, source = crop(str(rng.choice(COLOURED + GREY)), split, len(canvas), rng)
        face, used = luminance(picture), [source]
    weight = cutout.cover[..., None] / cutout.cover.sum()
    face = face - (face * weight).sum()
    face = face * min(0.6, 24 / math.sqrt((face**2 * weight).sum() + 1))
    under = (luminance(canvas) * weight).sum()
    level = under + rng.uniform(45, 80) * (1 if under < 128 else -1)
    return _compose(canvas, cutout, (face + level) * np.float32(colour), light), used
