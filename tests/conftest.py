from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer

from sample_data import make_dataset


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """With mmcv-lite, a test ends where mmdet and mmseg ask for mmcv's operators."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name == 'mmcv._ext':
            pytest.skip('mmcv has no operators')
        raise


@pytest.fixture(scope='session')
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose data/sample holds 24 training and 6 validation images of 96 pixels."""
    folder = tmp_path_factory.mktemp('sample')
    make_dataset('sample', folder / 'data' / 'sample', num_train=24, num_val=6, size=96)
    return folder


def forget_runs() -> None:
    """Tools that ran in this process leave MMEngine's named instances, which write where the run
    before did, and PyTorch told to read safely."""
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    for manager in (MMLogger, Visualizer, *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True, scope='module')
def nothing_left_of_other_modules() -> None:
    forget_runs()


@pytest.fixture(autouse=True)
def nothing_left_of_other_tests() -> None:
    forget_runs()
