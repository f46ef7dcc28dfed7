"""Figures of the maps, each over the image that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize, SymLogNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from torch import Tensor

from ..models.layers.block import GateFusion
from . import maps
from .receptive_field import ReceptiveField, square_holding
from .taps import FusionTap, MemoryTap

PANEL, SMALL = 1.7, 8  # the longer side of one map in inches, and the text in points
SHARES = {0.5: 'tab:cyan', 0.95: 'tab:red'}  # of a receptive field, and the colour of their square
SIGNED, STRENGTH = 'RdBu_r', 'viridis'


class Backdrop(NamedTuple):
    """An image under its maps, all in pixels of the network's input.

    Attributes:
        image: RGB ``(H, W, 3)``.
        scale: Of its width and height in the input.
        padded: Height and width of the input; a map covers all of it.
    """

    image: np.ndarray
    scale: tuple[float, float]
    padded: tuple[int, int]

    @property
    def shown(self) -> tuple[float, float]:
        """Height and width of the image in the input, without padding."""
        return self.image.shape[0] * self.scale[1], self.image.shape[1] * self.scale[0]

    def at(self, pixel: tuple[int, int]) -> tuple[float, float]:
        """Where the middle of a pixel (x, y) of the image is."""
        return (pixel[0] + 0.5) * self.scale[0], (pixel[1] + 0.5) * self.scale[1]

    def cell(self, pixel: tuple[int, int], shape: Sequence[int]) -> tuple[int, ...]:
        """Row and column of the cell of a map ``(h, w)`` that holds a pixel (x, y) of the image."""
        x, y = self.at(pixel)
        return tuple(
            min(int(place / size * cells), cells - 1)
            for place, size, cells in zip((y, x), self.padded, shape, strict=True)
        )


# --------------------------------------------------------------------------------- what is drawn
def draw_gates(backdrop: Backdrop, taps: dict[str, FusionTap], number: int = 3) -> Figure:
    """Mean and the channels that vary most of sigmoid(G); of G itself where it does not gate."""
    figure, panels = grid(backdrop, len(taps), number + 1)
    for axes, (name, tap) in zip(panels, taps.items(), strict=True):
        gates = isinstance(tap.fusion, GateFusion)
        context, neutral, unit = (
            (maps.gate(tap), 0.5, 'gate') if gates else (tap.context, 0.0, 'context')
        )
        chosen = context.flatten(1).std(1).topk(min(number, len(context))).indices.sort().values
        titles = [f'channel {channel}' for channel in chosen.tolist()]
        mean = context.mean(0, keepdim=True)
        for part, names, columns in (
            (mean, ['mean'], axes[:1]),
            (context[chosen], titles, axes[1:]),
        ):
            limit = max(peak(part - neutral), 0.01)
            draw_maps(backdrop, columns, part, names, SIGNED, CenteredNorm(neutral, limit), unit)
        axes[0].set_ylabel(label(name, context))
    return figure


def draw_writes(backdrop: Backdrop, taps: dict[str, MemoryTap]) -> Figure:
    """Write weights of every head, as multiples of an even share."""
    figure, panels = grid(backdrop, len(taps), most_heads(taps))
    for axes, (name, tap) in zip(panels, taps.items(), strict=True):
        weights = maps.write_weights(tap)
        weights = weights * tap.valid.sum() / weights.sum((1, 2), keepdim=True)
        norm = LogNorm(0.01, max(10.0, peak(weights)), clip=True)
        draw_maps(backdrop, axes, weights, heads(weights), STRENGTH, norm, 'times an even share')
        axes[0].set_ylabel(label(name, weights))
    return figure


def draw_reads(backdrop: Backdrop, taps: dict[str, MemoryTap], pixel: tuple[int, int]) -> Figure:
    """Read weights of every head when the cells with a pixel (x, y) of the image read."""
    figure, panels = grid(backdrop, len(taps), most_heads(taps))
    for axes, (name, tap) in zip(panels, taps.items(), strict=True):
        weights = maps.read_weights(tap, *backdrop.cell(pixel, tap.valid.shape))
        limit = peak(weights) or 1.0
        decade = 10 ** np.floor(np.log10(limit) - 1)  # linear below it: its ticks stay apart
        norm = SymLogNorm(decade, vmin=-limit, vmax=limit)
        draw_maps(backdrop, axes, weights, heads(weights), SIGNED, norm, 'read weight')
        for ax in axes:
            ax.plot(*backdrop.at(pixel), '+', color='black', ms=9, mew=1.5, clip_on=False)
        axes[0].set_ylabel(label(name, weights))
    return figure


def draw_slot_grid(backdrop: Backdrop, name: str, logits: Tensor) -> Figure:
    """The map of every slot, eight in a row."""
    slots = maps.slot_assignment(logits)
    figure, panels = grid(backdrop, -(-len(slots) // 8), 8, PANEL * 0.6)
    norm = Normalize(0, peak(slots))
    numbers = [str(number) for number in range(1, len(slots) + 1)]
    draw_maps(backdrop, panels, slots, numbers, STRENGTH, norm, 'share of the slot')
    figure.supylabel(label(name, logits), fontsize=SMALL)
    return figure


def draw_slot_colours(backdrop: Backdrop, taps: dict[str, Tensor]) -> Figure:
    """A colour for each slot: of the strongest in every pixel, and mixed as the slots are."""
    figure, panels = grid(backdrop, len(taps), 3, PANEL * 1.3)
    for axes, (name, logits) in zip(panels, taps.items(), strict=True):
        slots = maps.slot_assignment(logits)
        palette = torch.tensor(colours(len(slots)), dtype=slots.dtype)
        mixed = torch.einsum('shw,sc->hwc', slots.cpu(), palette)
        axes[0].imshow(backdrop.image, extent=extent(backdrop.shown))
        overlay(backdrop, axes[1], palette[slots.argmax(0).cpu()], alpha=0.6)
        overlay(backdrop, axes[2], mixed, alpha=0.6)
        axes[0].set_ylabel(label(name, logits))
    for ax, title in zip(panels[0], ('image', 'strongest slot', 'mixture'), strict=True):
        ax.set_title(title, fontsize=SMALL)
    return figure


def draw_receptive_field(backdrop: Backdrop, receptive: ReceptiveField) -> Figure:
    """The field over four decades, with the squares that hold half and nearly all of it."""
    figure, ((ax,),) = grid(backdrop, 1, 1, PANEL * 2.2)
    field = receptive.field / receptive.field.max()
    drawn = overlay(backdrop, ax, field, 'magma', LogNorm(1e-4, 1, clip=True), alpha=0.85)
    colour_bar(np.array([ax]), drawn, 'gradient, relative to its largest')
    for share, colour in SHARES.items():
        side = square_holding(receptive, share)
        corner = (receptive.column - side / 2, receptive.row - side / 2)
        square = Rectangle(corner, side, side, fill=False, edgecolor=colour)
        square.set_label(f'{share:.0%} within {side} x {side}')
        ax.add_patch(square)
    figure.legend(loc='outside lower center', ncols=len(SHARES), frameon=False, fontsize=SMALL)
    return figure


# ------------------------------------------------------------------------------------ the figure
def draw_maps(
    backdrop: Backdrop,
    axes: np.ndarray,
    values: Tensor,
    titles: Sequence[str],
    cmap: str,
    norm: Normalize,
    unit: str,
) -> None:
    """Maps ``(K, h, w)`` that share a colour bar; axes that are left over are hidden."""
    for ax, map_, title in zip(axes.flat, values, titles, strict=False):
        drawn = overlay(backdrop, ax, map_, cmap, norm)
        ax.set_title(title, fontsize=SMALL)
    for ax in axes.flat[len(values) :]:
        ax.set_visible(False)
    colour_bar(axes, drawn, unit)


def colour_bar(axes: np.ndarray, drawn: AxesImage, unit: str) -> None:
    rows = len(np.atleast_2d(axes))
    bar = axes.flat[0].figure.colorbar(drawn, ax=axes, pad=0.01, aspect=25 * rows)
    bar.set_label(unit, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.outline.set_visible(False)


def grid(
    backdrop: Backdrop, rows: int, columns: int, panel: float = PANEL
) -> tuple[Figure, np.ndarray]:
    """A figure of bare axes over the valid part of the image, ``(rows, columns)``."""
    height, width = (panel * side / max(backdrop.shown) for side in backdrop.shown)
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.06)
    figure = Figure((columns * width + 1.5, rows * (height + 0.3) + 0.2), layout=layout)
    panels = figure.subplots(rows, columns, squeeze=False)
    for ax in panels.flat:
        ax.set(yticks=[], xlim=(0, backdrop.shown[1]), ylim=(backdrop.shown[0], 0))
        ax.xaxis.set_visible(False)
        ax.spines[:].set_visible(False)
        ax.yaxis.label.set_fontsize(SMALL)
    for ax in panels[:, 1:].flat:
        ax.yaxis.set_visible(False)  # the layout measures every axis that is not hidden
    return figure, panels


def overlay(
    backdrop: Backdrop,
    ax: Axes,
    values: Tensor,
    cmap: str | None = None,
    norm: Normalize | None = None,
    alpha: float = 0.8,
) -> AxesImage:
    """A map over the image, which is faint so that it does not pass for a part of the map."""
    grey = backdrop.image.mean(-1)
    ax.imshow(grey, cmap='gray', vmin=-128, vmax=383, extent=extent(backdrop.shown))
    drawn = ax.imshow(
        values.cpu().numpy(),
        cmap,
        norm,
        extent=extent(backdrop.padded),
        alpha=alpha,
        interpolation='nearest',
    )
    ax.set(xlim=(0, backdrop.shown[1]), ylim=(backdrop.shown[0], 0))
    return drawn


def extent(size: tuple[float, float]) -> tuple[float, float, float, float]:
    return (0, size[1], size[0], 0)  # left, right, bottom, top


def label(name: str, values: Tensor) -> str:
    """'stage 1, 48 x 48' for 'stages.0.0'; a further block of a stage by its number too."""
    height, width = values.shape[-2:]
    place = re.search(r'stages\.(\d+)\.(\d+)', name)
    if place:
        stage, block = (int(i) + 1 for i in place.groups())
        name = f'stage {stage}' + (f', block {block}' if block > 1 else '')
    return f'{name}\n{height} x {width}'


def heads(weights: Tensor) -> list[str]:
    return [f'head {head}' for head in range(1, len(weights) + 1)]


def most_heads(taps: dict[str, MemoryTap]) -> int:
    return max(tap.memory.num_heads for tap in taps.values())


def peak(values: Tensor) -> float:
    return float(values.abs().max())


def colours(number: int) -> np.ndarray:
    """RGB ``(number, 3)``, neighbours far apart: hues by the golden ratio, brightness in turn."""
    index = np.arange(number)
    hue, value = index * 0.618034 % 1, 1 - 0.25 * (index % 3)
    return hsv_to_rgb(np.stack([hue, np.full(number, 0.85), value], axis=-1))
