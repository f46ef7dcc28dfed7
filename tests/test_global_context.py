"""The networks of cue and legend cannot see a mark from a thing through their convolutions; the
tables of the study say what its runs say.
"""

import statistics

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from benchmarking import comparison

SIZE, STRIDE, NEAREST_MARK = 128, 8, 33


def gradient_maps(task: str, global_mixer: dict | None) -> dict[int, torch.Tensor]:
    """|d logits of pixel (p, p) / d image| for the pixels of one cell of the coarsest map."""
    cfg = Config.fromfile(f'configs/segformer_convneur_{task}.py')
    cfg.model.backbone.global_mixer = global_mixer
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).double().eval()
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert sum(p.numel() for p in model.parameters()) < 1e6
    image = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    logits = model.encode_decode(image, [dict(img_shape=(SIZE, SIZE))])
    maps = {}
    for p in range(SIZE // 2, SIZE // 2 + STRIDE):
        target = logits[0, :, p, p].square().sum()
        (gradient,) = torch.autograd.grad(target, image, retain_graph=True)
        maps[p] = gradient.abs().sum((0, 1))
    return maps


def distance_from(p: int) -> torch.Tensor:
    offset = (torch.arange(SIZE) - p).abs()
    return torch.maximum(offset[:, None], offset)


@pytest.mark.parametrize('task', ['cue', 'legend'])
def test_convolutions_see_less_far_than_the_mark(task):
    maps = gradient_maps(task, None)
    assert 20 < max(distance_from(p)[g > 0].max() for p, g in maps.items()) < NEAREST_MARK
    for gradient in gradient_maps(task, dict(type='NeuralMemory')).values():
        assert (gradient > 0).all()


def run(row: str, rate: float, seed: int, *scores: float) -> dict:
    scores = [(100 * (i + 1), score) for i, score in enumerate(scores)]
    return dict(row=row, rate=rate, seed=seed, scores=scores, cpu_minutes=2.0)


def test_best_rate_is_that_of_the_last_score_of_the_first_seed():
    runs = [run('a', 0.1, 0, 90, 30), run('a', 0.2, 0, 10, 50), run('a', 0.4, 0, 20, 40)]
    others = [run('a', 0.2, 1, 5, 60), run('a', 0.2, 2, 5, 85)]
    assert comparison.best_rate(runs + others) == 0.2
    assert [r['seed'] for r in comparison.at_best(runs + others)] == [0, 1, 2]
    head, _, line = comparison.accuracy_table(runs + others).splitlines()
    assert head.count('seed') == 5
    mean, deviation = statistics.mean((50, 60, 85)), statistics.stdev((50, 60, 85))
    assert line == (
        f'| a | 30.0 | 50.0 | 40.0 | 0.2 | 60.0 | 85.0 | **{mean:.1f}** ± {deviation:.1f} | 60.0 '
        '| 2.0 |'
    )


def test_a_finished_run_is_found_again_by_its_config_whoever_wrote_it(tmp_path):
    path = tmp_path / 'benchmarks' / 'global_branches.json'
    first = comparison.Finished(path)
    for config, score in ('aa', 10.0), ('bb', 20.0), ('aa', 30.0):
        first.add(run('a', 0.1, 0, score) | dict(config=config))
    second = comparison.Finished(path)
    assert second.records.keys() == {'aa', 'bb'}
    assert [comparison.final(second.records[c]) for c in ('aa', 'bb')] == [30.0, 20.0]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
