"""Classes of the config, of the annotation files and of the heads."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS
from torch import nn

from ..utils.configs import datasets, evaluator_options, is_called, metrics, resolve, scope_of
from .annotations import read
from .data import Run, Split, class_names, infos, labels_of, leaves, number_of_images
from .findings import Finding, doubt, some, wrong


def check_names(run: Run) -> Iterator[Finding]:
    """Every label is called as in the annotation file, of COCO's style, or as its folder."""
    for split in run.splits:
        for cfg in datasets(split.loader):
            classes = (cfg.get('metainfo') or {}).get('classes')
            if isinstance(classes, str):
                yield wrong(
                    f'the classes of the {split.name} data are the string {classes!r}: for one '
                    f'class write classes=({classes!r},), with a comma'
                )
            elif classes is not None and not isinstance(classes, (list, tuple)):
                yield wrong(
                    f'the classes of the {split.name} data are {classes!r}: give a tuple of names'
                )
        for leaf in split.leaves:
            classes = (getattr(leaf, 'metainfo', None) or {}).get('classes')
            if classes is not None and not isinstance(classes, (list, tuple)):
                continue
            if twice := [name for name, n in Counter(map(str, classes or ())).items() if n > 1]:
                yield wrong(
                    f'the {split.name} data has the classes {some(twice)} more than once: name '
                    'each once'
                )
                continue
            folders = getattr(leaf, 'folder_to_idx', None)  # of mmpretrain's CustomDataset
            if classes and folders and sorted(classes) == list(folders) != list(classes):
                yield wrong(
                    f'the {split.name} classes are in another order than the folders in '
                    f'{leaf.img_prefix}, whose sorted names are labels 0, 1, ...: write '
                    f'metainfo=dict(classes={quoted(list(folders))})'
                )
            file, ids = getattr(leaf, 'ann_file', None), getattr(leaf, 'cat_ids', None)
            if not classes or not file or ids is None:
                continue
            if names := category_names(file):
                counts = {i: len(images) for i, images in getattr(leaf, 'cat_img_map', {}).items()}
                if strange := counts.keys() - names.keys():
                    yield doubt(
                        f'{sum(counts[i] for i in strange)} objects of {file} have a category_id '
                        f'({some(sorted(strange, key=str))}) that is none of its categories: they '
                        'are left out'
                    )
                labels = [names[i] for i in ids]
                yield from compare(
                    split.name, list(map(str, classes)), labels, list(names.values()), file
                )


def compare(
    split: str, classes: list[str], labels: list[str], categories: list[str], file: str
) -> Iterator[Finding]:
    """``labels`` are the names that the annotations give to label 0, 1, ..., of ``categories``."""
    absent = [repr(n) if n != n.strip() else n for n in classes if n not in categories]
    spare = [name for name in categories if name not in classes]
    near = {name: closest(name, spare) for name in absent}
    hint = ''.join(f' (did you mean {near[name]}?)' for name in absent[:1] if near[name])
    shifted = [(name, label) for name, label in zip(classes, labels, strict=False) if name != label]
    if classes and not labels:
        yield wrong(
            f'none of the {split} classes {some(classes)} is in {file}{hint}: it has '
            f'{some(categories)}'
        )
    elif shifted and absent:
        name, label = shifted[0]
        text = (
            f'{split} classes {some(absent)} are not in {file}{hint}, so that its {label!r} counts '
            f'as {name!r}: write metainfo=dict(classes={quoted(categories)}) or some of these in '
            'this order'
        )
        # A data set that takes all categories by number may spell them in its own way.
        own = len(labels) == len(categories) == len(classes) and not any(near.values())
        yield doubt(text) if own else wrong(text)
    elif shifted:
        name, label = shifted[0]
        yield wrong(
            f'the {split} classes are in another order than in {file}, so that its {label!r} '
            f'counts as {name!r}: write metainfo=dict(classes={quoted(labels)})'
        )
    elif len(labels) > len(classes):
        yield wrong(
            f'{file} gives labels up to {len(labels) - 1} ({labels[-1]!r}), but there are '
            f'{len(classes)} {split} classes: write metainfo=dict(classes={quoted(labels)})'
        )
    elif absent:
        text = f'{split} classes {some(absent)} are not in {file}{hint}: nothing has these labels'
        yield wrong(text) if any(near.values()) else doubt(text)


