from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin


class UsageError(ValueError):
    """A mistake in a config, a path or the environment that the user can fix.

    The message is one line that names the problem and the cure. The command-line tools print it
    without a traceback and exit with status 1.
    """


class UsageErrors(UsageError):
    """Several mistakes at once, one line each."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__('; '.join(messages))
        self.messages = messages


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise ``UsageError`` listing the valid ``choices`` unless ``value`` is one of them."""
    choices = list(choices)
    if value not in choices:
        raise UsageError(f'unknown {what} {value!r}: choose one of {", ".join(choices)}')


def check_types(what: str, values: Mapping[str, object], hints: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for the value of an option that is not of its type.

    Args:
        what: Whose options they are.
        values: By the names of the options.
        hints: Their annotations, where they have any.
    """
    for name, hint in hints.items():
        if name in values and not fits(values[name], hint):
            wanted = inspect.formatannotation(hint).replace('collections.abc.', '')
            raise UsageError(f'{name}={values[name]!r} of {what}: it has to be {wanted}')


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type; of annotations it does not know all values are."""
    kind: Any = get_origin(hint) or hint
    parts = get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is Sequence:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        return all(fits(item, part) for part in parts for item in value)
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool) and kind in (int, float):
        return False
    known: dict[type, Any] = {float: (int, float), bool: int}
    return isinstance(value, known.get(kind, kind))
