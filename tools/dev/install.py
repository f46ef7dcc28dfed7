"""Make .venv with everything this repository needs: ``make install`` runs it.

A finished step leaves a stamp in .venv/stamps and is not repeated until what it depends on
changes; an interrupted one is repeated. Logs are in .venv/logs. It uses the standard library
alone, because it runs with the system's Python.

Environment variables:
    TORCH: what ``pip install`` is given for PyTorch, options included (default: torch==2.13.0,
        then whatever was named last). To choose among the builds of one version name it in full,
        as in ``TORCH='torch==2.13.0+cu130 --index-url <where pytorch.org says that build is>'``.
    FORCE_CUDA: 1 compiles mmcv's CUDA operators where no GPU is visible during the build.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOGS = VENV / 'logs'
STAMPS = VENV / 'stamps'
ENVIRONMENT = ROOT / 'mmconvneur' / 'utils' / 'environment.py'

OLDEST, NEWEST = (3, 10), (3, 12)
BUILD_TOOLS = 'pip setuptools>=80 wheel packaging ninja psutil'
TORCH = 'torch==2.13.0'
OPERATORS = """
import torch, mmcv._ext as ops
built_for = ops.get_compiling_cuda_version()
assert not torch.cuda.is_available() or built_for != 'not available', 'compiled without CUDA'
"""
LOCK = os.open(ROOT, os.O_RDONLY)


class InstallError(Exception):
    """Something the user has to mend; the message says how."""


class Progress:
    """What a running command has said so far, as one line for the user."""

    counter = re.compile(r'\[(\d+)/(\d+)\]')  # how ninja counts the objects it has compiled

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.count = self.total = 0
        self.last = ''

    def see(self, line: str) -> None:
        self.last = line.strip() or self.last
        if match := self.counter.match(line.strip()):
            self.count, self.total = int(match[1]), int(match[2])

    def __str__(self) -> str:
        elapsed = time.monotonic() - self.start
        line = f'{clock(elapsed)} elapsed'
        if not self.count:
            return f'{line}  {self.last[:72]}'
        left = elapsed / self.count * (self.total - self.count)
        return f'{line}  {self.count} of {self.total} files compiled  about {clock(left)} left'


def clock(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02}'


def show(text: str, end: str = '\n') -> None:
    """Print a line; on a terminal over the last one, which ``end=''`` leaves open for that."""
    if sys.stdout.isatty():
        print('\r\x1b[K' + text[: shutil.get_terminal_size().columns - 1], end=end, flush=True)
    else:
        print(text, flush=True)


def run(log_name: str, *command: str) -> None:
    """Run a command in the environment with its output in a log and a progress line here."""
    log_path = LOGS / f'{log_name}.log'
    progress = Progress()
    # Its own session, so that a signal to us can end the compilers that pip has started as well.
    # The lock is passed on: a build that outlives a killed installer still keeps others out.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, 'PATH': f'{PYTHON.parent}{os.pathsep}{os.environ["PATH"]}'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
        pass_fds=[LOCK],
    )

    def follow() -> None:
        with log_path.open('w', buffering=1) as log:
            print('$', shlex.join(command), file=log)
            for line in process.stdout:
                log.write(line)
                progress.see(line)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            try:
                process.wait(timeout=1 if sys.stdout.isatty() else 15)
            except subprocess.TimeoutExpired:
                show(f'      {progress}', end='')
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)  # lets pip remove its temporary folders
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    reader.join()
    took = clock(time.monotonic() - progress.start)
    if process.returncode:
        show(f'      failed after {took}; the last lines of {log_path}:')
        print('\n'.join(log_path.read_text().splitlines()[-25:]), flush=True)
        raise InstallError(f'the installation of {log_name} failed: see {log_path}')
    show(f'      done in {took}')


def pip(log_name: str, *arguments: str) -> None:
    run(log_name, str(PYTHON), '-m', 'pip', 'install', '--progress-bar=off', *arguments)


def error_of(code: str) -> str:
    """The last line that a piece of Python prints on failing in the environment, '' if it works."""
    done = subprocess.run([PYTHON, '-c', code], cwd=ROOT, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ''


# --- steps ---


def check_machine() -> None:
    """Name all that the build would miss, at once."""
    missing = {
        'python3-venv': importlib.util.find_spec('ensurepip') is None,
        'python3-dev': not Path(sysconfig.get_path('include'), 'Python.h').exists(),
        'g++': shutil.which(os.environ.get('CXX', 'c++').split()[0]) is None,
    }
    names = ' '.join(name for name, absent in missing.items() if absent)
    if names:
        sudo = '' if os.geteuid() == 0 else 'sudo '
        raise InstallError(
            f'this machine lacks {names} (needed to make .venv and to compile mmcv); '
            f'on Debian or Ubuntu: {sudo}apt-get install {names}'
        )


def make_venv() -> None:
    supported = f'{OLDEST} <= sys.version_info[:2] <= {NEWEST}'
    if PYTHON.exists() and not error_of(f'import sys, pip; assert {supported}'):
        return
    show(f'making {VENV}')
    done = subprocess.run(
        [sys.executable, '-m', 'venv', '--clear', VENV], capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout + done.stderr, end='')
        raise InstallError(f'{sys.executable} could not make {VENV}')


def install_package() -> None:
    pip('package', '--no-build-isolation', '--editable', '.[onedl,sample,dev]')
    mend_opencv()


def mend_opencv() -> None:
    """Put the headless build over an OpenCV that does not load."""
    if not error_of('import cv2'):
        return
    show('      opencv-python (asked for by imaug and mmcv) needs libGL, which this machine lacks:')
    show('      putting opencv-python-headless, the same without windows, over it')
    query = 'from importlib.metadata import version; print(version("opencv-python"))'
    version = subprocess.check_output([PYTHON, '-c', query], text=True).strip()
    pip('opencv', '--force-reinstall', '--no-deps', f'opencv-python-headless=={version}')
    if error := error_of('import cv2'):
        raise InstallError(f'OpenCV does not load: {error}')


def install_mmcv(requirement: str) -> None:
    show('      its operators are compiled once (about 8 minutes on 2 cores), then cached by pip')
    command = ('--verbose', '--no-build-isolation', requirement)
    pip('mmcv', *command)
    mend_opencv()
    if error := error_of(OPERATORS):
        # pip also caches a wheel that was built without operators, or for another PyTorch.
        show(f'      the cached build is of no use ({error}): compiling')
        pip('mmcv', '--no-cache-dir', '--force-reinstall', '--no-deps', *command)
    if error := error_of(OPERATORS):
        raise InstallError(f'mmcv was built without working operators ({error}): see {LOGS}')


def check() -> None:
    if subprocess.run([PYTHON, ENVIRONMENT], cwd=ROOT).returncode:
        raise InstallError('the packages do not fit together: see the verdict above')


def stamp_of(name: str) -> str:
    stamp = STAMPS / name
    return stamp.read_text() if stamp.exists() else ''


def install() -> None:
    tested = runpy.run_path(str(ENVIRONMENT))['TESTED']
    torch = os.environ.get('TORCH') or stamp_of('torch') or TORCH
    mmcv = 'onedl-mmcv' + tested['onedl-mmcv']
    setup = hashlib.sha256((ROOT / 'setup.py').read_bytes()).hexdigest()
    package = f'{ROOT}\n{tested}\n{setup}'
    # Name, what it depends on, how it is done. mmcv's build imports torch. The rest of the family
    # goes before mmcv so that the numpy and OpenCV it pins are there already.
    steps = [
        ('tools', BUILD_TOOLS, lambda: pip('tools', '--upgrade', *BUILD_TOOLS.split())),
        ('torch', torch, lambda: pip('torch', *shlex.split(torch))),
        ('package', package, install_package),
        ('mmcv', f'{torch}\n{mmcv}', lambda: install_mmcv(mmcv)),
        ('check', f'{torch}\n{package}', check),
    ]
    if all(stamp_of(name) == key for name, key, _ in steps):
        return
    check_machine()
    make_venv()
    LOGS.mkdir(exist_ok=True)
    STAMPS.mkdir(exist_ok=True)
    for number, (name, key, action) in enumerate(steps, 1):
        if stamp_of(name) == key:
            continue
        show(f'[{number}/{len(steps)}] {name}')
        (STAMPS / name).unlink(missing_ok=True)
        action()
        (STAMPS / name).write_text(key)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        raise InstallError(
            f'Python {version[0]}.{version[1]} is not supported, 3.10 to 3.12 are; '
            'name one: make PYTHON=python3.11'
        )
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        show('another installation is running in this folder: waiting for it')
        fcntl.flock(LOCK, fcntl.LOCK_EX)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    install()


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted: run the same command again to go on')
    except InstallError as error:
        sys.exit(f'error: {error}')
