"""Tools in processes of their own, forked from a server that has imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import torch


def run_tool(
    cwd: Path, argv: list[str], stdout: Path, stderr: Path, environment: dict[str, str]
) -> int:
    """The exit status of ``python argv...``, which is in a process group of its own.

    What it prints is appended to two files, or to one. It computes with one thread, so that sums
    are in one order.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmdet.apis', 'mmseg.apis', 'mmconvneur'])
    process = context.Process(target=_run, args=(cwd, argv, stdout, stderr, environment))
    process.start()
    process.join()
    return process.exitcode


def _run(
    cwd: Path, argv: list[str], stdout: Path, stderr: Path, environment: dict[str, str]
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(environment, OMP_NUM_THREADS='1')
    torch.set_num_threads(1)
    for path, descriptor in (stdout, 1), (stderr, 2):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = argv
    runpy.run_path(argv[0], run_name='__main__')
