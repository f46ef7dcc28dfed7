"""Files that would leave a trace if reading them ran code, see docs/safety.md."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from steps import CONFIGS

from mmconvneur import UsageError
from mmconvneur.utils.configs import load_config
from mmconvneur.utils.flat import read_flat
from mmconvneur.weights import read_checkpoint
from mmconvneur.weights.reading import load_safely
from publish_checkpoint import flat_config


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    return tmp_path / 'trace'


@pytest.fixture(autouse=True)
def nothing_is_trusted_later():
    yield
    load_safely(trust=False)


def dump(content: object, path: Path, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_that_mmengine_reads_run_nothing(protocol, trace, tmp_path):
    """Annotations, proposals and predictions."""
    path = dump([dict(boxes=Touch(trace))], tmp_path / 'annotations.pkl', protocol)
    load_safely(trust=False)
    with pytest.raises(UsageError, match=r'mkdir\), .* --trust-checkpoint'):
        mmengine.load(path)
    assert not trace.exists()
    load_safely(trust=True)
    mmengine.load(path)
    assert trace.exists()  # what was held off


@pytest.mark.parametrize('name', [
    *('builtins.eval', 'builtins.getattr', 'os.system', 'numpy.testing.runstring'),
    *('torch.load', 'numpy.load', 'pickle.loads', 'functools.partial', 'numpy.ndarray.tofile'),
])  # fmt: skip
def test_no_function_is_found_by_its_name(name, tmp_path):
    module, _, function = name.rpartition('.')
    (tmp_path / 'x.pkl').write_bytes(f'c{module}\n{function}\n.'.encode())
    load_safely(trust=False)
    with pytest.raises(UsageError, match=name):
        mmengine.load(tmp_path / 'x.pkl')


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_annotations_and_predictions_hold_is_read(protocol, tmp_path):
    instances = InstanceData(bboxes=np.arange(8.0).reshape(2, 4), scores=torch.rand(2))
    content = [
        dict(
            size=(3, 5),
            names={'a', 'b'},
            counts=b'\x00\xff02',
            area=np.float32(2.5),
            when=OrderedDict(x=1),
            label=torch.tensor([3, 1]),
            half=torch.rand(3, 2).half().t(),
        ),
        instances,
    ]
    path = dump(content, tmp_path / 'x.pkl', protocol)
    load_safely(trust=False)
    plain, found = mmengine.load(path)
    torch.testing.assert_close(plain.pop('half'), content[0].pop('half'), rtol=0, atol=0)
    torch.testing.assert_close(plain.pop('label'), content[0].pop('label'), rtol=0, atol=0)
    assert plain == content[0] and type(plain['area']) is np.float32
    assert (found.bboxes == instances.bboxes).all() and (found.scores == instances.scores).all()


def test_a_checkpoint_runs_nothing(trace, tmp_path):
    torch.save(dict(state_dict={}, meta=Touch(trace)), tmp_path / 'x.pth')
    with pytest.raises(UsageError, match='--trust-checkpoint'):
        read_checkpoint(tmp_path / 'x.pth')
    load_safely(trust=False)
    for read in (torch.load, lambda path: torch.load(path, weights_only=False)):
        with pytest.raises(pickle.UnpicklingError):
            read(tmp_path / 'x.pth')
    assert not trace.exists()


def test_yaml_runs_nothing(trace, tmp_path):
    path = tmp_path / 'config.yml'
    path.write_text(f'default_scope: !!python/object/apply:os.mkdir [{trace}]\n')
    with pytest.raises(UsageError, match='config.yml cannot be read'):
        load_config(argparse.Namespace(config=str(path), cfg_options={}))
    assert not trace.exists()


@pytest.mark.parametrize('text', [
    '{run}', 'a = {run}', 'a = dict(b=[{run}])', 'import os', 'a = f"{{ {run} }}"',
    'a = dict(**{run})', 'a = dict({run})', 'a: {run} = 1', 'a = [x for x in {run}]',
    'def a(x={run}): pass', 'a.b = 1', 'a, b = 1, 2',
    """a = {{"x': {run}, 'y": 1, 'b c': 2}}""",  # MMEngine writes names without escapes
])  # fmt: skip
def test_the_config_of_a_published_checkpoint_is_not_run(text, trace):
    text = text.format(run=f"__import__('os').mkdir({str(trace)!r})")
    with pytest.raises(UsageError, match='more than plain values'):
        flat_config(dict(cfg=text, seed=0))
    assert not trace.exists()


@pytest.mark.parametrize('name', ['mask_rcnn_convneur_t_3x_coco', 'upernet_convneur_m1_sample'])
def test_a_flat_config_is_read_as_mmengine_runs_it(name):
    text = Config.fromfile(CONFIGS / f'{name}.py').pretty_text
    assert read_flat(text) == Config.fromstring(text, '.py').to_dict()
