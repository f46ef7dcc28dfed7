"""The benchmark counts right, runs, and reports what it measured. Nothing here looks at a time."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarking import cases, measure
from benchmarking.backbones import build, configure
from benchmarking.cases import Case, Contestant, parse_contestant, run_case
from benchmarking.report import Results, environment
from mmconvneur import UsageError
from mmconvneur.models import ConvNeur
from mmconvneur.models.layers.local_branch import LocalBranch
from mmconvneur.models.mixers import NeuralMemory
from mmconvneur.utils import timing

ROOT = Path(__file__).parent.parent
CPU = torch.device('cpu')
TINY = dict(type='mmconvneur.ConvNeur', arch=dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1)))
# The tool on a machine whose mmcv has no compiled operators.
WITHOUT_OPERATORS = """
import runpy, sys
sys.modules['mmcv._ext'] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, 'tools')  # as for a tool that is run by itself
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(autouse=True)
def small_matmul(monkeypatch):
    monkeypatch.setattr(cases, 'MATMUL_SIZES', dict(cpu=31))


# ------------------------------------------------------------------------------- multiplications
def attention(batch: int, heads: int, queries: int, keys: int, width: int) -> Callable:
    q = torch.randn(batch, heads, queries, width, requires_grad=True)
    k, v = (torch.randn(batch, heads, keys, width, requires_grad=True) for _ in range(2))
    return lambda: F.scaled_dot_product_attention(q, k, v)


def layer(module: nn.Module, *shape: int) -> Callable:
    x = torch.randn(shape, requires_grad=True)
    return lambda: module(x)


# (B, C, H, W) = (2, 6, 11, 13) -> 5 x 6 positions with kernel 3 and stride 2, unpadded.
@pytest.mark.parametrize(
    'step, macs',
    [
        (layer(nn.Conv2d(6, 7, 3, 2), 2, 6, 11, 13), 2 * 5 * 6 * 7 * 6 * 3 * 3),
        (layer(nn.Conv2d(6, 6, 3, 2, groups=6), 2, 6, 11, 13), 2 * 5 * 6 * 6 * 3 * 3),
        (layer(nn.Linear(5, 3), 2, 7, 5), 2 * 7 * 5 * 3),
        (layer(nn.Linear(5, 3, bias=False), 2, 7, 11, 5), 2 * 7 * 11 * 5 * 3),
        (lambda: torch.randn(2, 3, 5, 7) @ torch.randn(2, 3, 7, 11), 2 * 3 * 5 * 7 * 11),
        (attention(2, 3, 5, 7, 11), 2 * 3 * 5 * 7 * 11 * 2),
        (lambda: torch.randn(5, 7) * torch.randn(5, 7), 0),
    ],
    ids=['conv', 'depthwise', 'linear', 'no_bias', 'matmul', 'attention', 'elementwise'],
)
def test_macs_of_one_layer(step, macs):
    with torch.no_grad():
        assert measure.count_macs(step) == macs
    assert measure.count_macs(step) == macs


@pytest.mark.parametrize(
    'module, shape',
    [
        (nn.Conv2d(6, 7, 3, 2), (2, 6, 11, 13)),
        (nn.Conv2d(6, 6, 3, 2, groups=6), (2, 6, 11, 13)),
        (nn.Linear(5, 3), (2, 7, 5)),
    ],
    ids=['conv', 'depthwise', 'linear'],
)
def test_a_backward_pass_costs_twice_the_forward_pass(module, shape):
    x = torch.randn(shape)
    forward = measure.count_macs(lambda: module(x))
    # The image needs no gradient, an inner map does.
    assert measure.count_macs(lambda: module(x).sum().backward()) == 2 * forward
    x.requires_grad_()
    assert measure.count_macs(lambda: module(x).sum().backward()) == 3 * forward


