"""Checkpoints that a kill cannot spoil, and the one to resume from."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

ATOMIC = dict(backend='mmconvneur_atomic')
RESUME_FILE = 'resume.pth'
PICKLE_2 = b'\x80\x02'  # how a pickle of protocol 2 begins


class AtomicBackend(LocalBackend):
    """Local files that appear under their name only when they are complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        partial = Path(f'{filepath}.partial')
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, filepath)


register_backend(ATOMIC['backend'], AtomicBackend, force=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is whole as far as its container tells.

    PyTorch writes zip archives, whose index comes last; files from before 1.6 are bare pickles.
    """
    with path.open('rb') as file:
        return zipfile.is_zipfile(file) or file.seek(0) == 0 and file.read(2) == PICKLE_2


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint that training can continue from, or ``None``.

    MMEngine's ``last_checkpoint`` file names one too, but a kill can leave it empty. The best
    checkpoints (``best_*``) hold no optimizer, so they are no candidates.
    """
    names = ('epoch_*.pth', 'iter_*.pth', RESUME_FILE)
    found = [path for name in names for path in Path(work_dir).glob(name) if is_checkpoint(path)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
