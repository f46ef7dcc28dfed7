"""Checks a config and its data without training: python tools/check.py configs/my_config.py"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import sys

from rich.console import Console

from mmconvneur.checks.look import examine, sort
from mmconvneur.checks.summary import tables
from mmconvneur.utils.arguments import config_parser, one_line_errors, parse
from mmconvneur.utils.configs import load_config


@one_line_errors
def main() -> None:
    args = parse(config_parser(__doc__.split(':')[0]))
    cfg = load_config(args)
    other = cfg.get('test_dataloader') != cfg.get('val_dataloader')
    run, findings = examine(cfg, args, 'train', 'val', *['test'] * other)
    console = Console()
    for table in tables(run):
        console.print(table)
    doubts, mistakes = sort(findings)
    for text in doubts:
        print('warning:', text, file=sys.stderr)
    for text in mistakes:
        print('error:', text, file=sys.stderr)
    if mistakes:
        sys.exit(1)
    print('nothing is wrong' if not doubts else 'nothing is certainly wrong')


if __name__ == '__main__':
    main()