def test_macs_of_attention_with_gradients():
    """Backward: q k^T once more, then the gradients of q, k, v and of the weights."""
    step = attention(2, 3, 5, 7, 11)
    one = 2 * 3 * 5 * 7 * 11
    assert measure.count_macs(lambda: step().sum().backward()) == 2 * one + 5 * one


def test_macs_of_a_block_of_convneur():
    """Local branch and memory by hand, inner steps included."""
    dim, height, width, heads, head_dim = 11, 5, 7, 3, 13
    tokens, memory_dim = height * width, heads * head_dim
    local = LocalBranch(dim, mlp_ratio=2, kernel_size=3, gamma=1.0)
    memory = NeuralMemory(dim, memory_dim, heads)
    x = torch.randn(2, dim, height, width)

    by_hand = tokens * dim * 3 * 3  # depthwise convolution
    by_hand += tokens * dim * (2 * dim) * 2  # W_1, W_2
    assert measure.count_macs(lambda: local(x)) == 2 * by_hand

    by_hand = tokens * dim * memory_dim * 2  # W_in, W_out
    by_hand += tokens * memory_dim * heads  # write weights
    by_hand += tokens * memory_dim * 3 * 3  # short convolution
    by_hand += tokens * memory_dim * memory_dim * 3  # q, k, v
    by_hand += tokens * memory_dim * head_dim * 2  # K^T V and K^T K of all heads
    by_hand += heads * head_dim**3 * 4 * 2  # four doublings of M and H
    by_hand += tokens * memory_dim * head_dim  # read
    assert measure.count_macs(lambda: memory(x)) == 2 * by_hand


# ---------------------------------------------------------------------------------------- memory
def test_peak_memory_is_the_highest_sum_of_live_tensors():
    before = torch.randn(1000)

    def step() -> torch.Tensor:
        a, b = torch.empty(300_000), torch.empty(50_000)
        del a
        c = torch.empty(200_000)  # less than a: the peak is behind
        return b.sum() + c.sum() + before.sum()

    peak = measure.peak_memory(step, CPU)
    assert 4 * 350_000 <= peak < 4 * 350_000 + 1024


def test_peak_memory_of_training_holds_activations():
    """relu(x W) V: besides the output, x W, its relu and three gradients are held."""
    first, second = nn.Linear(53, 59, bias=False), nn.Linear(59, 61, bias=False)
    x = torch.randn(4099, 53)
    held, map_bytes = x.size(0) * 4, x.size(0) * 59 * 4
    with torch.no_grad():
        forward = measure.peak_memory(lambda: second(first(x).relu_()), CPU)
    assert held * (59 + 61) == forward
    train = measure.peak_memory(lambda: second(first(x).relu()).sum().backward(), CPU)
    assert train >= 2 * map_bytes + held * 61


# ---------------------------------------------------------------------------------------- timing
def test_every_round_runs_every_step_once():
    ran = []
    steps = {name: lambda name=name: ran.append(name) for name in 'abcd'}

    def clock(step: Callable) -> float:
        step()
        return float(len(ran))  # the time is the position at which it ran

    times = timing.race(steps, 5, clock)
    rounds = [ran[i : i + 4] for i in range(0, 20, 4)]
    assert [sorted(r) for r in rounds] == [list('abcd')] * 5
    assert len({tuple(r) for r in rounds}) > 1  # nobody always runs first
    for name in 'abcd':
        assert times[name] == [4 * i + r.index(name) + 1 for i, r in enumerate(rounds)]


def test_ratios_are_taken_round_by_round():
    # The machine is three times slower in the last two rounds; the ratio does not see it.
    baseline, other = [1.0, 2.0, 3.0, 3.0, 6.0], [2.0, 4.0, 6.0, 9.0, 6.0]
    assert timing.ratios(other, baseline) == [2.0, 2.0, 2.0, 3.0, 1.0]
    assert timing.Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert timing.Spread.of([1.0, 2.0]) == (1.5, 1.25, 1.75)


