"""What the checks say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Finding(NamedTuple):
    """One line that names the problem and the cure; a doubt does not stop the tools."""

    text: str
    is_doubt: bool = False


def wrong(text: str) -> Finding:
    return Finding(text)


def doubt(text: str) -> Finding:
    return Finding(text, is_doubt=True)


def some(values: Iterable, most: int = 8) -> str:
    """The first values, and how many there are more."""
    values = [str(value) for value in values]
    more = f' and {len(values) - most} more' if len(values) > most else ''
    return ', '.join(values[:most]) + more
