"""The models that ship: their maps and their metrics are the same on every machine."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from steps import build
from test_tools import TOOLS

from mmconvneur import ConvNeur
from mmconvneur.apis.model_zoo import metrics_of, read_index, released
from mmconvneur.evaluation.names import METRICS
from mmconvneur.utils.files import HOME
from mmconvneur.weights import read_state_dict
from publish_checkpoint import golden_maps
from sample_data import make_dataset

ENTRIES = {entry['Name']: entry for entry in read_index(HOME)}
LARGEST, ALL = 15e6, 40e6  # bytes
KEYS = {name: (key, factor) for key, (_, name, factor) in METRICS.items()}


def test_one_of_each_family_ships_and_is_small():
    assert {'mask_rcnn_convneur_m1_sample', 'upernet_convneur_m1_sample'} <= set(ENTRIES)
    sizes = [Path(released(name).weights).stat().st_size for name in ENTRIES]
    assert max(sizes) < LARGEST and sum(sizes) < ALL


@pytest.mark.parametrize('name', ENTRIES)
def test_maps_of_a_fixed_input_are_the_golden_ones(name):
    release = released(name)
    cfg = Config.fromfile(release.config)
    model = build(cfg)
    model.load_state_dict(read_state_dict(release.weights))
    with np.load(Path(release.weights).with_suffix('.npz')) as golden:
        expected = [torch.from_numpy(golden[f'map_{i}']) for i in range(4)]
    for ours, theirs in zip(golden_maps(model.backbone), expected, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', ENTRIES)
def test_a_released_backbone_is_the_default_of_its_arch(name):
    """What users get when they name the arch alone is what the released weights show."""
    cfg = Config.fromfile(released(name).config).model.backbone.to_dict()
    init_default_scope('mmengine')
    parts = [MODELS.build(dict(cfg, init_cfg=None)), ConvNeur(cfg['arch'], init_cfg=None)]
    assert set(cfg) <= {'type', 'arch', 'drop_path_rate', 'with_cp', 'init_cfg'}
    ours, default = ({k: v.shape for k, v in part.state_dict().items()} for part in parts)
    assert ours == default


@pytest.mark.slow
def test_a_released_model_reaches_its_listed_metrics(tmp_path, monkeypatch):
    """The validation split alone is made, as it is in the whole data set."""
    name = 'mask_rcnn_convneur_m1_sample'
    make_dataset('sample', tmp_path / 'data' / 'sample', num_train=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['test.py', name, name, '--work-dir', str(tmp_path / 'work')])
    runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    (file,) = (tmp_path / 'work').glob('*/*.json')
    reached = json.loads(file.read_text())
    for metric, listed in metrics_of(ENTRIES[name]).items():
        key, factor = KEYS[metric]
        assert reached[key] * factor == pytest.approx(listed, abs=0.001 * 100)
