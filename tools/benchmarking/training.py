"""Times a training step of a whole model: python -m benchmarking.training CONFIG --size 800x1280

The images are noise and carry eight objects each, so that no data set is needed; the optimizer is
the config's. Variants of the config (``--variants plain with_cp``) take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmconvneur.utils.timing import Spread, Step, race, seconds

from .measure import peak_memory
from .report import environment

VARIANTS = dict(plain={}, with_cp={'model.backbone.with_cp': True})
OBJECTS = 8


def training_step(cfg: Config, size: tuple[int, int], batch: int, device: torch.device) -> Step:
    """A step of the config's optimizer on made-up images: forward, backward and update."""
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download: weights are random
    if 'size' in cfg.model.data_preprocessor:  # what mmseg pads to
        cfg.model.data_preprocessor.size = size
    if device.type == 'cuda':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(batch, (3, *size), [OBJECTS] * batch, num_classes=2, with_mask=True)
    else:
        data = dict(
            inputs=list(torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)),
            data_samples=[segmentation_sample(size) for _ in range(batch)],
        )
    return lambda: model.train_step(data, wrapper)


def segmentation_sample(size: tuple[int, int]) -> object:
    from mmseg.structures import SegDataSample

    classes = torch.randint(0, 2, (1, *size))
    shapes = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    return SegDataSample(gt_sem_seg=PixelData(data=classes), metainfo=shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('config')
    parser.add_argument('--size', default='800x1280', metavar='HxW')
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--variants', nargs='+', default=['plain'], choices=VARIANTS)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--images', type=int, help='in a training run, to project its hours')
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    args = parser.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    size = tuple(map(int, args.size.split('x')))
    steps, memory = {}, {}
    for name in args.variants:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(VARIANTS[name])
        step = training_step(cfg, size, args.batch_size, device)
        for _ in range(3):
            step()
        gc.collect()
        memory[name] = peak_memory(step, device)
        steps[name] = step
    times = race(steps, args.rounds, lambda step: seconds(step, device))
    rows = []
    for name, taken in times.items():
        spread = Spread.of(taken)
        rate = args.batch_size / spread.median
        row = dict(variant=name, seconds=spread._asdict(), images_per_second=rate, times=taken)
        row |= dict(memory_bytes=memory[name])
        if args.images:
            row |= dict(hours_on_one=args.images / rate / 3600)
        rows.append(row)
        print(
            f'{name}: {1e3 * spread.median:.0f} ms ({1e3 * spread.q1:.0f}-{1e3 * spread.q3:.0f}), '
            f'{rate:.1f} images/s, {memory[name] / 2**20:.0f} MiB'
            + (f', {row["hours_on_one"]:.1f} h for {args.images} images' if args.images else '')
        )
    settings = {k: str(v) for k, v in vars(args).items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    data = dict(settings=settings, environment=environment(device), rows=rows)
    args.out.write_text(json.dumps(data, indent=1))


if __name__ == '__main__':
    main()
