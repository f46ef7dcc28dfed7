"""Checkpoint files: read without running code from them, downloaded whole or not at all."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..checkpoints import is_checkpoint
from ..errors import UsageError

# How PyTorch's safe reader names what it refuses.
FOREIGN_OBJECT = re.compile(r'(?:GLOBAL|global|class|function|getattr of) ([\w.]+)')
HASH_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # as torch.hub and OpenMMLab name files
SCHEMES = ('http://', 'https://')
SAFETENSORS = '.safetensors'
WRAPPERS = ('state_dict', 'model', 'module', 'model_ema')  # the weights of a training checkpoint


def locate(source: str | Path) -> Path:
    """The file of a path or URL.

    Raises:
        UsageError: If there is none, or it is truncated.
    """
    source = str(source)
    path = fetch(source) if source.startswith(SCHEMES) else Path(source).expanduser()
    if not path.is_file():
        raise UsageError(
            f'checkpoint {path} does not exist: give the path of a .pth or {SAFETENSORS} file'
        )
    if path.suffix != SAFETENSORS and not is_checkpoint(path):
        raise UsageError(f'checkpoint {path} is truncated or no checkpoint: get or write it again')
    return path


def read_checkpoint(source: str | Path, trust: bool = False) -> dict:
    """A checkpoint file as it is, on the CPU.

    Args:
        source: Path or URL of a ``.pth`` or a ``.safetensors`` file. A URL is downloaded once into
            PyTorch's cache; a hash in its name is verified.
        trust: Unpickle whatever the file holds. It can then run any code.

    Raises:
        UsageError: If the file does not exist, cannot be downloaded, is damaged or holds objects
            that only code could restore.
    """
    path = locate(source)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location='cpu', weights_only=not trust)
    except Exception as error:  # spoilt bytes can raise anything
        name = FOREIGN_OBJECT.search(str(error))
        if not isinstance(error, pickle.UnpicklingError) or name is None:
            raise UsageError(f'checkpoint {path} is corrupt: get or write it again') from error
        raise UsageError(
            f'checkpoint {path} holds more than tensors ({name[1]}), and reading that can run any '
            'code: if you trust its source, add --trust-checkpoint'
        ) from error


def _read_safetensors(path: Path) -> dict:
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
        raise UsageError(f'checkpoint {path} is corrupt: get or write it again') from error


def _method_of_history(owner: type, name: str) -> object:
    """What MMEngine's log buffers need ``getattr`` for when they are restored."""
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f'getattr of {owner.__name__}')
    return getattr(owner, name)


# What MMEngine's training checkpoints hold beside tensors and plain Python: the log's buffers.
ALLOWED = [
    HistoryBuffer,
    (_method_of_history, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
    np.empty(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
]


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file of a URL in PyTorch's cache, downloaded with a bar where it is not there yet.

    Args:
        url: Where it is.
        sha256: How its hash begins; default: what the name says, if it says so.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if path.is_file():
        return path
    if sha256 is None and (named := HASH_IN_NAME.search(path.name)):
        sha256 = named[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, path, hash_prefix=sha256, progress=is_main_process())
    except (URLError, OSError) as error:
        raise UsageError(
            f'{url} cannot be downloaded ({error}): download it elsewhere and put it at {path}'
        ) from error
    except RuntimeError as error:
        raise UsageError(f'{url} has not the hash in its name: download it again') from error
    return path


def read_state_dict(source: str | Path, trust: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint file, whatever they are wrapped in.

    Raises:
        UsageError: As :func:`read_checkpoint`; if the file holds no weights.
    """
    state = read_checkpoint(source, trust)
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UsageError(f'checkpoint {source} holds no state dict: give a file of weights')
    return tensors


def load_safely(trust: bool) -> None:
    """Make MMEngine read every checkpoint in this process by :func:`read_checkpoint`.

    MMEngine itself falls back to full unpickling, with a warning, where safe reading fails.
    """

    def load_from_safe_reader(filename: str, map_location: str | None = None) -> dict:
        return read_checkpoint(filename, trust)

    CheckpointLoader.register_scheme(['', *SCHEMES], load_from_safe_reader, force=True)
