from __future__ import annotations

from collections.abc import Iterable


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
