"""Folders that a run writes to: writable, large enough, and of no other run."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import UsageError
from ..utils.configs import metrics
from .data import Run
from .findings import Finding, doubt, wrong

LOCK = '.running'
_held: list = []  # closing a file of a lock would release it


def check_folder(what: str, folder: str | Path) -> Iterator[Finding]:
    """The folder can be made and written to; ``what`` names the option that chose it."""
    folder = Path(folder).expanduser()
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    if not nearest.is_dir():
        yield wrong(f'{what} {folder}: {nearest} is a file; move it away or choose another folder')
        return
    try:
        with tempfile.NamedTemporaryFile(dir=nearest, prefix='.writable') as file:
            file.write(b'0' * 4096)
            file.flush()
    except OSError as error:
        yield wrong(f'{what} {folder} cannot be written to: {error.strerror}; choose another one')


def check_file(what: str, path: str | Path) -> Iterator[Finding]:
    path = Path(path).expanduser()
    if path.is_dir():
        yield wrong(f'{what} {path} is a folder: give the name of a file')
    else:
        yield from check_folder(what, path.parent)


def check_outputs(run: Run) -> Iterator[Finding]:
    """What the config names can be written: folders of checkpoints, files of metrics."""
    given = []
    if run.train:
        hook = (run.cfg.get('default_hooks') or {}).get('checkpoint') or {}
        given.append(('default_hooks.checkpoint', 'out_dir', hook))
    for split in run.splits:
        for metric in metrics(run.cfg, split.name):
            for option in ('output_dir', 'outfile_prefix'):
                given.append((f'{split.name}_evaluator', option, metric))
    for place, option, part in given:
        path = part.get(option)
        if path and '://' not in path:
            check = check_file if option == 'outfile_prefix' else check_folder
            yield from check(f'{place}.{option}', path)


def check_unused(folder: str | Path) -> Iterator[Finding]:
    """The work folder of a run from the beginning holds no checkpoints of another one."""
    if any(Path(folder).expanduser().glob('*.pth')):
        yield doubt(
            f'{folder} holds checkpoints of an earlier training, which this one will overwrite: '
            'choose another --work-dir, or add --resume to continue that one'
        )


def check_room(run: Run, folder: str | Path) -> Iterator[Finding]:
    """The disk has room for the checkpoints that are kept."""
    folder = Path(folder)
    nearest = next((path for path in (folder, *folder.parents) if path.is_dir()), Path())
    if run.model is None:
        return
    free = shutil.disk_usage(nearest).free
    each = 12 * sum(p.numel() for p in run.model.parameters())  # weights, two moments of Adam
    kept = ((run.cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('max_keep_ckpts', -1)
    needed = each * (max(kept, 1) + 2)  # resume.pth, and the one that is being written
    if free < needed:
        text = (
            f'the disk of {folder} has {free / 2**30:.1f} GiB left, and checkpoints take '
            f'{each / 2**30:.1f} GiB each, {needed / 2**30:.1f} GiB in all: make room, choose '
            'another --work-dir, or keep fewer (default_hooks.checkpoint.max_keep_ckpts)'
        )
        yield wrong(text) if free < 2 * each else doubt(text)


def hold(folder: str | Path) -> None:
    """Keep a work folder to this process until it ends, however it ends.

    Raises:
        UsageError: If another training holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    # A record lock: workers that a killed run leaves behind do not inherit it.
    file = open(Path(folder, LOCK), 'a+')  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or 'another process'
        file.close()
        raise UsageError(
            f'a training is running in {folder} ({owner}), and two would overwrite each other: '
            'give another --work-dir, or wait for its end'
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    _held.append(file)
