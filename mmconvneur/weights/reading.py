"""Checkpoints, read without running code from them."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TextIO
from urllib.parse import urljoin
from zipfile import is_zipfile

import numpy as np
import torch
import yaml
from mmengine.fileio import PickleHandler, YamlHandler, register_handler
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from torch import Tensor

from ..errors import UsageError
from ..utils.compat import safe_globals
from .containers import INDEX, SAFETENSORS, damaged, read_index, read_safetensors
from .files import SCHEMES, locate, resolve

# How PyTorch's safe reader names what it refuses.
FOREIGN_OBJECT = re.compile(r'(?:GLOBAL|global|class|function|getattr of) ([\w.]+)')
# The first of them that a file has is taken; a teacher is the average of its student.
WRAPPERS = (
    *('state_dict', 'model', 'module', 'model_state_dict', 'model_ema', 'state_dict_ema', 'ema'),
    *('teacher', 'student'),
)


def read_checkpoint(source: str | Path, trust: bool | None = None, on_disk: bool = False) -> dict:
    """A checkpoint file as it is, on the CPU.

    Args:
        source: As in :func:`.files.locate`, of a ``.pth`` or a ``.safetensors`` file, or of the
            index of several, which are beside it. A URL is downloaded once into PyTorch's cache; a
            hash in its name is verified.
        trust: Unpickle whatever the file holds. It can then run any code. Default: no, or what
            :func:`load_safely` was given.
        on_disk: Read a tensor of a ``.pth`` file from the disk only when it is used.

    Raises:
        UsageError: If the file does not exist, cannot be downloaded, is damaged or holds objects
            that only code could restore.
    """
    path = locate(source)
    if path.suffix == SAFETENSORS:
        return read_safetensors(path)
    if path.name.endswith(INDEX):
        return _read_parts(str(source), path, trust)
    trust = _trusted if trust is None else trust
    try:
        with safe_globals(ALLOWED):
            checkpoint = torch.load(
                str(path),  # PyTorch 2.1 maps no other
                map_location='cpu',
                weights_only=not trust,
                mmap=on_disk and is_zipfile(path),
            )
    except pickle.UnpicklingError as error:
        name = FOREIGN_OBJECT.search(str(error))
        raise UsageError(
            f'checkpoint {path} holds more than tensors ({name[1] if name else "objects"}), and '
            'reading that can run any code: if you trust its source, add --trust-checkpoint'
        ) from error
    except Exception as error:  # spoilt bytes can raise anything
        raise damaged(path) from error
    if not isinstance(checkpoint, dict):
        raise UsageError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}: give a file of a state dict'
        )
    for state in (checkpoint, *wrapped(checkpoint)):
        for key, value in state.items():
            if isinstance(value, Tensor) and not isinstance(key, str):
                raise UsageError(f'checkpoint {path} has a tensor whose name is {key!r}, no string')
    return checkpoint


def wrapped(checkpoint: Mapping) -> list[Mapping]:
    """What may be the state dict inside a checkpoint, the most likely one first."""
    return [checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]


def _read_parts(source: str, index: Path, trust: bool | None) -> dict[str, Tensor]:
    """The tensors in the files that the index of a path or URL names."""
    source, tensors = resolve(source), dict[str, Tensor]()
    for name in sorted(set(read_index(index).values())):
        part = urljoin(source, name) if source.startswith(SCHEMES) else index.with_name(name)
        try:
            tensors |= read_checkpoint(part, trust)
        except UsageError as error:
            raise UsageError(f'{index} is not complete: {error}') from error
    return tensors


def _method_of_history(owner: type, name: str) -> object:
    """What MMEngine's log buffers need ``getattr`` for when they are restored."""
    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise pickle.UnpicklingError(f'getattr of {owner.__name__}.{name}')
    return getattr(owner, name)