def check_same_classes(run: Run) -> Iterator[Finding]:
    """Training and evaluation mean the same by a label."""
    named = [(s.name, classes) for s in run.splits for x in s.leaves if (classes := class_names(x))]
    for (name, first), (other, second) in zip(named, named[1:], strict=False):
        if first != second and len(first) == len(second):
            label = [a == b for a, b in zip(first, second, strict=True)].index(False)
            text = (
                f'label {label} is {first[label]!r} in the {name} data and {second[label]!r} in '
                f'the {other} data: give both the same metainfo'
            )
            yield wrong(text) if sorted(first) == sorted(second) else doubt(text)


def check_labels(run: Run) -> Iterator[Finding]:
    """Every label is the number of a class, and data without a list of classes shows them all."""
    for split in run.splits:
        for leaf, looked_at in split.looked_at:
            classes = class_names(leaf)
            found = Counter(label for info in looked_at for label in labels_of(info))
            if not classes or not found:
                continue
            file = getattr(leaf, 'ann_file', None) or f'the {split.name} data'
            numbers = range(-1, len(classes))  # -1 for what is to be ignored
            if outside := [repr(label) for label in found if label not in numbers]:
                yield wrong(
                    f'{file} has the labels {some(outside)}, but the {len(classes)} {split.name} '
                    f'classes have the numbers 0 to {len(classes) - 1}: write these'
                )
                continue
            unseen = [name for i, name in enumerate(classes) if i not in found]
            whole = split.name == 'train' and len(looked_at) == number_of_images(leaf)
            if unseen and whole and not hasattr(leaf, 'cat_ids'):  # else its names are compared
                yield doubt(
                    f'nothing in {file} is of the {split.name} classes {some(unseen)}: are they '
                    'spelt as in the annotations?'
                )


def check_objects(run: Run) -> Iterator[Finding]:
    """Data sets of COCO's kind keep objects, and their boxes lie in the images."""
    for split in run.splits:
        for leaf, looked_at in split.looked_at:
            of_boxes = looked_at and 'instances' in looked_at[0] and hasattr(leaf, 'cat_ids')
            if not of_boxes or not leaf.cat_ids:  # else names and images are to blame
                continue
            boxes = [(i, o['bbox']) for i in looked_at for o in i['instances'] if 'bbox' in o]
            if not boxes and '"bbox"' in Path(leaf.ann_file).read_text():
                yield doubt(
                    f'no object of {leaf.ann_file} is left in the {split.name} data: boxes are x, '
                    'y, width, height in pixels, of one pixel at least'
                )
            beyond = sum(b[2] > i['width'] + 1 or b[3] > i['height'] + 1 for i, b in boxes)
            if beyond > 0.3 * len(boxes):
                yield doubt(
                    f'{beyond} of {len(boxes)} boxes of {leaf.ann_file} reach beyond their images: '
                    'write x, y, width, height and not two corners'
                )


