"""Checkpoints that a kill cannot spoil, and the one to resume from."""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from ..utils.files import write_atomically
from ..weights.containers import is_checkpoint

ATOMIC = dict(backend='mmconvneur_atomic')
RESUME_FILE = 'resume.pth'


class AtomicBackend(LocalBackend):
    """Local files that appear under their name only when they are complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


register_backend(ATOMIC['backend'], AtomicBackend, force=True)


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint that training can continue from, or ``None``.

    MMEngine's ``last_checkpoint`` file names one too, but a kill can leave it empty. The best
    checkpoints (``best_*``) hold no optimizer, so they are no candidates.
    """
    names = ('epoch_*.pth', 'iter_*.pth', RESUME_FILE)
    found = [path for name in names for path in Path(work_dir).glob(name) if is_checkpoint(path)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
