"""Pictures and label maps: are they there, whole, and of the numbers that the classes have?"""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import UsageError
from ..utils.arguments import usage_message
from ..utils.configs import FAMILIES, family_of, is_called, type_name
from .annotations import problem_of
from .classes import heads, lacks_masks
from .data import Run, Split, class_names, evenly, is_local, leaves, number_of_images, transforms
from .findings import Finding, doubt, some, wrong

SIZES = 500  # pictures whose size is compared at most
MAPS, PIXELS = 64, 60_000_000  # label maps that are read at most
IGNORED = 255
BACKGROUND = ('background', 'bg', 'back ground', 'other', 'others')
FILES = ('img_path', 'seg_map_path')
CUT_OFF = 'is cut off'
ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND'}  # JPEG and PNG: first bytes, mark of the end


def check_empty(run: Run) -> Iterator[Finding]:
    """Every data set has images."""
    for split in run.splits:
        for leaf in split.leaves:
            if number_of_images(leaf):
                continue
            folder = (getattr(leaf, 'data_prefix', None) or {}).get('img_path')
            suffix = getattr(leaf, 'img_suffix', None)
            if folder and suffix and os.path.isdir(folder) and not getattr(leaf, 'ann_file', None):
                there = Counter(path.suffix for path in Path(folder).rglob('*') if path.is_file())
                found = ', '.join(f'{number} x {kind}' for kind, number in there.most_common(3))
                yield wrong(
                    f'no image of the {split.name} data ends with {suffix} in {folder} ({found}): '
                    'set img_suffix of the data set'
                )
            elif getattr(leaf, 'cat_ids', None) != []:  # else the classes are to blame
                yield wrong(
                    f'no image is left of the {split.name} data '
                    f'({getattr(leaf, "ann_file", None) or folder}): look at the file, filter_cfg '
                    'and indices'
                )


def check_files(run: Run) -> Iterator[Finding]:
    """Pictures and label maps exist and are complete."""
    for split in run.splits:
        for leaf, looked_at in split.looked_at:
            if not is_local(leaf):
                continue
            for key in FILES:
                paths = [i[key] for i in looked_at if isinstance(i.get(key), str)]
                if not reads(leaf, key):
                    continue
                bad = {path: why for path in paths if (why := damage(path))}
                for why in dict.fromkeys(bad.values()):
                    named = [path for path in paths if bad.get(path) == why]
                    what = 'image' if key == 'img_path' else 'label map'
                    # OpenCV reads some: cameras append data, and old versions fill up a JPEG.
                    filled = key == 'img_path' and why == CUT_OFF and all(map(decodes, named))
                    yield (doubt if filled else wrong)(
                        f'{named[0]}, {what} of the {split.name} data, {why}'
                        + f', with {len(named) - 1} more of {len(paths)}' * (len(named) > 1)
                        + ': get it again, or correct data_prefix and the suffixes'
                    )
            yield from check_sizes(split, evenly(looked_at, SIZES))


def reads(leaf: Any, key: str) -> bool:
    """Whether a loading step of mmcv or one of the families opens this file as it is named."""
    for step in transforms(leaf):
        kind = type(step)
        theirs = kind.__module__.partition('.')[0] in ('mmcv', *FAMILIES)
        images = is_called(kind, 'LoadImageFromFile')
        if theirs and (images if key == 'img_path' else getattr(step, 'with_seg', False)):
            return True
    return False


def check_sizes(split: Split, looked_at: list[dict]) -> Iterator[Finding]:
    for info in looked_at:
        if not isinstance(info.get('img_path'), str) or damage(info['img_path']):
            continue
        size, written = picture_size(info['img_path']), (info.get('width'), info.get('height'))
        if size and None not in written and size != written:
            yield doubt(
                f'{info["img_path"]} is {size[0]} x {size[1]} pixels and {written[0]} x '
                f'{written[1]} in the annotations of the {split.name} data: its boxes may be '
                'misplaced'
            )
            return
        maps = info.get('seg_map_path')
        if maps and 'instances' not in info and not damage(maps):
            other = picture_size(maps)
            if size and other and size != other:
                yield doubt(
                    f'{maps} is {other[0]} x {other[1]} pixels and its image {size[0]} x {size[1]}'
                )
                return


