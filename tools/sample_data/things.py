"""The things that scenes are made of: outlines, coins, and how one lies on a canvas.

A canvas is a square of side `size`, (size, size, 3) float32 RGB in 0..255. Things are drawn four
times as large and reduced, which gives anti-aliased edges; a pixel belongs to the topmost thing
that covers at least half of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from .photographs import Pictured, Source, coins

THING_CLASSES = ('coin', 'star', 'triangle', 'ring', 'bar')
SUPERSAMPLING = 4


class Cutout(NamedTuple):
    """A thing's outline on the canvas, and of a pictured thing what it looks like."""

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


def cut(
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
    return lay(held[rng.integers(len(held))], size, centre, length, turn)


def lay(
    pictured: Pictured, size: int, centre: np.ndarray, length: float, turn: np.ndarray
) -> Cutout:
    """A pictured thing on the canvas, turned by a matrix (2, 2)."""
    grey, matte, source = pictured
    scale = length / max(grey.shape)
    move = turn * scale * SUPERSAMPLING
    middle = np.array(grey.shape[::-1]) / 2
    offset = np.asarray(centre) * SUPERSAMPLING - move @ middle
    layers = cv2.warpAffine(
        np.dstack([grey, matte]),
        np.column_stack([move, offset]),
        (size * SUPERSAMPLING,) * 2,
        flags=cv2.INTER_LINEAR,
    )
    face, cover = cv2.split(cv2.resize(layers, (size, size), interpolation=cv2.INTER_AREA))
    return Cutout(cover, matte.sum() * scale**2, length, face[..., None], [source])


def owner_map(cutouts: list[Cutout], size: int) -> np.ndarray:
    """(size, size) int: 1 + the index of the topmost thing, the last one, 0 where there is none."""
    owner = np.zeros((size, size), np.int64)
    for index, cutout in enumerate(cutouts):
        owner[cutout.cover >= 0.5] = index + 1
    return owner


def _window(cover: np.ndarray, margin: float) -> tuple[slice, slice]:
    """Rows and columns of what `cover` covers, and `margin` pixels around."""
    x, y, width, height = cv2.boundingRect((cover > 0).astype(np.uint8))
    margin = math.ceil(margin)
    return (
        slice(max(0, y - margin), y + height + margin),
        slice(max(0, x - margin), x + width + margin),
    )


def compose(canvas: np.ndarray, cutout: Cutout, material: np.ndarray, light: float) -> None:
    """Lays a thing made of `material` on the canvas, lit from the angle `light`, with a shadow."""
    soft = max(0.8, 0.07 * cutout.length)
    window = _window(cutout.cover, 4 * soft)
    cover, under = cutout.cover[window], canvas[window]
    towards = np.array([np.cos(light), np.sin(light)])
    move = np.column_stack([np.eye(2), -towards * soft])
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, move, cover.shape[::-1]), (0, 0), soft)
    rim = cv2.GaussianBlur(cover, (0, 0), soft)
    y, x = np.indices(cover.shape, np.float32)
    slope = x * np.float32(towards[0]) + y * np.float32(towards[1])
    slope = (slope - (slope * cover).sum() / cover.sum()) / np.float32(cutout.length)
    lit = material[window] * ((1 + 0.35 * slope) * (0.65 + 0.4 * rim))[..., None]
    cover = cover[..., None]
    canvas[window] = under * (1 - 0.45 * shadow[..., None]) * (1 - cover) + lit * cover


def stands_out(canvas: np.ndarray, cutout: Cutout, material: np.ndarray) -> bool:
    """Whether a thing of `material` differs from what it would hide, and is not one flat colour."""
    window = _window(cutout.cover, 0)
    inside = cutout.cover[window] >= 0.5
    face, under = material[window][inside], canvas[window][inside]
    return np.linalg.norm(face.mean(0) - under.mean(0)) > 60 and face.std(0).max() > 9
