"""Scenes of the tasks `cue` and `legend`: only a far corner tells the class of a thing.

Their sizes (`mark`, `patch`, `distance`) are pixels in a picture of side 128 and scale with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from mmconvneur.errors import UsageError

from .photographs import COLOURED, GREY, Source, crop, luminance
from .scenes import Scene, finish
from .things import Cutout, compose, cut, owner_map

CUE_CLASSES = ('red', 'green', 'blue')
CUE_COLOURS = ((205, 45, 40), (40, 175, 55), (45, 70, 215))  # RGB, in the order of CUE_CLASSES
LEGEND_CLASSES = ('dark', 'light', 'stripes')
LEGEND_COLOURS = {
    'red': (205, 45, 40),
    'green': (40, 165, 55),
    'blue': (45, 70, 215),
    'yellow': (225, 205, 40),
}
IGNORED = 255  # semantic value of pixels that do not count
DARK, LIGHT = 25, 235  # grey levels of a legend's marks
REFERENCE = 128
DISTANCE = 33  # from a thing to the nearest mark, see far_from_corners
SLACK = 2  # a mark lies up to this far from the two edges of its corner
LENGTHS = (22, 31)  # of a thing
KINDS = ('coin', 'triangle')  # compact and in clear contrast: outlines are not the difficulty here


def _scaled(pixels: float, size: int) -> int:
    return round(pixels * size / REFERENCE)


def far_from_corners(size: int, width: int, height: int, distance: int) -> np.ndarray:
    """Pixels at least `distance` away from a `width` x `height` box in each corner.

    Distance is the larger of the horizontal and the vertical one, so that a square receptive field
    of side 2 * distance - 1 about such a pixel touches no box. Returns (size, size) bool.
    """
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return (edge - width >= distance)[None] | (edge - height >= distance)[:, None]


def _room(size: int, width: int, height: int, distance: float) -> np.ndarray:
    """Where things may lie, given boxes of `width` x `height` pixels and `distance` at 128.

    Raises:
        UsageError: no thing would fit.
    """
    room = far_from_corners(size, width, height, math.ceil(distance * size / REFERENCE))
    core = np.ones((_scaled(LENGTHS[0], size),) * 2, np.uint8)
    if not cv2.erode(
        room.astype(np.uint8), core, borderType=cv2.BORDER_CONSTANT, borderValue=0
    ).any():
        raise UsageError(
            f'distance={distance} leaves no room for things between corner boxes of '
            f'{width} x {height} in a {size}-pixel picture: lower the distance or shrink the marks'
        )
    return room


def _plain_ground(
    split: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """A photograph in nearly neutral grey, its contrast reduced."""
    picture, source = crop(str(rng.choice(COLOURED + GREY)), split, size, rng)
    grey = luminance(picture)
    grey = (grey - grey.mean()) * min(1.0, 16 / (grey.std() + 1)) + rng.uniform(100, 155)
    return grey * np.float32(rng.uniform(0.95, 1.05, 3)), [source]


def _scatter(split: str, size: int, room: np.ndarray, rng: np.random.Generator) -> list[Cutout]:
    """Two to four things (fewer where `room` is tight) that lie wholly in it and do not touch."""
    wanted, cutouts = int(rng.integers(2, 5)), []
    free = np.pad(room, 1).astype(np.uint8)  # what lies outside the picture is not free
    for kind in rng.choice(KINDS, 40):
        if len(cutouts) == wanted:
            break
        length = rng.uniform(*LENGTHS) * size / REFERENCE
        clearance = cv2.distanceTransform(free, cv2.DIST_L2, 5)[1:-1, 1:-1]
        places = np.argwhere(clearance > length / 2)[:, ::-1] + 0.5
        if not len(places):
            continue
        centre = places[rng.integers(len(places))]
        cutout = cut(str(kind), split, size, centre, length, rng)
        if free[1:-1, 1:-1][cutout.cover > 0].all():
            cutouts.append(cutout)
            free[1:-1, 1:-1][cutout.cover > 0] = 0
    return cutouts


def _relief(
    cutout: Cutout, split: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[Source]]:
    """Light and dark of a coin or a photograph, mean 0 and at most deviation 1 over the thing."""
    if cutout.face is None:
        picture, source = crop(str(rng.choice(COLOURED + GREY)), split, len(cutout.cover), rng)
        face, sources = luminance(picture), [source]
    else:
        face, sources = cutout.face, cutout.sources
    weight = cutout.cover[..., None] / cutout.cover.sum()
    face = face - (face * weight).sum()
    return np.clip(face / max(12, math.sqrt((face**2 * weight).sum())), -2, 2), sources


def _corner_box(
    corner: int, size: int, width: int, height: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Left and top of a box in a corner: 0, 1 the upper left and right one, 2, 3 the lower."""
    x, y = (int(v) for v in rng.integers(0, _scaled(SLACK, size) + 1, 2))
    return (size - width - x if corner % 2 else x), (size - height - y if corner > 1 else y)