def check_heads(run: Run) -> Iterator[Finding]:
    """Every head has as many classes as the data, as in mmdet's ``NumClassCheckHook``.

    Its losses have as many weights, or one more, of the background.
    """
    sizes: dict[int, list[str]] = {}
    allowed: dict[int, set[int]] = {}
    for split in run.splits:
        for leaf, (info, *_) in ((leaf, info) for leaf, info in split.looked_at if info):
            classes = class_names(leaf)
            if classes and info.keys() & {'instances', 'seg_map_path', 'gt_label'}:
                names = sizes.setdefault(len(classes), [])
                names += [split.name] if split.name not in names else []
                meta = leaf.metainfo  # a panoptic data set has heads for parts of the classes
                things, stuff = (len(meta.get(f'{x}_classes', ())) for x in ('thing', 'stuff'))
                allowed[len(classes)] = {len(classes), *([things, stuff + 1] if things else [])}
    for path, head in heads(run.model) if run.model is not None else ():
        for number, names in sizes.items():
            names = [n for n in names if n != 'test' or not path.startswith('auxiliary_head')]
            if names and head.num_classes not in allowed[number]:
                yield wrong(
                    f'model.{path}.num_classes is {head.num_classes}, but the '
                    f'{" and ".join(names)} data has {number} classes: set it to {number}'
                )
        for name, loss in head.named_modules():
            weights = getattr(loss, 'class_weight', None)
            numbers = 1, head.num_classes, head.num_classes + 1
            if name and isinstance(weights, Sequence) and len(weights) not in numbers:
                yield wrong(
                    f'model.{path}.{name}.class_weight has {len(weights)} weights, but the head '
                    f'has {head.num_classes} classes: give one for each, and one more where the '
                    'head has a background'
                )


# Heads whose number of classes is not that of the data: a proposal is of one class, HTC's and
# SCNet's semantic branch has classes of its own, STDC's detail head knows edges, ReID identities.
OTHER_CLASSES = re.compile(r'(^|\.)(rpn_head|semantic_head|reid)(\.|$)')
OTHER_HEADS = ('STDCHead', 'LinearReIDHead')


def heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    if getattr(model, 'language_model', None) is not None:
        return  # its classes are words
    for path, module in model.named_modules():
        name = re.sub(r'(\.\d+)+$', '', path).rpartition('.')[2]
        if (
            name.endswith('head')
            and isinstance(getattr(module, 'num_classes', None), int)
            and not OTHER_CLASSES.search(path)
            and type(module).__name__ not in OTHER_HEADS
            and not getattr(module, 'class_agnostic', False)
        ):
            yield path, module


def check_evaluator(run: Run) -> Iterator[Finding]:
    """The annotation file of a COCO metric is that of the images it will be given."""
    for split in run.splits:
        for metric, given in metrics_with_data(run, split):
            kind = resolve(METRICS, metric['type'], scope_of(run.cfg))
            if not is_called(kind, 'CocoMetric') or metric.get('format_only'):
                continue
            yield from check_masks_of_metric(run, split, metric, given)
            file = metric.get('ann_file')
            ours = [leaf for leaf in given if hasattr(leaf, 'cat_ids')]
            if not file or '://' in str(file) or not ours or len(ours) < len(given):
                continue
            if not Path(file).is_file():
                yield wrong(f'{split.name}_evaluator.ann_file={file} does not exist')
                continue
            masks = 'segm' in (metric.get('metric') or ())
            content, problem = read(file, evaluated=True, masks=masks)
            others = is_called(kind, 'LVISMetric') and isinstance(content, dict)  # other fields
            if problem and not others:
                yield wrong(f'{split.name}_evaluator: {problem}')
                continue
            there = [category['name'] for category in content['categories']]
            missing = [name for name in class_names(ours[0]) or () if name not in there]
            if missing and number_of_images(ours[0]):
                yield wrong(
                    f'{split.name}_evaluator.ann_file={file} has no {some(missing)}: a prediction '
                    'of such a class ends the evaluation; take the annotation file of the data'
                )
            if any(box['id'] == 0 for box in content['annotations']):
                yield doubt(
                    f'{split.name}_evaluator.ann_file={file} has an annotation with id=0, which '
                    'pycocotools counts as missed: number them from 1'
                )
            own = Path(ours[0].ann_file)
            if len(ours) > 1 or not own.is_file() or not own.samefile(file):
                yield from compare_images(split, ours, file, content)


