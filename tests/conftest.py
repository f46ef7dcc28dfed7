from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer
from steps import without_tf32
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

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


class OnDevice(TorchFunctionMode):
    """Tensors that are made without a device stand on this one, random ones as a CPU draws them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _device_constructors() and kwargs.get('device') is None:
            made = function(*args, **kwargs)
            return made.detach().to(self.device).requires_grad_(made.requires_grad)
        if kwargs.get('generator') is not None and args[0].device.type == self.device:  # in place
            drawn = function(torch.empty(args[0].shape, dtype=args[0].dtype), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        return function(*args, **kwargs)


@pytest.fixture(
    scope='module',
    params=[
        'cpu',
        *([pytest.param('cuda', marks=pytest.mark.gpu)] if torch.cuda.is_available() else []),
    ],
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test computes: on the CPU, and once more on a GPU where there is one."""
    if request.param == 'cpu':
        yield 'cpu'
        return
    with without_tf32(), OnDevice(request.param):
        yield request.param


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
