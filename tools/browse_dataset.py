"""Draws what training feeds the model: python tools/browse_dataset.py CONFIG --out-dir DIR"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor
from tqdm import trange

from mmconvneur.engine.outputs import draw_sample
from mmconvneur.utils.arguments import config_parser, one_line_errors, parse
from mmconvneur.utils.configs import check_data, load_config, scope_of


@one_line_errors
def main() -> None:
    parser = config_parser(__doc__.split(':')[0])
    parser.add_argument('--out-dir', required=True, help='folder for the pictures')
    parser.add_argument('-n', '--number', type=int, default=20, help='how many images to draw')
    args = parse(parser)
    cfg = load_config(args)
    check_data(cfg, 'train')
    draw(cfg, Path(args.out_dir), args.number)


def draw(cfg: Config, out_dir: Path, number: int) -> None:
    """Write ``number`` training images with their boxes and masks, label maps or classes."""
    init_default_scope(scope_of(cfg))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None))
    visualizer.dataset_meta = dataset.metainfo
    for index in trange(min(number, len(dataset)), disable=None):
        item = dataset[index]
        sample = item['data_samples']
        name = f'{index:04}_{Path(sample.img_path).stem}.png'
        image = picture(item['inputs'])
        draw_sample(visualizer, name, image, drawable(sample), str(out_dir / name), draw_pred=False)
    print(f'{out_dir}: {min(number, len(dataset))} pictures')


def picture(inputs: Tensor) -> np.ndarray:
    """RGB ``(H, W, 3)`` of an image ``(C, H, W)``: of BGR, perhaps with more, or one channel."""
    image = inputs[:3] if len(inputs) > 2 else inputs[:1].expand(3, -1, -1)
    return image.flip(0).permute(1, 2, 0).contiguous().numpy()  # as mmseg 1.2's needs it


def drawable(sample: BaseDataElement) -> BaseDataElement:
    """mmdet's visualizer takes plain tensors and arrays, its pipeline makes classes of them."""
    instances = sample.get('gt_instances')
    if instances is not None:
        if hasattr(instances.bboxes, 'tensor'):
            instances.bboxes = instances.bboxes.tensor
        if 'masks' in instances:
            instances.masks = instances.masks.to_ndarray().astype(bool)
    return sample


if __name__ == '__main__':
    main()
