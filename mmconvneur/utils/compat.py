"""What the oldest PyTorch that is supported, 2.1, has not, under the names of the newest."""

from __future__ import annotations

import _compat_pickle
import codecs
import collections
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

try:
    from torch.compiler import is_compiling
except ImportError:
    from torch._utils import is_compiling  # noqa: F401


@contextmanager
def _safe_globals(allowed: list[Any]) -> Iterator[None]:
    """``torch.serialization.safe_globals``, and a reader of weights as strict as PyTorch 2.6's.

    Before, ``torch.load(weights_only=True)`` could be made to run code by a ``.tar`` file
    (CVE-2025-32434), handed TorchScript to its own loader, and built no object of a class that was
    not PyTorch's.
    """
    builtin = (set, bytearray, complex, collections.Counter, torch.device, codecs.encode)
    dtypes = {str(x): x for x in vars(torch).values() if isinstance(x, torch.dtype)}
    known = {
        **torch._weights_only_unpickler._get_allowed_globals(),
        **dtypes,
        **dict(_named(x) for x in (*builtin, *allowed)),
    }

    python: Any = pickle._Unpickler  # has methods that type checkers do not know

    class Unpickler(python):
        """Python's, which can only name what is allowed and cannot change it."""

        def find_class(self, module: str, name: str) -> object:
            path = f'{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}'
            if path not in known:
                raise pickle.UnpicklingError(f'GLOBAL {path} is not allowed')
            return known[path]

        def load_build(self) -> None:
            if isinstance(self.stack[-2], (type, FunctionType)):
                raise pickle.UnpicklingError(f'BUILD changes class {self.stack[-2].__name__}')
            super().load_build()

        dispatch = {**python.dispatch, pickle.BUILD[0]: load_build}

    def load(file: Any, **kwargs: Any) -> object:
        return Unpickler(file, **kwargs).load()

    def is_torchscript(archive: Any) -> bool:
        if 'constants.pkl' in archive.get_all_records():
            raise pickle.UnpicklingError('a TorchScript archive is code')
        return False

    with mock.patch.multiple(
        torch.serialization,
        _weights_only_unpickler=SimpleNamespace(Unpickler=Unpickler, load=load),
        _is_torchscript_zip=is_torchscript,
        _should_read_directly=lambda file: False,  # without it a .tar file is no checkpoint
    ):
        yield


def _named(allowed: Any) -> tuple[str, object]:
    if isinstance(allowed, tuple):
        value, name = allowed
        return name, value
    return f'{allowed.__module__}.{allowed.__qualname__}', allowed


# PyTorch compares its version to text as versions.
safe_globals: Callable[[list[Any]], AbstractContextManager] = (
    _safe_globals if torch.__version__ < '2.6' else torch.serialization.safe_globals
)
