"""The pictures of an image as PNG files, and an HTML page that shows them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from matplotlib.figure import Figure

from ..utils.files import write_atomically
from . import drawing
from .drawing import Backdrop
from .receptive_field import ReceptiveField
from .taps import Taps

PAGE = 'index.html'
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2.5rem 0 0 } p { margin: .3rem 0 1rem; max-width: 60rem } img { max-width: 100% }
th { text-align: left; padding-right: 2rem; font-weight: normal; color: #666 }
td { overflow-wrap: anywhere }
"""


class Picture(NamedTuple):
    """A figure with its file name (without ``.png``), its title and one line about it."""

    name: str
    title: str
    explanation: str
    figure: Figure


def pictures(
    backdrop: Backdrop, taps: Taps, receptive: ReceptiveField, pixels: Iterable[tuple[int, int]]
) -> Iterator[Picture | str]:
    """All that there is to draw; a line of text in the place of what cannot be drawn."""
    if not any(taps):
        yield 'This backbone has no gate, memory or slots: only its receptive field is drawn.'
    if taps.fusions:
        yield Picture(
            'gates',
            'Gates',
            'How much of the local features passes at each place: sigmoid of the global context G, '
            'neutral at 1/2; of the fusions add and concat G itself. The mean over all channels, '
            'then the channels that vary most.',
            drawing.draw_gates(backdrop, taps.fusions),
        )
    if taps.memories:
        yield Picture(
            'writes',
            'Write weights',
            'What each head of the memory stored: the weight of every token in its inner step, '
            '1 being an even share.',
            drawing.draw_writes(backdrop, taps.memories),
        )
        for x, y in pixels:
            yield Picture(
                f'reads_{x}_{y}',
                f'Read weights of pixel ({x}, {y})',
                'The weight that each head of the memory gives to every place when the pixel at '
                'the cross reads: how much of what was written there it gets back.',
                drawing.draw_reads(backdrop, taps.memories, (x, y)),
            )
    if taps.slots:
        yield Picture(
            'slots',
            'Slots',
            'Which slot each pixel takes its global features from: a colour for each slot.',
            drawing.draw_slot_colours(backdrop, taps.slots),
        )
    for name, logits in taps.slots.items():
        yield Picture(
            f'slots_{name}',
            f'Slots of {name}',
            'How much each pixel takes of every slot: softmax over the slots.',
            drawing.draw_slot_grid(backdrop, name, logits),
        )
    yield Picture(
        'receptive_field',
        'Effective receptive field',
        'How much the centre of the last map depends on each pixel: the absolute gradient for this '
        'image, averaged over up to 16 channels, and the squares that hold half and 95 % of it.',
        drawing.draw_receptive_field(backdrop, receptive),
    )


def save(folder: Path, picture: Picture, dpi: int) -> Path:
    file = io.BytesIO()
    picture.figure.savefig(file, format='png', dpi=dpi, pil_kwargs=dict(optimize=True))
    path = folder / f'{picture.name}.png'
    write_atomically(path, file.getvalue())
    return path


def write_page(
    folder: Path, title: str, facts: dict[str, str], contents: Iterable[Picture | str]
) -> Path:
    """The page of pictures that are in its folder already, and of lines of text."""
    rows = [
        f'<tr><th>{escape(what)}</th><td>{escape(fact)}</td></tr>' for what, fact in facts.items()
    ]
    body = [f'<h1>{escape(title)}</h1>', '<table>', *rows, '</table>', *map(_paragraph, contents)]
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>'
    page = '\n'.join(['<!doctype html>', '<html lang="en">', head, *body, '</html>', ''])
    write_atomically(folder / PAGE, page)
    return folder / PAGE


def _paragraph(content: Picture | str) -> str:
    if isinstance(content, str):
        return f'<p>{escape(content)}</p>'
    return (
        f'<h2>{escape(content.title)}</h2>\n<p>{escape(content.explanation)}</p>\n'
        f'<img src="{quote(content.name)}.png" alt="{escape(content.title)}">'
    )