# How arrays and NumPy's numbers are restored; NumPy 1 wrote these functions under another name.
_ARRAY, _NUMBER = np.empty(1), np.float64(0)
NUMPY = {
    f'numpy.{core}.{name}': made.__reduce_ex__(protocol)[0]
    for core in ('core', '_core')
    for name, made, protocol in (
        ('multiarray._reconstruct', _ARRAY, 2),
        ('multiarray.scalar', _NUMBER, 2),
        ('numeric._frombuffer', _ARRAY, 5),
    )
}
# What training checkpoints hold beside tensors and plain Python: arrays and MMEngine's log buffers.
ALLOWED = [
    HistoryBuffer,
    (_method_of_history, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['Float']},
    *((function, name) for name, function in NUMPY.items()),
]


def read_state_dict(source: str | Path, trust: bool | None = None) -> dict[str, Tensor]:
    """The weights in a checkpoint file, whatever they are wrapped in.

    Raises:
        UsageError: As :func:`read_checkpoint`; if the file holds no weights.
    """
    state: Mapping = read_checkpoint(source, trust)
    while inner := wrapped(state):
        state = inner[0]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(
            f'checkpoint {source} holds no weights, but {", ".join(map(str, list(state)[:5]))}: '
            f'give a state dict, alone or as one of {", ".join(WRAPPERS)}'
        )
    return tensors


# ------------------------------------------------------------------------- what MMEngine reads
def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 write bytes, without the other codecs."""
    return text.encode('latin1')


def _storage(content: bytes) -> object:
    """What a tensor in a pickle is made of, which PyTorch itself would unpickle."""
    return torch.load(io.BytesIO(content), weights_only=True)


# What pickles of annotations, proposals and predictions hold beside plain Python.
PICKLED = {
    **NUMPY,
    **{
        f'{owner.__module__}.{owner.__qualname__}': owner
        for owner in (
            *(set, frozenset, slice, complex, bytearray, OrderedDict, InstanceData),
            *(np.ndarray, np.dtype, torch.Size, torch.device),
        )
    },
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch.storage._load_from_bytes': _storage,
    '_codecs.encode': _latin1,
}


class SafeUnpickler(pickle.Unpickler):
    """Restores plain Python, arrays, tensors and mmdet's instances."""

    def find_class(self, module: str, name: str) -> object:
        module = 'builtins' if module == '__builtin__' else module  # as protocol 2 calls it
        name = f'{module}.{name}'
        if name not in PICKLED:
            raise UsageError(
                f'a pickle holds more than arrays and plain values ({name}), and reading that can '
                'run any code: if you trust its source, add --trust-checkpoint'
            )
        return PICKLED[name]


class SafePickleHandler(PickleHandler):
    """MMEngine's pickles, read without running code."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs) -> object:
        return SafeUnpickler(file, **kwargs).load()


class SafeYamlHandler(YamlHandler):
    """MMEngine's YAML, without the tags that name Python's functions."""

    def load_from_fileobj(self, file: TextIO, **kwargs) -> object:
        # MMEngine looks for a base config in all metafiles of mmdet: in Python that takes seconds.
        return yaml.load(file, getattr(yaml, 'CSafeLoader', yaml.SafeLoader))


_trusted = False
_everywhere = ExitStack()


def load_safely(trust: bool) -> None:
    """Make MMEngine in this process read checkpoints, pickles and YAML without running code.

    MMEngine itself falls back to full unpickling, with a warning, where safe reading fails. It also
    runs the text under ``meta['config']`` of a checkpoint that it resumes, so that goes.

    Args:
        trust: Read whatever a file holds instead.
    """
    global _trusted
    _trusted = trust
    # PyTorch heeds it in every torch.load, whatever its caller asks for.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '0' if trust else '1'
    _everywhere.close()
    if not trust:
        _everywhere.enter_context(safe_globals(ALLOWED))

    def load_from_safe_reader(filename: str, map_location: str | None = None) -> dict:
        checkpoint = read_checkpoint(filename)
        if not trust and isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)
        return checkpoint

    CheckpointLoader.register_scheme(['', *SCHEMES], load_from_safe_reader, force=True)
    register_handler(['pickle', 'pkl'])(PickleHandler if trust else SafePickleHandler)
    register_handler(['yaml', 'yml'])(YamlHandler if trust else SafeYamlHandler)
