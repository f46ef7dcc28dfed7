"""Converts a ConvNeXt or GLNet: python tools/convert_checkpoint.py IN.safetensors OUT.pth"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import argparse
from pathlib import Path

from mmengine.runner import save_checkpoint

import mmconvneur
from mmconvneur.engine.checkpoints import ATOMIC
from mmconvneur.errors import UsageError
from mmconvneur.models.backbones import convneur, glnet
from mmconvneur.utils.arguments import add_trust, one_line_errors
from mmconvneur.weights import LAYOUTS, read_state_dict, recognise
from mmconvneur.weights.loading import sizes


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write the backbone of a checkpoint under the names of ConvNeur or GLNet. '
        'Layouts: ' + ', '.join(layout.name for layout in LAYOUTS)
    )
    parser.add_argument(
        'source', metavar='IN', help='path or URL of a .pth or .safetensors file or index'
    )
    parser.add_argument('target', metavar='OUT', help='the .pth file to write')
    parser.add_argument('--prefix', help='prefix of the backbone in IN; default: found by its keys')
    add_trust(parser)
    args = parser.parse_args()
    if not args.target.endswith('.pth'):
        raise UsageError(f'{args.target}: give the name of a .pth file to write')
    supplied = recognise(read_state_dict(args.source, args.trust_checkpoint), args.prefix)
    if supplied.unknown:
        raise UsageError(
            f'{args.source} looks like {supplied.layout} but has {len(supplied.unknown)} keys that '
            f'it does not have, the first {supplied.unknown[0]}: it is another network'
        )
    channels, depths = sizes(supplied.tensors)
    archs = convneur.ARCHS | glnet.ARCHS
    known = {(arch['channels'], arch['depths']): name for name, arch in archs.items()}
    arch = known.get((channels, depths), 'none of the named ones')
    meta = dict(
        source=Path(args.source).name,
        layout=supplied.layout,
        arch=dict(channels=channels, depths=depths),
        mmconvneur_version=mmconvneur.__version__,
    )
    save_checkpoint(dict(meta=meta, state_dict=supplied.tensors), args.target, backend_args=ATOMIC)
    print(
        f'{supplied.layout}: {len(supplied.tensors)} tensors, {len(supplied.unused)} left out; '
        f'channels {channels}, depths {depths}, arch {arch}\n'
        f"use it: init_cfg=dict(type='Pretrained', checkpoint='{args.target}')"
    )


if __name__ == '__main__':
    main()