def cue_scene(
    split: str, size: int, rng: np.random.Generator, mark: float = 12, distance: float = DISTANCE
) -> Scene:
    """Grey things whose class is the colour of a mark in one corner of the four.

    Each other corner holds a grey mark or none. Nothing about a thing depends on its class.
    `mark` is a mark's side, `distance` the least one between things and marks, in the sense of
    `far_from_corners`.

    Raises:
        UsageError: `distance` leaves no room for things.
    """
    side = _scaled(mark, size)
    room = _room(size, side + _scaled(SLACK, size), side + _scaled(SLACK, size), distance)
    canvas, sources = _plain_ground(split, size, rng)
    cutouts = _scatter(split, size, room, rng)
    light = rng.uniform(0, 2 * np.pi)
    for cutout in cutouts:
        relief, used = _relief(cutout, split, rng)
        under = float(canvas[cutout.cover > 0.5].mean())
        level = under + rng.uniform(60, 90) * (1 if under < 128 else -1)
        compose(canvas, cutout, np.repeat(level + 12 * relief, 3, 2), light)
        sources += used
    label, telling, marks = int(rng.integers(len(CUE_CLASSES))), int(rng.integers(4)), []
    for corner in range(4):
        if corner == telling:
            name, colour = CUE_CLASSES[label], CUE_COLOURS[label]
        elif rng.random() < 0.5:
            name, colour = 'grey', [rng.uniform(40, 210)] * 3
        else:
            continue
        x, y = _corner_box(corner, size, side, side, rng)
        canvas[y : y + side, x : x + side] = np.array(colour) + rng.uniform(-15, 15)
        marks.append(dict(name=name, box=[x, y, side, side]))
    ground = np.zeros((size, size), np.uint8)
    owner, labels = owner_map(cutouts, size), [label] * len(cutouts)
    return Scene(finish(canvas, rng), owner, labels, ground, sources, marks)


class LegendPlan(NamedTuple):
    """Entry i of a legend says: in `corners[i]`, `colours[i]` means class `classes[i]`.

    Thing i has the colour and the class of entry `entries[i]`. No two entries share a corner, a
    colour or a class.
    """

    corners: np.ndarray  # one to three of 0..3
    colours: np.ndarray  # as many of LEGEND_COLOURS, as indices
    classes: np.ndarray  # as many of LEGEND_CLASSES, as indices
    entries: np.ndarray


def legend_plan(rng: np.random.Generator, things: int) -> LegendPlan:
    """Everything that a legend scene's classes depend on.

    A legend of one entry can be read without looking up, so that a network finds out step by step;
    of two or three entries, knowing which classes there are leaves a guess among them.
    """
    count = int(rng.integers(1, len(LEGEND_CLASSES) + 1))
    return LegendPlan(
        rng.permutation(4)[:count],
        rng.permutation(len(LEGEND_COLOURS))[:count],
        rng.permutation(len(LEGEND_CLASSES))[:count],
        rng.integers(0, count, things),
    )


def _mark(name: str, side: int) -> np.ndarray:
    """A square of one grey, or of four dark stripes on light, (side, side, 1) in 0..255.

    Told by any few pixels of it, so that a token at its border with the colour patch holds both.
    """
    mark = np.full((side, side, 1), DARK if name == 'dark' else LIGHT, np.float32)
    if name == 'stripes':
        mark[np.arange(side) * 8 // side % 2 == 1] = DARK
    return mark


def legend_scene(
    split: str, size: int, rng: np.random.Generator, patch: float = 12, distance: float = DISTANCE
) -> Scene:
    """Coloured things, and in one to three corners a legend: a colour patch, a mark at its right.

    The class of a thing is the mark that stands beside its own colour. Corners, colours and
    pairing are drawn anew for each picture. In training the legend is labelled too, each entry with
    its class: local convolutions can tell it, and so bind a colour to its mark before anything can
    be looked up. In validation the legend does not count.

    `patch` is the side of a colour patch and of a mark, `distance` the least one between things and
    legend, in the sense of `far_from_corners`.

    Raises:
        UsageError: `distance` leaves no room for things.
    """
    side = _scaled(patch, size)
    room = _room(size, 2 * side + _scaled(SLACK, size), side + _scaled(SLACK, size), distance)
    canvas, sources = _plain_ground(split, size, rng)
    cutouts = _scatter(split, size, room, rng)
    plan = legend_plan(rng, len(cutouts))
    palette = np.float32(list(LEGEND_COLOURS.values()))
    ground = np.zeros((size, size), np.uint8)
    light = rng.uniform(0, 2 * np.pi)
    for cutout, entry in zip(cutouts, plan.entries, strict=True):
        relief, used = _relief(cutout, split, rng)
        colour = palette[plan.colours[entry]] * np.float32(rng.uniform(0.9, 1.1))
        compose(canvas, cutout, colour * (1 + 0.15 * relief), light)
        sources += used
    marks = []
    for corner, colour, label in zip(plan.corners, plan.colours, plan.classes, strict=True):
        x, y = _corner_box(corner, size, 2 * side, side, rng)
        canvas[y : y + side, x : x + side] = palette[colour]
        canvas[y : y + side, x + side : x + 2 * side] = _mark(LEGEND_CLASSES[label], side)
        ground[y : y + side, x : x + 2 * side] = label + 1 if split == 'train' else IGNORED
        name = f'{list(LEGEND_COLOURS)[colour]} {LEGEND_CLASSES[label]}'
        marks.append(dict(name=name, box=[x, y, 2 * side, side]))
    owner, labels = owner_map(cutouts, size), [int(plan.classes[i]) for i in plan.entries]
    return Scene(finish(canvas, rng), owner, labels, ground, sources, marks)
