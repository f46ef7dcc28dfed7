"""Checkpoint files: read without running code from them, downloaded whole or not at all."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import mmengine
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models
from torch import Tensor

from ..errors import UsageError, check_choice

# How PyTorch's safe reader names what it refuses.
FOREIGN_OBJECT = re.compile(r'(?:GLOBAL|global|class|function|getattr of) ([\w.]+)')
# As torch.hub and OpenMMLab name files; a date is no hash.
HASH_IN_NAME = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.\w+$')
SCHEMES = ('http://', 'https://')
SAFETENSORS = '.safetensors'
PICKLE_2 = b'\x80\x02'  # how a pickle of protocol 2 begins
WRAPPERS = ('state_dict', 'model', 'module', 'model_state_dict', 'model_ema', 'state_dict_ema')


def resolve(source: str) -> str:
    """The URL of ``torchvision://NAME`` or ``open-mmlab://NAME``; any other source as it is.

    MMEngine carries both lists. Torchvision itself is not needed.

    Raises:
        UsageError: For an unknown name.
    """
    scheme, separator, name = source.partition('://')
    if scheme not in LISTS or not separator:
        return source
    urls = LISTS[scheme]()
    name = get_deprecated_model_names().get(name, name)
    check_choice(f'model of {scheme}://', name, urls)
    return urls[name]


def _torchvision_urls() -> dict[str, str]:
    return mmengine.load(Path(mmengine.__file__).parent / 'hub' / 'torchvision_0.12.json')


LISTS = {'torchvision': _torchvision_urls, 'open-mmlab': get_external_models}


def locate(source: str | Path) -> Path:
    """The file of a path, a URL, ``torchvision://NAME`` or ``open-mmlab://NAME``.

    Raises:
        UsageError: If there is none, or it is damaged.
    """
    source = resolve(str(source))
    path = fetch(source) if source.startswith(SCHEMES) else Path(source).expanduser()
    if not path.is_file():
        problem = 'is a folder' if path.is_dir() else 'does not exist'
        raise UsageError(
            f'checkpoint {path} {problem}: give the path of a .pth or {SAFETENSORS} file'
        )
    if path.suffix != SAFETENSORS and not is_checkpoint(path):
        raise damaged(path)
    return path


def damaged(path: Path) -> UsageError:
    return UsageError(f'checkpoint {path} is damaged or no checkpoint: get or write it again')


def is_checkpoint(path: Path) -> bool:
    """Whether a file is whole as far as its container tells.

    PyTorch writes zip archives, whose index comes last; files from before 1.6 are bare pickles.
    """
    with path.open('rb') as file:
        return zipfile.is_zipfile(file) or file.seek(0) == 0 and file.read(2) == PICKLE_2


def read_checkpoint(source: str | Path, trust: bool | None = None) -> dict:
    """A checkpoint file as it is, on the CPU.

    Args:
        source: As in :func:`locate`, of a ``.pth`` or a ``.safetensors`` file. A URL is downloaded
            once into PyTorch's cache; a hash in its name is verified.
        trust: Unpickle whatever the file holds. It can then run any code. Default: no, or what
            :func:`load_safely` was given.

    Raises:
        UsageError: If the file does not exist, cannot be downloaded, is damaged or holds objects
            that only code could restore.
    """
    path = locate(source)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    trust = _trusted if trust is None else trust
    try:
        with torch.serialization.safe_globals(ALLOWED):
            checkpoint = torch.load(path, map_location='cpu', weights_only=not trust)
    except pickle.UnpicklingError as error:
        name = FOREIGN_OBJECT.search(str(error))
        raise UsageError(
            f'checkpoint {path} holds more than tensors ({name[1] if name else "objects"}), and '
            'reading that can run any code: if you trust its source, add --trust-checkpoint'
        ) from error
    except Exception as error:  # spoilt bytes can raise anything
        raise damaged(path) from error
    if not isinstance(checkpoint, Mapping):
        raise UsageError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}: give a file of a state dict'
        )
    return checkpoint


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
        raise damaged(path) from error


def _method_of_history(owner: type, name: str) -> object:
    """What MMEngine's log buffers need ``getattr`` for when they are restored."""
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f'getattr of {owner.__name__}')
    return getattr(owner, name)


# What training checkpoints hold beside tensors and plain Python: the buffers of MMEngine's log, and
# NumPy's numbers, which NumPy 1 wrote under another name.
_RECONSTRUCT, _SCALAR = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
ALLOWED = [
    HistoryBuffer,
    (_method_of_history, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['Float']},
    *((_RECONSTRUCT, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((_SCALAR, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
]


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file of a URL in PyTorch's cache, downloaded with a bar where it is not there yet.

    Args:
        url: Where it is.
        sha256: How its hash begins; default: what the name says, if it says so.
    """
    name = Path(urlparse(url).path).name
    named = HASH_IN_NAME.search(name)
    if sha256 is None and named:
        sha256 = named[1]
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    if not named:  # many files are called model.safetensors
        folder /= hashlib.sha256(url.encode()).hexdigest()[:8]
    path = folder / name
    if path.is_file():
        if not _has_hash(path, sha256):
            raise UsageError(f'{path} has not the hash {sha256}: delete it and get it again')
        return path
    partial = path.with_name(f'partial-{name}')
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, partial, progress=is_main_process())
        if not _has_hash(partial, sha256):
            raise UsageError(f'what {url} gives has not the hash {sha256}: get it elsewhere')
        if not _is_whole(partial):
            raise UsageError(
                f'what {url} gives is no whole checkpoint: try again, or check the URL'
            )
        os.replace(partial, path)
    except (URLError, OSError) as error:
        raise UsageError(
            f'{url} cannot be downloaded ({error}): download it elsewhere and put it at {path}'
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _has_hash(path: Path, sha256: str | None) -> bool:
    return not sha256 or hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256)


def _is_whole(path: Path) -> bool:
    if path.suffix != SAFETENSORS:
        return is_checkpoint(path)
    try:
        return bool(_read_safetensors(path))
    except UsageError:
        return False


def read_state_dict(source: str | Path, trust: bool | None = None) -> dict[str, Tensor]:
    """The weights in a checkpoint file, whatever they are wrapped in.

    Raises:
        UsageError: As :func:`read_checkpoint`; if the file holds no weights.
    """
    state = read_checkpoint(source, trust)
    while inner := [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]:
        state = inner[0]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(
            f'checkpoint {source} holds no weights, but {", ".join(map(str, list(state)[:5]))}: '
            f'give a state dict, alone or as one of {", ".join(WRAPPERS)}'
        )
    return tensors


_trusted = False


def load_safely(trust: bool) -> None:
    """Make everything in this process read checkpoints without running code from them.

    MMEngine itself falls back to full unpickling, with a warning, where safe reading fails.

    Args:
        trust: Read whatever a file holds instead.
    """
    global _trusted
    _trusted = trust
    # PyTorch heeds it in every torch.load, whatever its caller asks for.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '0' if trust else '1'

    def load_from_safe_reader(filename: str, map_location: str | None = None) -> dict:
        return read_checkpoint(filename)

    CheckpointLoader.register_scheme(['', *SCHEMES], load_from_safe_reader, force=True)