# ------------------------------------------------------------------------------------- backbones
# Parameters as published (with a 1000-class head and the norm before it, where there is one: newer
# versions of transformers keep Swin's in the backbone).
@pytest.mark.parametrize(
    'name, published, head, channels',
    [
        ('resnet-18', 11_689_512, 513_000, (64, 128, 256, 512)),
        ('hf-resnet-50', 25_557_032, 2_049_000, (256, 512, 1024, 2048)),
        ('swin-t', 28_288_354, 769_000 + 1536 - 2880, (96, 192, 384, 768)),
        ('mmseg-swin-t', 28_288_354, 769_000 + 1536 - 2880, (96, 192, 384, 768)),
        ('hf-swin-t', 28_288_354, 769_000 + 1536 - 2880, (96, 192, 384, 768)),
        ('hf-convnext-t', 28_589_128, 769_000 + 1536 - 2880, (96, 192, 384, 768)),
        ('convneur-t:local', 28_589_128, 769_000 + 1536 - 2880, (96, 192, 384, 768)),
        ('pvtv2-b0', 3_666_760, 257_000, (32, 64, 160, 256)),
        ('hf-pvtv2-b2', 25_362_856, 513_000, (64, 128, 320, 512)),
        ('mscan-t', None, None, (32, 64, 160, 256)),
    ],
)
def test_a_backbone_has_its_published_size_and_four_maps(name, published, head, channels):
    model = build(configure(name))
    model.eval()  # mmdet's return nothing here
    if published:
        sizes = {n: p.numel() for n, p in model.named_parameters()}
        before_head = sum(size for n, size in sizes.items() if 'swin.layernorm.' in n)
        assert sum(sizes.values()) - before_head == published - head
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    shapes = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes


def test_options_and_settings_of_a_name():
    plain = parse_contestant('convneur-m1', 'channels_last', 'eager')
    assert plain[2:] == ('channels_last', 'eager')
    assert configure('convneur-m1:local')['global_mixer'] is None
    published = configure('convneur-m1:PublishedNeuralMemory,placement=block,with_cp=True')
    assert published['global_mixer'] == dict(type='PublishedNeuralMemory')
    assert (published['placement'], published['with_cp']) == ('block', True)
    adapter = configure('convneur-m1:placement=[2,3],frozen_trunk=True')
    assert (adapter['placement'], adapter['frozen_trunk']) == ([2, 3], True)
    small = configure('convneur-m1:NeuralMemory,global_mixer.memory_dim=8')
    assert small['global_mixer'] == dict(type='NeuralMemory', memory_dim=8)
    assert configure('convneur-m1') == plain.config  # no name changes another
    other = parse_contestant('swin-t:with_cp=True@contiguous,compiled', 'channels_last', 'eager')
    assert (other.config['with_cp'], *other[2:]) == (True, 'contiguous', 'compiled')


# --------------------------------------------------------------------------------------- one case
@pytest.mark.parametrize('dtype', cases.DTYPES)
@pytest.mark.parametrize('mode', cases.MODES)
def test_rows_agree_with_what_was_run(dtype, mode):
    if dtype == 'float16' and torch.__version__ < '2.2':
        pytest.skip('PyTorch 2.1 has no float16 convolution on a CPU')
    case = Case(32, 64, 2, dtype, mode)
    contestants = [
        Contestant('base', TINY, 'channels_last', 'eager'),
        Contestant('local', dict(TINY, global_mixer=None), 'contiguous', 'eager'),
    ]
    runs = []
    rows = run_case(case, contestants, 'base', 3, CPU, advance=runs.append)
    assert sum(runs) == 2 * (cases.WARM_UPS + 3) + 3  # the matrix product runs as well
    base, local = rows
    model = ConvNeur(**{k: v for k, v in TINY.items() if k != 'type'}).eval()
    assert base['params'] == sum(p.numel() for p in model.parameters()) > local['params']
    with torch.no_grad():
        macs = measure.count_macs(lambda: model(torch.randn(1, 3, 32, 64)))
    assert base['macs'] == macs if mode == 'forward' else 2 * macs < base['macs'] < 3 * macs
    assert 0 < local['memory_bytes']
    assert mode == 'forward' or local['memory_bytes'] < base['memory_bytes']
    for row in rows:
        assert {k: row[k] for k in case._fields} == case._asdict()
        ratios = timing.ratios(row['times_ms'], base['times_ms'])
        assert row['ratio'] == pytest.approx(timing.Spread.of(ratios).median)
        assert row['time_ms'] == pytest.approx(timing.Spread.of(row['times_ms']).median)
        assert row['time_ms_q1'] <= row['time_ms'] <= row['time_ms_q3']
        assert row['peak_fraction'] > 0
    assert (base['layout'], local['layout']) == ('channels_last', 'contiguous')


