"""Checkpoints that a kill cannot spoil, and the one to resume from."""

from __future__ import annotations

import sys
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend

from ..errors import UsageError
from ..utils.files import write_atomically
from ..weights.reading import read_checkpoint

ATOMIC = dict(backend='mmconvneur_atomic')
RESUME_FILE = 'resume.pth'
VALIDATION_FILE = 'last_validation'


class AtomicBackend(LocalBackend):
    """Local files that appear under their name only when they are complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


register_backend(ATOMIC['backend'], AtomicBackend, force=True)


def read_training(path: str | Path) -> dict:
    """A checkpoint that training can continue from, with its tensors left on the disk.

    Raises:
        UsageError: If it cannot be read, or holds no optimizer (published weights, ``best_*``).
    """
    checkpoint = read_checkpoint(path, on_disk=True)
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict) or not {'epoch', 'iter'} <= meta.keys():
        raise UsageError(
            f'checkpoint {path} holds no state of a training: give one that tools/train.py wrote; '
            f'to start a new run from these weights, use --cfg-options load_from={path}'
        )
    if not {'optimizer', 'message_hub'} <= checkpoint.keys():
        raise UsageError(
            f'checkpoint {path}, of iteration {meta["iter"]}, holds no optimizer '
            '(the best_* files have none): resume from another of the run; to start a new run '
            f'from these weights, use --cfg-options load_from={path}'
        )
    return checkpoint


def latest_checkpoint(*folders: str | Path) -> Path | None:
    """The newest checkpoint in the folders that training can continue from, or ``None``.

    The newest is the one that was written last, which is in the file: its date changes when it is
    copied. MMEngine's ``last_checkpoint`` names one too, but a kill can leave it empty.
    """
    found = {}
    for path in [path for folder in folders for path in sorted(Path(folder).glob('*.pth'))]:
        try:
            meta = read_training(path)['meta']
        except UsageError as error:
            if not path.name.startswith('best_'):
                print(f'--resume passes over {path}: {error}', file=sys.stderr)
            continue
        found[path] = meta.get('saved', 0), meta['iter'], meta['epoch']
    return max(found, key=found.__getitem__, default=None)


# ------------------------------------------------------------------------------------- validations
def note_validation(work_dir: str | Path, iteration: int) -> None:
    """Keep the number of iterations that the last complete validation followed."""
    if is_main_process():
        write_atomically(Path(work_dir) / VALIDATION_FILE, str(iteration))


def last_validation(work_dir: str | Path) -> int:
    """What :func:`note_validation` kept, or 0."""
    path = Path(work_dir) / VALIDATION_FILE
    return int(path.read_text()) if path.is_file() else 0
