"""Containers of checkpoints: PyTorch's archives, safetensors and indexes of several of those."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from torch import Tensor

from ..errors import UsageError

SAFETENSORS = '.safetensors'
INDEX = '.index.json'  # as Hugging Face names the index of a checkpoint in several files
PICKLE_2 = b'\x80\x02'  # how a pickle of protocol 2 begins


def damaged(path: Path) -> UsageError:
    return UsageError(f'checkpoint {path} is damaged or not a checkpoint: get or write it again')


def is_checkpoint(path: Path) -> bool:
    """Whether a file is whole as far as its container tells.

    PyTorch writes zip archives, whose index comes last; files from before 1.6 are bare pickles.
    """
    with path.open('rb') as file:
        return zipfile.is_zipfile(file) or file.seek(0) == 0 and file.read(2) == PICKLE_2


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        UsageError: If it is damaged, or the safetensors package is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError(
            f'{path} needs the safetensors package: pip install safetensors'
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged(path) from error


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> the file beside an index that holds it.

    Raises:
        UsageError: If it is no such index.
    """
    try:
        files = dict(json.loads(path.read_bytes())['weight_map'])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    # An index from elsewhere may not reach out of its folder.
    if not files or any(Path(name).name != name for name in files.values()):
        raise damaged(path)
    return files


def is_whole(path: Path) -> bool:
    """Whether a file is a whole checkpoint, or a whole index of one."""
    try:
        if path.name.endswith(INDEX):
            return bool(read_index(path))
        if path.suffix == SAFETENSORS:
            return bool(read_safetensors(path))
    except UsageError:
        return False
    return is_checkpoint(path)
