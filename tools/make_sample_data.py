"""Makes a sample data set: python tools/make_sample_data.py --task sample

It is written to data/<task>: images/, semantic/, annotations/instances_{train,val}.json (COCO). The
tasks sample and fashion add things/{train,val}/<class>/, for classification.
"""

from __future__ import annotations

import argparse
import sys

from mmconvneur.errors import UsageError
from mmconvneur.utils.environment import install

try:
    from rich.progress import track

    from sample_data import TASKS, make_dataset
except ModuleNotFoundError as error:
    sys.exit(f'error: {error}: {install(error.name)}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--task', default='sample', help=' | '.join(TASKS))
    parser.add_argument('--root', help='folder to write; default: data/<task>')
    parser.add_argument('--num-train', type=int, metavar='N')
    parser.add_argument('--num-val', type=int, metavar='N')
    parser.add_argument('--size', type=int, help='side of the images in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--items',
        metavar='DIR',
        help='folder of the four files of Fashion-MNIST, for the task fashion; default: that of '
        "Debian's package dataset-fashion-mnist",
    )
    args = parser.parse_args()
    root = args.root or f'data/{args.task}'
    try:
        if args.items and args.task != 'fashion':
            raise UsageError('--items is for --task fashion alone: leave it out')
        made = make_dataset(
            *(args.task, root, args.num_train, args.num_val, args.size, args.seed),
            progress=track,
            **dict(folder=args.items) if args.items else {},
        )
    except UsageError as error:
        sys.exit(f'error: {error}')
    print(f'{root} is made' if made else f'{root} is there already')


if __name__ == '__main__':
    main()
