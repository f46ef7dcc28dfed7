"""Draws what a model finds in images: python tools/demo.py IMAGE --model NAME"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import argparse
import glob
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from tqdm import tqdm

from mmconvneur.apis.inference import infer, inference_pipeline, load_model, read_image
from mmconvneur.apis.model_zoo import find_weights, released
from mmconvneur.engine.outputs import draw_sample
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import add_trust, one_line_errors
from mmconvneur.utils.configs import family, load_config
from mmconvneur.utils.files import common_folder

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('image', nargs='+', help='a file, a folder or a glob')
    parser.add_argument('--model', required=True, help='name of a released model, or a config')
    parser.add_argument('--checkpoint', help='weights for a config: path or URL')
    parser.add_argument('--out-dir', type=Path, default=Path('pictures'), help='default: pictures')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score to draw; default: 0.3'
    )
    add_trust(parser)
    parser.set_defaults(cfg_options={})
    args = parser.parse_args()
    images = find_images(args.image)
    pictures = find_pictures(images, args.out_dir)
    if args.checkpoint:
        args.config, weights = args.model, str(find_weights(args.checkpoint))
    elif args.model.endswith('.py'):
        raise UsageError(f'--model {args.model} is a config: give its weights with --checkpoint')
    else:
        args.config, weights = released(args.model).paths
    draw(load_config(args), weights, pictures, args.score_thr)
    print(f'{args.out_dir}: {len(pictures)} pictures')


def find_images(sources: list[str]) -> list[Path]:
    """The images of files, folders and globs, in order."""
    found = []
    for source in sources:
        path = Path(source).expanduser()
        paths = path.iterdir() if path.is_dir() else [path]
        if not path.exists():
            paths = map(Path, glob.glob(str(path), recursive=True))
        images = [p for p in sorted(paths) if p.is_file() and p.suffix.lower() in SUFFIXES]
        if not images:
            raise UsageError(
                f'no image found at {source}: give a file, a folder or a glob of images '
                f'({" ".join(SUFFIXES)})'
            )
        found += images
    return found


def find_pictures(images: list[Path], out_dir: Path) -> dict[Path, Path]:
    """Image -> picture, in folders as the images are where these are in several.

    Raises:
        UsageError: Where a picture would replace an image.
    """
    folder = common_folder(images)
    pictures = {image: out_dir / os.path.relpath(image, folder) for image in images}
    originals = {image.resolve() for image in images}
    for picture in pictures.values():
        if picture.resolve() in originals:
            raise UsageError(f'--out-dir {out_dir} would replace {picture}: choose another folder')
    return pictures


def draw(cfg: Config, weights: str, pictures: dict[Path, Path], score_thr: float) -> None:
    """Write every image with the detections, label map or class that a model finds in it."""
    options = dict(pred_score_thr=score_thr) if family(cfg) == 'mmdet' else {}
    model, pipeline = load_model(cfg, weights), inference_pipeline(cfg)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None))
    visualizer.dataset_meta = model.dataset_meta
    for path, picture in tqdm(pictures.items(), disable=None):
        image = read_image(path)  # BGR (H, W, 3), whatever the model sees
        found = infer(model, pipeline, path)
        draw_sample(
            visualizer, path.name, image[..., ::-1], found, str(picture), draw_gt=False, **options
        )


if __name__ == '__main__':
    main()
