"""Times backbones side by side: python tools/benchmark.py convneur-t hf-convnext-t --sizes 512

Every round runs every backbone once, so that ratios within a round also hold on a busy machine.
Needs neither data nor mmcv's compiled operators. A backbone whose package is absent is reported and
left out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # torch's profiler reports each start

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarking.backbones import BACKBONES
from benchmarking.cases import (
    DTYPES,
    EXECUTIONS,
    MEMORY_FORMATS,
    MODES,
    WARM_UPS,
    Case,
    parse_contestant,
    run_case,
)
from benchmarking.report import (
    Results,
    environment,
    plot,
    results_table,
)
from mmconvneur.errors import UsageError, check_choice


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split(':')[0],
        epilog='Backbones: ' + ', '.join(BACKBONES),
    )
    parser.add_argument(
        'backbones',
        nargs='+',
        metavar='NAME[:OPTION,...][@SETTING,...]',
        help='options: key=value of its config; local or the type of a global mixer for convneur. '
        f'Settings override --layout and --compile: a layout, or {" | ".join(EXECUTIONS)}',
    )
    parser.add_argument(
        '--sizes', nargs='+', default=['224'], metavar='HxW', help='of the image; S is a square'
    )
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1], metavar='B')
    parser.add_argument(
        '--dtypes',
        nargs='+',
        default=['float32'],
        metavar='DTYPE',
        help=f'{" | ".join(DTYPES)}; weights and input are cast; with amp they stay float32, under '
        'bfloat16 autocast; float32 does not use TF32',
    )
    parser.add_argument(
        '--layout', default='channels_last', help=f'memory layout: {" | ".join(MEMORY_FORMATS)}'
    )
    parser.add_argument(
        '--mode', default='forward', help=f'{" | ".join(MODES)} (forward and backward)'
    )
    parser.add_argument(
        '--compile', nargs='?', default='eager', const='compiled', help=' | '.join(EXECUTIONS)
    )
    parser.add_argument(
        '--rounds', type=int, default=15, help='each times every backbone once; default: 15'
    )
    parser.add_argument('--baseline', help='what times are divided by; default: the first')
    parser.add_argument('--device', help='cpu | cuda; default: cuda if there is one')
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/benchmark'))
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raise ``UsageError`` for an impossible choice, and fill in what depends on the machine."""
    for dtype in args.dtypes:
        check_choice('dtype', dtype, DTYPES)
    check_choice('layout', args.layout, MEMORY_FORMATS)
    check_choice('mode', args.mode, MODES)
    check_choice('execution', args.compile, EXECUTIONS)
    args.baseline = args.baseline or args.backbones[0]
    check_choice('baseline', args.baseline, args.backbones)
    for name in ('rounds', 'threads'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f'--{name} {getattr(args, name)}: give a positive number')
    if min(args.batch_sizes) < 1:
        raise UsageError(f'--batch-sizes {min(args.batch_sizes)}: give positive numbers')
    available = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
    args.device = args.device or available[-1]
    check_choice('device', args.device, available)


def image_size(text: str) -> tuple[int, int]:
    """Height and width of ``S`` or ``HxW``."""
    parts = text.split('x')
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f'--sizes {text}: give the side of a square (224) or HxW (800x1280)')
    return int(parts[0]), int(parts[-1])


def main() -> None:
    args = parse()
    check(args)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True  # sizes are fixed
    if args.threads:
        torch.set_num_threads(args.threads)
    contestants = [
        parse_contestant(label, args.layout, args.compile)
        for label in dict.fromkeys(args.backbones)
    ]
    cases = [
        Case(*image_size(size), batch_size, dtype, args.mode)
        for dtype in dict.fromkeys(args.dtypes)
        for batch_size in dict.fromkeys(args.batch_sizes)
        for size in dict.fromkeys(args.sizes)
    ]
    settings = dict(
        backbones=[c.label for c in contestants],
        baseline=args.baseline,
        mode=args.mode,
        layout=args.layout,
        execution=args.compile,
        rounds=args.rounds,
        environment=environment(device),
    )
    results = Results(args.out_dir, settings)
    runs = len(contestants) * (WARM_UPS + args.rounds) + args.rounds
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False)
    with Progress(console=console, speed_estimate_period=3600) as progress:
        bar = progress.add_task('runs', total=sum(runs * case.pixels for case in cases))
        for done, case in enumerate(cases):
            if not results.of(case):
                rows = run_case(
                    *(case, contestants, args.baseline, args.rounds, device),
                    advance=lambda n, pixels=case.pixels: progress.advance(bar, n * pixels),
                    report=console.print,
                )
                results.add(rows)
            progress.update(bar, completed=sum(runs * c.pixels for c in cases[: done + 1]))
            console.print(results_table(results.of(case), case, args.baseline))
    plot(results.rows, args.out_dir / 'benchmark.png')
    print(f'JSON and plot: {args.out_dir}')


if __name__ == '__main__':
    try:
        main()
    except UsageError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted: finished cases are kept, the same command goes on from there')
