"""Tables of what a config trains on and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..utils.configs import as_list, type_name
from .data import Run, class_names, evenly, labels_of, number_of_images, processes
from .network import estimate_memory
from .pictures import IGNORED, SIZES, picture_size


def tables(run: Run) -> Iterator[Table | str]:
    """The tables of a run; of one that its mistakes prevent, the reason."""
    for make in (data_table, classes_table, training_table):
        try:
            yield make(run)
        except Exception as error:
            yield f'{make.__name__} was left out ({type(error).__name__}: {error})'


def data_table(run: Run) -> Table:
    table = Table('split', 'data set', 'images', 'classes', 'sizes', 'batch', title='Data')
    for split in run.splits:
        for leaf, infos in split.looked_at:
            images, classes = number_of_images(leaf), class_names(leaf) or ()
            batch = str(split.loader.get('batch_size', '-'))
            row = (type(leaf).__name__, f'{images:,}', str(len(classes)), sizes(infos), batch)
            table.add_row(split.name, *row)
    return table


def sizes(infos: list[dict]) -> str:
    """The smallest and the largest width and height of the images."""
    found = [
        (info['width'], info['height']) if 'width' in info else picture_size(info['img_path'])
        for info in evenly(infos, SIZES)
        if 'img_path' in info
    ]
    known = [size for size in found if size]
    if not known:
        return '-'
    low, high = np.min(known, axis=0), np.max(known, axis=0)
    small, large = f'{low[0]} x {low[1]}', f'{high[0]} x {high[1]}'
    return small if small == large else f'{small} to {large}'


def classes_table(run: Run) -> Table:
    """Objects or images per class, or the share of pixels in label maps."""
    columns = []
    for split in run.splits:
        images = sum(map(number_of_images, split.leaves))
        looked_at = sum(len(infos) for _, infos in split.looked_at)
        if split.pixels is not None:
            shares = 100 * split.pixels / max(1, split.pixels[:IGNORED].sum())
            columns.append((f'{split.name}, % of pixels', [f'{share:.1f}' for share in shares]))
        else:
            looked_into = [info for _, infos in split.looked_at for info in infos]
            what = 'images' if any('gt_label' in info for info in looked_into) else 'objects'
            labels = Counter(label for info in looked_into for label in labels_of(info))
            part = f' ({looked_at} of {images} images)' if looked_at < images else ''
            counts = [f'{labels[i]:,}' for i in range(max(labels, default=-1) + 1)]
            columns.append((f'{split.name}, {what}{part}', counts))
    named = (class_names(leaf) for split in run.splits for leaf in split.leaves)
    names = next((names for names in named if names), [])
    table = Table('class', *(title for title, _ in columns), title='Classes')
    for i, name in enumerate(names):
        table.add_row(
            escape(str(name)), *(counts[i] if i < len(counts) else '0' for _, counts in columns)
        )
    return table


def training_table(run: Run) -> Table:
    table = Table('', '', title='Training', show_header=False)
    loop = run.cfg.get('train_cfg') or {}
    train = run.train
    images = len(train.dataset) if train is not None and train.dataset is not None else 0
    batch = processes() * (train.loader.get('batch_size') or 0) if train is not None else 0
    if run.by_epoch:
        steps = loop['max_epochs'] * -(-images // batch) if batch else 0
        length = f'{loop["max_epochs"]} epochs, {steps:,} iterations'
    else:
        length = f'{loop.get("max_iters", 0):,} iterations'
        length += f', {loop["max_iters"] * batch / images:.1f} epochs' if images and loop else ''
    table.add_row('length', length)
    table.add_row('batch', f'{batch} in {processes()} process(es)')
    if run.input_shape:
        table.add_row('input', ' x '.join(map(str, run.input_shape)))
    for scheduler in as_list(run.cfg.get('param_scheduler')):
        unit = 'epochs' if scheduler.get('by_epoch', True) else 'iterations'
        span = f'{scheduler.get("begin", 0)} to {scheduler.get("end", "the end")} {unit}'
        table.add_row('schedule', f'{type_name(scheduler)}, {span}')
    optimizer = (run.cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if optimizer:
        table.add_row('optimizer', f'{type_name(optimizer)}, rate {optimizer.get("lr", "-")}')
    memory = estimate_memory(run)
    if memory:
        parts = ', '.join(f'{name} {size / 2**30:.2f}' for name, size in memory.items())
        total = sum(memory.values()) / 2**30
        table.add_row('memory', f'about {total:.2f} GiB or more without --amp ({parts})')
    return table