def test_a_step_leaves_no_gradient_behind():
    model = build(TINY)
    seen = []
    model.stages[0][0].local_branch.pointwise_conv1.weight.register_hook(
        lambda g: seen.append(g.norm())
    )
    case = Case(32, 32, 1, 'float32', 'train')
    cases.make_step(model, torch.randn(1, 3, 32, 32), case)()
    assert len(seen) == 1 and seen[0] > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_a_compiled_step_costs_what_the_eager_one_does():
    one_stage = dict(TINY, arch=dict(channels=(32,), depths=(1,)), out_indices=0)
    contestants = [Contestant(e, one_stage, 'channels_last', e) for e in ('eager', 'compiled')]
    eager, compiled = run_case(Case(32, 32, 1, 'float32', 'forward'), contestants, 'eager', 1, CPU)
    assert compiled['execution'] == 'compiled'
    assert compiled['macs'] == eager['macs']
    # What is fused is not stored; PyTorch 2.1 keeps 1.2 to 1.9 % more all the same.
    most = 1.02 if torch.__version__ < '2.2' else 1
    assert 0 < compiled['memory_bytes'] <= most * eager['memory_bytes']


def test_who_cannot_run_is_left_out_in_one_line():
    swin = parse_contestant('swin-t', 'contiguous', 'eager')  # its masks stay float32
    contestants = [Contestant('base', TINY, 'contiguous', 'eager'), swin]
    case, lines = Case(64, 64, 1, 'bfloat16', 'forward'), []
    (row,) = run_case(case, contestants, 'base', 1, CPU, report=lines.append)
    assert row['backbone'] == 'base'
    assert len(lines) == 1 and '\n' not in lines[0]
    assert lines[0].startswith('swin-t is left out at 1 x 64x64, bfloat16, forward: RuntimeError')
    with pytest.raises(UsageError, match='the baseline swin-t does not run .* choose another'):
        run_case(case, contestants, 'swin-t', 1, CPU)


def test_cudagraphs_need_a_gpu():
    contestant = Contestant('a', TINY, 'contiguous', 'cudagraphs')
    with pytest.raises(UsageError, match='cudagraphs needs a GPU'):
        run_case(Case(32, 32, 1, 'float32', 'forward'), [contestant], 'a', 1, CPU)


