"""Whole models by mmdeploy, with the code of docs/deploy.md: they find what PyTorch finds."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from steps import ROOT

from mmconvneur.apis.model_zoo import released
from sample_data import make_dataset

pytest.importorskip('mmdeploy', reason='mmdeploy is not installed')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mask_rcnn', 'upernet'])
def test_a_deployed_model_finds_what_pytorch_finds(name, tmp_path, monkeypatch):
    page = (ROOT / 'docs/deploy.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', page, re.M | re.S)
    (code,) = (block for block in blocks if 'torch2onnx' in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    make_dataset('sample', tmp_path / 'data/sample', num_train=1, num_val=6, size=192)
    made = {}
    exec(code.replace('mask_rcnn', name), made)
    task, deployed = made['task'], made['deployed']
    expected = task.build_pytorch_model(released(f'{name}_convneur_m1_sample').weights).eval()
    cfg = task.model_cfg
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    metrics = []
    for model in (deployed, expected):
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        found = []
        for i in range(len(dataset)):
            with torch.no_grad():
                found += model.test_step(pseudo_collate([dataset[i]]))
            evaluator.process(found[-1:])
        metrics.append((evaluator.evaluate(len(dataset)), found))
    (ours, results), (theirs, references) = metrics
    assert ours == pytest.approx(theirs, abs=0.002)
    for result, reference in zip(results, references, strict=True):
        if name == 'upernet':
            labels = result.pred_sem_seg.data, reference.pred_sem_seg.data
            assert (labels[0] != labels[1]).float().mean() <= 1e-4
            continue
        a, b = result.pred_instances, reference.pred_instances
        assert len(a) == len(b) > 0
        assert a.labels.tolist() == b.labels.tolist()
        torch.testing.assert_close(a.bboxes, b.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        assert (a.masks != b.masks).float().mean() <= 1e-3