def damage(path: str | None) -> str | None:
    """What is wrong with a local picture: it is missing, empty, cut off or something else."""
    if path is None or '://' in path:
        return None
    if os.path.isdir(path):  # of some data sets, all pictures of a video
        return 'is a folder' if is_picture_name(path) else None
    try:
        with open(path, 'rb') as file:
            start = file.read(2)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 1024))
            rest = file.read()
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    if not length:
        return 'is empty (0 bytes)'
    if start not in ENDS:
        strange = is_picture_name(path) and not decodes(path) and not picture_size(path)
        return 'is no picture' if strange else None
    return None if ENDS[start] in rest else CUT_OFF


def is_picture_name(path: str) -> bool:
    return Path(path).suffix.lower() in ('.jpg', '.jpeg', '.png')


def decodes(path: str) -> bool:
    try:
        return mmcv.imfrombytes(Path(path).read_bytes()) is not None
    except cv2.error:
        return False


def picture_size(path: str) -> tuple[int, int] | None:
    """Width and height as the loaders see them: turned as a camera noted; ``None`` if unknown."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return image.size[::-1] if turned else image.size
    except (OSError, UnidentifiedImageError):
        return None


def check_masks(run: Run) -> Iterator[Finding]:
    """A pipeline that loads masks finds one for every object, and a head for masks gets them."""
    for split in run.splits:
        for leaf, looked_at in split.looked_at:
            bare = next((info for info in looked_at if lacks_masks(info)), None)
            if bare and loads(leaf, 'with_mask'):
                yield wrong(
                    f'{getattr(leaf, "ann_file", "the annotation file")} has objects without masks '
                    f'(segmentation), as in {Path(bare["img_path"]).name}, but the {split.name} '
                    'pipeline loads masks: set with_mask=False in LoadAnnotations and '
                    'roi_head.mask_head=None, or add the masks'
                )
    roi_head = getattr(run.model, 'roi_head', None)
    if run.train and getattr(roi_head, 'with_mask', False):
        for leaf in run.train.leaves:
            if loads(leaf, 'with_bbox') and not loads(leaf, 'with_mask'):
                yield wrong(
                    'model.roi_head.mask_head learns from masks, but the train pipeline loads '
                    'none: set with_mask=True in LoadAnnotations, or roi_head.mask_head=None'
                )


def loads(leaf: Any, what: str) -> bool:
    return any(getattr(step, what, False) for step in transforms(leaf))


def check_label_maps(run: Run) -> Iterator[Finding]:
    """Label maps, as the pipeline loads them, hold the numbers of the classes."""
    all_heads = list(heads(run.model)) if run.model is not None else []
    for split in run.splits:
        for leaf, looked_at in split.looked_at:
            steps = [s for s in transforms(leaf) if getattr(s, 'with_seg', False)]
            maps = [i for i in looked_at if i.get('seg_map_path') and not damage(i['seg_map_path'])]
            number = number_of_labels(run, leaf, maps)
            # Panoptic maps are colour pictures.
            plain = maps and 'segments_info' not in maps[0]
            if steps and plain and number and reads(leaf, 'seg_map_path'):
                ignored = {getattr(head, 'ignore_index', IGNORED) for _, head in all_heads}
                yield from look_into_maps(split, leaf, maps, steps[0], number, ignored)


def number_of_labels(run: Run, leaf: Any, maps: list[dict]) -> int | None:
    if maps and 'instances' in maps[0]:  # a detector with a branch for a label map
        branch = getattr(getattr(run.model, 'roi_head', run.model), 'semantic_head', None)
        return getattr(branch, 'num_classes', None)
    number = len(class_names(leaf) or ())
    single = run.model is not None and any(
        getattr(head, 'out_channels', None) == 1 for _, head in heads(run.model)
    )
    return max(number, 2 * single) or None  # one channel tells 1 from 0


def look_into_maps(
    split: Split, leaf: Any, maps: list[dict], step: Any, number: int, ignored: set[int]
) -> Iterator[Finding]:
    what = f'label maps of the {split.name} data'
    counts, seen, pixels = np.zeros(IGNORED + 1, np.int64), 0, 0
    outside: tuple[str, list[int]] | None = None
    for info in evenly(maps, MAPS):
        file = info['seg_map_path']
        try:
            result = copy.deepcopy(info)
            copy.deepcopy(step)._load_seg_map(result)  # of mmcv, mmdet and mmseg
            labels = np.asarray(result['gt_seg_map'])
        except Exception as error:
            yield wrong(f'{file} of the {what} cannot be loaded: {" ".join(str(error).split())}')
            return
        if labels.ndim != 2:
            yield wrong(
                f'{file} of the {what} is a colour picture of shape {labels.shape}: write the '
                'number of a class in every pixel of a map with one channel'
            )
            return
        if (deep := beyond_a_byte(file)) is not None:
            yield wrong(
                f'{file} of the {what} holds the number {deep}: labels are cut to 8 bits, 0 to 255'
            )
            return
        labels = np.where(np.isin(labels, list(ignored)), IGNORED, labels)
        found = np.bincount(labels.astype(np.int64).ravel().clip(0), minlength=IGNORED + 1)
        counts += found[: IGNORED + 1]
        bad = [int(i) for i in found.nonzero()[0] if i >= number and i != IGNORED]
        if bad and (outside is None or max(bad) > max(outside[1])):
            outside = file, bad
        seen, pixels = seen + 1, pixels + labels.size
        if pixels > PIXELS:
            break
    split.pixels = counts if split.pixels is None else split.pixels + counts
    yield from judge(split, leaf, counts, outside, number, all_read=seen == number_of_images(leaf))


def judge(
    split: Split,
    leaf: Any,
    counts: np.ndarray,
    outside: tuple[str, list[int]] | None,
    number: int,
    all_read: bool,
) -> Iterator[Finding]:
    """Judge the pixels per label of some label maps, of which ``outside`` names the worst."""
    classes, reduced = class_names(leaf) or [], bool(getattr(leaf, 'reduce_zero_label', False))
    what = f'label maps of the {split.name} data'
    present = [int(i) for i in counts.nonzero()[0] if i != IGNORED]
    if outside:
        file, bad = outside
        one_more = not reduced and bad == [number]
        cure = (
            'set reduce_zero_label=True if 0 stands for no class'
            if one_more
            else 'write the numbers from 0 up in the order of the classes, 255 where none is meant'
        )
        yield wrong(
            f'{file} of the {what} holds {some(bad)}, but the {number} classes have the numbers 0 '
            f'to {number - 1}{" after reduce_zero_label" * reduced}: {cure}'
        )
    elif not present:
        yield wrong(
            f'the {what} hold nothing but ignored pixels (255'
            + ', and 0 with reduce_zero_label' * reduced
            + '): write the number of a class in every pixel'
        )
    elif number > 1 and reduced and counts[IGNORED] and present[-1] == number - 2:
        background = bool(classes) and classes[0].lower().strip('_ ') in BACKGROUND
        text = (
            f'the {what} have no pixel of the last class {classes[-1]!r}, and 0 is ignored '
            f'(reduce_zero_label=True): if 0 is the class {classes[0]!r}, set '
            'reduce_zero_label=False'
        )
        # A few images need not show every class.
        certain = background or (all_read and split.name == 'train')
        yield wrong(text) if certain else doubt(text)
    elif number > 1 and present == [0] and not reduced and counts[IGNORED]:
        yield wrong(
            f'the {what} hold 0 and 255 alone, and 255 is ignored, so that {classes[1]!r} is never '
            'seen: write 1 in its pixels'
        )
    elif number > 1 and present == [0]:
        yield doubt(f'the {what} that were read hold one class alone, {classes[0]!r}')


def beyond_a_byte(file: str) -> int | None:
    """The largest number of a map of more than 8 bits, if it is over 255."""
    if '://' in file:
        return None
    try:
        with Image.open(file) as image:
            largest = int(np.asarray(image).max()) if image.mode[0] in 'IF' else 0
    except (OSError, UnidentifiedImageError):
        return None
    return largest if largest > 255 else None


def check_pipelines(run: Run) -> Iterator[Finding]:
    """The pipelines take an image; notes in ``run`` what training sees."""
    for split in run.splits:
        name_files(split.dataset)
        samples = []
        for index in {0, len(split.dataset or ()) // 2} if split.dataset is not None else ():
            try:
                sample = split.dataset[index]
            except Exception as error:
                reason = usage_message(error) or f'{type(error).__name__}: {error}'
                info: dict = getattr(split.dataset, 'get_data_info', lambda index: {})(index)
                image = info.get('img_path', f'image {index}')
                yield wrong(
                    f'{image} of the {split.name} data does not pass its pipeline: '
                    + ' '.join(reason.split())
                )
                break
            if problem := what_is_missing(split, sample, run.model):
                yield wrong(problem)
                break
            samples.append(sample)
            inputs = sample.get('inputs') if isinstance(sample, dict) else None
            if split.name == 'train' and isinstance(inputs, Tensor):
                shape = tuple(inputs.shape)
                seen = run.input_shape or shape
                run.input_shape = (shape[0], *map(max, shape[1:], seen[1:]))
        else:
            yield from check_batch(run, split, samples)


def check_batch(run: Run, split: Split, samples: list[Any]) -> Iterator[Finding]:
    """The preprocessor takes the images, and the backbone as many channels as they have."""
    cfg = copy.deepcopy(run.cfg.model.get('data_preprocessor'))
    plain = all(isinstance(s, dict) and isinstance(s.get('inputs'), Tensor) for s in samples)
    if run.model is None or not samples or not plain or not cfg or 'collate_fn' in split.loader:
        return
    cfg.pop('batch_augments', None)  # some ask for the iteration
    preprocessor = MODELS.build(cfg)
    size = split.loader.get('batch_size') if split.name == 'train' else 1
    try:
        batch = pseudo_collate(samples[:size])
        inputs = preprocessor(batch, training=split.name == 'train')['inputs']
    except Exception as error:
        known = family_of(type(preprocessor)) == type(preprocessor).__module__.partition('.')[0]
        yield (wrong if known else doubt)(
            f'the images of the {split.name} data do not pass model.data_preprocessor, '
            f'{type_name(cfg)}: {" ".join(f"{type(error).__name__}: {error}".split())}'
        )
        return
    wanted = getattr(getattr(run.model, 'backbone', None), 'in_channels', None)
    if isinstance(inputs, Tensor) and isinstance(wanted, int) and inputs.size(1) != wanted:
        yield wrong(
            f'the images of the {split.name} data have {inputs.size(1)} channels, and '
            f'model.backbone.in_channels is {wanted}: change it, or color_type of '
            'LoadImageFromFile'
        )


def what_is_missing(split: Split, sample: Any, model: Any) -> str | None:
    """What models of mmdet and mmseg need of a pipeline and do not get."""
    family = type(getattr(model, 'data_preprocessor', None)).__module__.partition('.')[0]
    if family not in FAMILIES or not isinstance(sample, dict):
        return None
    if 'inputs' not in sample:
        pack = 'PackDetInputs' if family == 'mmdet' else 'PackSegInputs'
        return f'the {split.name} pipeline gives no inputs: end it with {pack}'
    truth = sample.get('data_samples')
    if not isinstance(truth, BaseDataElement):
        return None
    if split.name != 'train':  # predictions are scaled back
        single = is_called(type(truth), 'DetDataSample', 'SegDataSample')
        needed = ('img_shape', 'ori_shape') if single else ()
        lacking = ' and no '.join(key for key in needed if key not in truth.metainfo)
        cure = 'add it to meta_keys of its last step'
        return f'the {split.name} pipeline gives no {lacking}: {cure}' if lacking else None
    boxes = hasattr(model, 'rpn_head') or hasattr(model, 'bbox_head')
    if boxes and 'bboxes' not in truth.get('gt_instances', ('bboxes',)):
        return 'the train pipeline loads no boxes: add LoadAnnotations with with_bbox=True'
    if hasattr(model, 'decode_head') and not any(key.startswith('gt_') for key in truth.keys()):
        return 'the train pipeline loads no label map: add LoadAnnotations'  # nor a depth map
    return None


def name_files(dataset: Any) -> None:
    """Let a data set name the file or the image when loading fails."""
    for leaf in leaves(dataset):
        if hasattr(leaf, 'prepare_data'):
            leaf.prepare_data = functools.partial(prepare, leaf)


def prepare(leaf: Any, index: int) -> Any:
    """``leaf.prepare_data(index)``.

    Raises:
        UsageError: Naming the file that is missing, damaged or without masks.
    """
    try:
        return type(leaf).prepare_data(leaf, index)
    except Exception as error:
        info = leaf.get_data_info(index)
        for path in (info[key] for key in FILES if isinstance(info.get(key), str)):
            if why := damage(path) or undecodable(path):
                cure = 'get it again, or take it out of the data'
                raise UsageError(f'{path} {why}: {cure}') from error
        if lacks_masks(info) and loads(leaf, 'with_mask'):
            raise UsageError(
                f'{info["img_path"]} has an object without a mask in {leaf.ann_file}: add it, or '
                'set with_mask=False in LoadAnnotations'
            ) from error
        if problem := problem_of(leaf):
            raise UsageError(problem) from error
        raise


def undecodable(path: str) -> str | None:
    """What Pillow says of the pixels of a file that the loader could not read."""
    if '://' in path:
        return None
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        known = Path(path).suffix.lower() in Image.registered_extensions()
        return 'is no picture' if known else None  # another kind of file, of a loader of its own
    except OSError as error:
        return f'cannot be decoded ({error})'
    return None