def metrics_with_data(run: Run, split: Split) -> list[tuple[dict, list[Any]]]:
    """Each metric with what it evaluates: of mmdet's ``MultiDatasetsEvaluator`` one data set."""
    given = metrics(run.cfg, split.name)
    parts = getattr(split.dataset, 'datasets', None)
    if parts and 'dataset_prefixes' in evaluator_options(run.cfg, split.name):
        return [(m, list(leaves(part))) for m, part in zip(given, parts, strict=False)]
    return [(metric, split.leaves) for metric in given]


def compare_images(
    split: Split, leaves: Sequence[Any], file: str, content: dict
) -> Iterator[Finding]:
    known = {image['id']: image for image in content['images']}
    truth: dict[Any, set] = {}
    for box in content['annotations']:
        truth.setdefault(box['image_id'], set()).add(tuple(round(x) for x in box['bbox'][:2]))
    given = [info for leaf in leaves for info in infos(leaf)]
    own = some({str(leaf.ann_file) for leaf in leaves})
    cure = f'the data has {own}: give the evaluator the same file'
    name = f'{split.name}_evaluator.ann_file={file}'
    strange = [
        info
        for info in given
        if (image := known.get(info['img_id'])) is None
        or Path(image.get('file_name', info['img_path'])).name != Path(info['img_path']).name
    ]
    both = [i for i in given if i.get('instances') and truth.get(i['img_id'])]
    other = [i for i in both if not corners(i) & truth[i['img_id']]]
    if strange:
        yield wrong(
            f'{name} is of other images: {len(strange)} of {len(given)} images are not in it, such '
            f'as {Path(strange[0]["img_path"]).name}; {cure}'
        )
    elif both and len(other) == len(both):
        yield wrong(f'{name} has none of the boxes of the {split.name} data; {cure}')
    elif len(other) > len(both) / 2:
        yield doubt(f'{name} has other boxes in {len(other)} of {len(both)} images; {cure}')
    elif len(given) < len(known):
        yield doubt(
            f'{name} has {len(known)} images and the {split.name} data {len(given)}: all objects '
            'of the others count as missed'
        )


def corners(info: dict) -> set[tuple[int, int]]:
    return {tuple(round(x) for x in instance['bbox'][:2]) for instance in info['instances']}


def check_masks_of_metric(
    run: Run, split: Split, metric: dict, given: Sequence[Any]
) -> Iterator[Finding]:
    if 'segm' not in (metric.get('metric') or ()):
        return
    roi_head = getattr(run.model, 'roi_head', None)
    if roi_head is not None and not getattr(run.model, 'with_mask', True):
        yield wrong(
            f"{split.name}_evaluator.metric has 'segm', but the model makes no masks: write "
            "metric='bbox'"
        )
    for leaf, looked_at in split.looked_at:
        bare = next((info for info in looked_at if lacks_masks(info)), None)
        if bare and leaf in given:
            yield wrong(
                f"{split.name}_evaluator.metric has 'segm', but {leaf.ann_file} has no masks "
                f"(segmentation) for {Path(bare['img_path']).name}: write metric='bbox'"
            )


def lacks_masks(info: dict) -> bool:
    return any('mask' not in instance for instance in info.get('instances', ()))


def category_names(file: str) -> dict[Any, str]:
    """The categories of a COCO-style file by their number; empty for any other file.

    Only this list is parsed: a whole file of COCO takes ten seconds.
    """
    text = Path(file).read_text(errors='ignore') if Path(file).is_file() else ''
    for start in re.finditer(r'"categories"\s*:\s*(?=\[)', text):
        try:
            listed, _ = json.JSONDecoder().raw_decode(text, start.end())
            return {category['id']: category['name'] for category in listed}
        except (ValueError, TypeError, KeyError):
            continue
    return {}


def closest(name: str, choices: Sequence[str]) -> str | None:
    """A choice that differs in little more than case and a letter."""
    plain = {choice.lower().strip(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower().strip(), plain, n=1, cutoff=0.75)
    return plain[near[0]] if near else None


def quoted(names: Sequence[str]) -> str:
    return repr(tuple(names)) if len(names) < 30 else 'the categories of the file'