# -------------------------------------------------------------------------------------- the tool
def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', WITHOUT_OPERATORS, 'tools/benchmark.py', *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_tool_on_a_machine_without_operators(tmp_path):
    common = ('convneur-m1', 'convneur-m1:local', 'swin-t', '--baseline', 'convneur-m1:local')
    common += ('--rounds', 2, '--threads', 1, '--device', 'cpu', '--out-dir', tmp_path)
    done = run(*common, '--sizes', 64)
    assert done.returncode == 0, done.stderr
    left_out = [line for line in done.stdout.splitlines() if line.startswith('swin-t')]
    assert len(left_out) == 1 and 'is left out' in left_out[0]
    first = json.loads((tmp_path / 'benchmark.json').read_text())
    assert first['environment']['threads'] == 1
    assert first['environment']['torch'] == torch.__version__
    assert [row['backbone'] for row in first['rows']] == ['convneur-m1', 'convneur-m1:local']

    done = run(*common, '--sizes', '64', '64x96')  # goes on, and keeps what was measured
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / 'benchmark.json').read_text())
    assert data['rows'][:2] == first['rows']
    assert [(row['height'], row['width']) for row in data['rows']] == [(64, 64)] * 2 + [
        (64, 96)
    ] * 2
    for row in data['rows']:
        assert f'{row["params"] / 1e6:.2f}' in done.stdout
        assert f'{row["ratio"]:.3f} ({row["ratio_q1"]:.3f}-{row["ratio_q3"]:.3f})' in done.stdout

    assert (tmp_path / 'benchmark.png').stat().st_size > 10_000
    assert not list(tmp_path.glob('*partial*'))


def test_an_interrupted_benchmark_keeps_finished_cases(tmp_path):
    case = Case(32, 32, 1, 'float32', 'forward')
    rows = run_case(case, [Contestant('a', TINY, 'contiguous', 'eager')], 'a', 2, CPU)
    Results(tmp_path, dict(rounds=2)).add(rows)
    found = Results(tmp_path, dict(rounds=2))
    assert found.of(case) == rows
    assert found.of(case._replace(batch_size=2)) == []
    with pytest.raises(UsageError, match=r'another benchmark \(rounds differ\): .*--out-dir'):
        Results(tmp_path, dict(rounds=3))


def test_another_allocator_is_another_environment(monkeypatch):
    plain = environment(CPU)
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '17179869184')
    assert environment(CPU) == plain | {'MALLOC_TRIM_THRESHOLD_': '17179869184'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['swin-x'], "unknown backbone 'swin-x': choose one of convneur-m1, .*hf-convnext-t"),
        (['convneur-t:nothing'], "unknown global mixer 'nothing': choose one of local, .*Neural"),
        (['swin-t:local'], 'swin-t:local: swin-t takes options of the form key=value'),
        (['swin-t@fast'], "unknown setting 'fast': choose one of contiguous, .*cudagraphs"),
        (['swin-t', '--dtypes', 'int8'], "unknown dtype 'int8': choose one of float32, .*amp"),
        (['swin-t', '--layout', 'nhwc'], "unknown layout 'nhwc': choose one of contiguous"),
        (['swin-t', '--mode', 'test'], "unknown mode 'test': choose one of forward, train"),
        (['swin-t', '--compile', 'fast'], "unknown execution 'fast': choose one of eager"),
        (['swin-t', '--baseline', 'swin-s'], "unknown baseline 'swin-s': choose one of swin-t"),
        (['swin-t', '--device', 'tpu'], "unknown device 'tpu': choose one of cpu"),
        (['swin-t', '--sizes', '0'], r'--sizes 0: give .*\(224\) or HxW'),
        (['swin-t', '--sizes', '2x3x4'], '--sizes 2x3x4'),
        (['swin-t', '--sizes', 'x'], '--sizes x'),
        (['swin-t', '--rounds', '0'], '--rounds 0: give a positive number'),
        (['swin-t', '--batch-sizes', '0'], '--batch-sizes 0: give positive numbers'),
    ],
)
def test_mistakes_are_named_before_anything_runs(arguments, message, monkeypatch, tmp_path):
    tool = str(ROOT / 'tools' / 'benchmark.py')
    monkeypatch.setattr(sys, 'argv', [tool, *arguments, '--out-dir', str(tmp_path)])
    with pytest.raises(SystemExit, match=f'^error: {message}') as error:
        runpy.run_path(tool, run_name='__main__')
    assert '\n' not in error.value.code
    assert not list(tmp_path.iterdir())
