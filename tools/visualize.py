"""Draws what a backbone does with an image: python tools/visualize.py CONFIG CHECKPOINT IMAGE"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmconvneur.apis.inference import load_model, preprocess, read_image
from mmconvneur.apis.model_zoo import find_weights
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import add_trust, config_parser, one_line_errors, parse
from mmconvneur.utils.configs import load_config
from mmconvneur.visualization import ReceptiveField, Taps, capture, effective_receptive_field
from mmconvneur.visualization.drawing import Backdrop
from mmconvneur.visualization.page import pictures, save, write_page


@one_line_errors
def main() -> None:
    parser = config_parser(__doc__.split(':')[0])
    parser.add_argument('checkpoint', help='path, URL, or the name of a released model')
    parser.add_argument('image', type=Path)
    parser.add_argument(
        '--pixel',
        nargs=2,
        type=int,
        action='append',
        metavar=('X', 'Y'),
        help='draw what this pixel reads; may be repeated; default: the centre',
    )
    parser.add_argument('--out-dir', type=Path, default=Path('pictures'), help='default: pictures')
    parser.add_argument(
        '--dpi', type=int, default=200, help='resolution of the pictures; default: 200'
    )
    add_trust(parser)
    args = parse(parser)
    cfg, weights = load_config(args), find_weights(args.checkpoint)
    if args.dpi < 1:
        raise UsageError(f'--dpi {args.dpi}: give a positive number, 200 by default')
    image = read_image(args.image)[..., ::-1]  # BGR -> RGB
    pixels = find_pixels(args.pixel, image.shape)
    model = load_model(cfg, str(weights))
    inputs, scale = preprocess(model, cfg, args.image)
    backdrop = Backdrop(image, scale, tuple(inputs.shape[-2:]))
    facts = {
        'image': f'{args.image}, {image.shape[1]} x {image.shape[0]} pixels',
        'input of the network': f'{inputs.size(3)} x {inputs.size(2)} pixels with padding',
        'config': args.config,
        'checkpoint': args.checkpoint,
        'backbone': type(model.backbone).__name__,
    }
    contents = []
    for content in pictures(backdrop, *look(model.backbone, inputs), pixels):
        print(content if isinstance(content, str) else save(args.out_dir, content, args.dpi))
        contents.append(content)
    title = f'What {facts["backbone"]} does with {args.image.name}'
    print(write_page(args.out_dir, title, facts, contents))


def find_pixels(given: list[list[int]] | None, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The pixels (x, y) to draw for an image ``(H, W, 3)``; the one in the middle by default."""
    height, width = shape[:2]
    for x, y in given or []:
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(
                f'--pixel {x} {y} is outside of the image: X goes from 0 to {width - 1}, '
                f'Y from 0 to {height - 1}'
            )
    return [(x, y) for x, y in given or [(width // 2, height // 2)]]


def look(backbone: nn.Module, inputs: Tensor) -> tuple[Taps, ReceptiveField]:
    """Tapped tensors and receptive field of a backbone for one input ``(1, 3, H, W)``."""
    with torch.no_grad(), capture(backbone) as taps:
        backbone(inputs)
    bar = partial(tqdm, desc='gradients of the receptive field', disable=None)
    return taps, effective_receptive_field(backbone, inputs, progress=bar)


if __name__ == '__main__':
    main()
