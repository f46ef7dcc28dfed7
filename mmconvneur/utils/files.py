"""Files that the package carries, and files that a kill cannot leave half written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

HOME = Path(__file__).parents[1] / '.mim'  # links in a checkout, the files themselves in a wheel


def common_folder(paths: Iterable[str | Path]) -> str:
    """The deepest folder that holds all files."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file that appears under its name only when it is complete, with its folder."""
    content = content.encode() if isinstance(content, str) else content
    partial = Path(f'{path}.partial')
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno and not error.filename:
            error.filename = str(path)
        raise
