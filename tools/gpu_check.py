"""Checks and measures ConvNeur on a GPU: python tools/gpu_check.py install right fast real

install  the packages of --wheels (`make wheels`), with mmcv's operators compiled for this GPU
right    the tests that compute on a GPU
fast     backbones beside others: the most telling rows first
real     training steps of whole models, hours projected from them, and the demo

STAGE:STEP runs one step of a stage. Each step leaves a log and JSON in --out-dir. A run that
--minutes ended early continues with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ('install', 'right', 'fast', 'real')

CORE = ['timm-convnext-t', 'convneur-t', 'convneur-t:local', 'convneur-m4', 'hf-swin-t']
PEERS = [
    *CORE,
    *('convneur-m1', 'convneur-s', 'convneur-b', 'convneur-t:GLMix'),
    *('hf-convnext-t', 'timm-pvtv2-b2', 'timm-resnet-50', 'timm-inception-next-t'),
    *('timm-repvit-m1.5', 'timm-mambaout-t', 'timm-focalnet-t', 'timm-rdnet-t'),
    *('mmpretrain-hornet-t', 'swin-t', 'convneur-t:PublishedNeuralMemory'),
]
PAIR = ['timm-convnext-t', 'convneur-t', 'convneur-t:local']
COCO_1X = 12 * 117_266  # images
ADE20K_160K = 160_000 * 16


def steps_of(stage: str, args: argparse.Namespace) -> dict[str, list[str]]:
    """Name -> command of each step, in the order in which they run."""
    python, out = sys.executable, args.out_dir
    if stage == 'install':
        pip = [python, '-m', 'pip', '--no-cache-dir']
        plain = ['--no-index', '--no-deps', '--no-build-isolation']
        into = ['install', *plain, '--no-compile', '--upgrade', '--target', str(args.site)]
        sources = sorted(map(str, args.wheels.glob('*.*')))
        mmcv = [s for s in sources if Path(s).name.startswith('onedl_mmcv-')]
        built = str(out / 'mmcv')
        return dict(
            packages=[*pip, *into, *(s for s in sources if s not in mmcv)],
            operators=[*pip, 'wheel', '--verbose', *plain, '--wheel-dir', built, *mmcv],
            mmcv=[*pip, *into, '--find-links', built, 'onedl-mmcv'],
            check=[python, '-m', 'mmconvneur.utils.environment'],
        )
    if stage == 'right':
        parallel = ['-n', '8'] if find_spec('xdist') else []
        tests = [python, '-m', 'pytest', '-q', '-m', 'gpu', *parallel, '--durations=15']
        # Others may import a tool, which ends Python where mmcv has no operators.
        files = [
            str(path)
            for path in sorted((ROOT / 'tests').glob('test_*.py'))
            if re.search(r"usefixtures\('device'\)|mark\.gpu", path.read_text())
        ]
        tests += ['--continue-on-collection-errors', f'--junitxml={out}/tests.xml']
        return dict(tests=tests + files)
    large, small = ('64x96', '32') if args.tiny else ('800x1280', '224')
    if stage == 'fast':

        def race(name: str, backbones: list[str], execution: str, size: str, *options) -> list[str]:
            labels = [f'{b}@{execution}' for b in backbones] if execution else backbones
            command = [python, 'tools/benchmark.py', *labels, '--sizes', size]
            # options given later win over those before them
            tiny = ['--batch-sizes', '1', '--rounds', '2'] if args.tiny else []
            return [*command, *map(str, options), *tiny, '--out-dir', str(out / name)]

        few, many = (1, 2, 8), (1, 32, 128)
        batches, dtypes, train = '--batch-sizes', '--dtypes', ('--mode', 'train')
        half = (dtypes, 'bfloat16')
        recorded = 'compiled' if args.tiny else 'cudagraphs'
        rows = {
            'peers_large': (PEERS, '', large, batches, 2, *half),
            'core_large': (CORE, '', large, batches, *few, dtypes, 'bfloat16', 'tf32'),
            'core_large_train': (CORE, '', large, batches, 2, 8, dtypes, 'amp', 'tf32', *train),
            'graphs_small': (PAIR, recorded, small, batches, *many, *half),
            'core_small': (CORE, '', small, batches, *many, dtypes, 'bfloat16', 'tf32'),
            'graphs_large': (PAIR, recorded, large, batches, *few, *half),
            'compiled_large': (PAIR, 'compiled', large, batches, 2, *half),
            'core_small_train': (CORE, '', small, batches, 32, 128, dtypes, 'amp', *train),
            'peers_large_train': (PEERS, '', large, batches, 2, dtypes, 'amp', *train),
            'peers_small': (PEERS, '', small, batches, 32, *half),
            'core_large_float32': (CORE, '', large, batches, 2, dtypes, 'float32'),
            'compiled_large_train': (PAIR, 'compiled', large, batches, 2, dtypes, 'amp', *train),
            'compiled_small': (PAIR, 'reduce-overhead', small, batches, 1, 32, *half),
        }
        return {name: race(name, *row) for name, row in rows.items()}
    step = [python, '-m', 'benchmarking.training']
    rounds = ['--rounds', '1' if args.tiny else '20']
    detector = ['configs/mask_rcnn_convneur_t_coco.py', '--variants', 'plain', 'with_cp']
    detector += ['--size', '128x128' if args.tiny else large, '--images', str(COCO_1X)]
    segmentor = ['configs/upernet_convneur_t_ade20k.py', '--batch-size', '4']
    segmentor += ['--size', '64x64' if args.tiny else '512x512', '--images', str(ADE20K_160K)]
    return dict(
        mask_rcnn=[*step, *detector, *rounds, '--out', f'{out}/mask_rcnn.json'],
        upernet=[*step, *segmentor, *rounds, '--out', f'{out}/upernet.json'],
        demo=['make', 'demo', '--assume-old', 'install', f'RUN={python}'],
    )


def main() -> int:
    usage, _, _ = __doc__.partition(':')
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('stages', nargs='+', metavar='STAGE[:STEP]', help=' | '.join(STAGES))
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/gpu'))
    parser.add_argument('--wheels', type=Path, default=Path('wheels'))
    parser.add_argument(
        '--site', type=Path, default=Path('work_dirs/site'), help='where install puts packages'
    )
    parser.add_argument('--minutes', type=float, default=9.5, help='limit for all stages')
    parser.add_argument('--tiny', action='store_true', help='small images, to try the stages')
    args = parser.parse_args()
    for name in ('out_dir', 'wheels', 'site'):
        setattr(args, name, getattr(args, name).resolve())
    end = time.monotonic() + 60 * args.minutes
    args.out_dir.mkdir(parents=True, exist_ok=True)
    path = args.out_dir / 'steps.json'
    done = json.loads(path.read_text()) if path.is_file() else {}
    for wanted in args.stages:
        stage, _, only = wanted.partition(':')
        if stage not in STAGES:
            parser.error(f'unknown stage {stage!r}: choose of {", ".join(STAGES)}')
        commands = steps_of(stage, args)
        if only and only not in commands:
            parser.error(f'unknown step {only!r} of {stage}: choose of {", ".join(commands)}')
        for name in [only] if only else commands:
            key = f'{stage}:{name}'
            if done.get(key, {}).get('status') == 0:
                continue
            left = end - time.monotonic()
            status = run(commands[name], args, name, left) if left > 0 else 'no time left'
            done[key] = dict(
                status=status,
                seconds=round(left - end + time.monotonic(), 1) if left > 0 else 0,
                command=' '.join(commands[name]),
            )
            path.write_text(json.dumps(done, indent=1))
            print(f'{key}: {status} after {done[key]["seconds"]} s', flush=True)
    return int(any(step['status'] != 0 for step in done.values()))


def run(command: list[str], args: argparse.Namespace, name: str, limit: float) -> int | str:
    """Exit status of a command, whose output goes to a log; what stopped it if it has none."""
    folders = [str(args.site), str(ROOT), str(ROOT / 'tools'), os.environ.get('PYTHONPATH')]
    environ = os.environ | dict(
        PYTHONPATH=os.pathsep.join(filter(None, folders)),
        CFLAGS='-g0',
        CXXFLAGS='-g0',
    )
    with (args.out_dir / f'{name}.log').open('w') as log:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return 'timeout'
        except FileNotFoundError as error:
            return str(error)
    return done.returncode


if __name__ == '__main__':
    sys.exit(main())
