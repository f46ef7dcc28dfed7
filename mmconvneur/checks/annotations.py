"""What in a COCO-style annotation file can be neither loaded nor evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..utils.configs import is_called

NUMBER, KEY = (int, float), (int, str)
FIELDS: dict[str, dict[str, Any]] = {
    'images': dict(id=KEY, file_name=str, height=NUMBER, width=NUMBER),
    'annotations': dict(id=KEY, image_id=KEY, category_id=KEY, bbox=list, area=NUMBER),
    'categories': dict(id=KEY, name=str),
}


def problem_of(leaf: Any) -> str | None:
    """The file of a data set of COCO's kind, and the first thing in it that is wrong."""
    file = getattr(leaf, 'ann_file', None)
    if not file or not Path(file).is_file() or not is_called(type(leaf), 'CocoDataset'):
        return None
    return read(file)[1]


def read(file: str | Path, evaluated: bool = False, masks: bool = True) -> tuple[Any, str | None]:
    """The content of a file, and the first thing in it that is wrong.

    Args:
        file: Its path.
        evaluated: pycocotools needs more of it.
        masks: They are used.
    """
    try:
        content = json.loads(Path(file).read_text())
    except (ValueError, RecursionError) as error:
        return None, f'{file} is no JSON file: {error}'
    for part, fields in FIELDS.items():
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list):
            return content, f'{file} has no list of {part}: COCO has lists of {", ".join(FIELDS)}'
        needed = fields | dict(iscrowd=NUMBER) if evaluated and part == 'annotations' else fields
        for i, item in enumerate(items):
            if problem := wrong_in(item, needed, masks):
                return content, f'{file}: {part}[{i}]{problem}'
    seen = set()
    for i, item in enumerate(content['annotations']):
        if item['id'] in seen:
            return content, f'{file}: annotations[{i}].id={item["id"]!r} is there twice'
        seen.add(item['id'])
    return content, None


def wrong_in(item: Any, needed: dict[str, Any], masks: bool) -> str | None:
    """What is wrong in an entry of a list."""
    if not isinstance(item, dict):
        return f' is {str(item)[:40]}, but has to be a dict'
    for name, kind in needed.items():
        if name not in item:
            return f' has no {name}'
        value = item[name]
        if not isinstance(value, kind) or (name == 'bbox' and not is_box(value)):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            words = ' or '.join(kind.__name__ for kind in kinds)
            wanted = 'x, y, width, height' if name == 'bbox' else words
            return f'.{name} is {str(value)[:40]!r}, but has to be {wanted}'
    if masks and not is_mask(item.get('segmentation') or []):
        return '.segmentation is no list of polygons and no RLE dict'
    return None


def is_box(value: list) -> bool:
    return len(value) == 4 and all(isinstance(number, NUMBER) for number in value)


def is_mask(value: object) -> bool:
    if isinstance(value, dict):
        size = value.get('size')
        sized = isinstance(size, list) and [type(side) for side in size] == [int, int]
        return sized and isinstance(value.get('counts'), (str, list))
    return isinstance(value, list) and all(
        isinstance(polygon, list) and all(isinstance(number, NUMBER) for number in polygon)
        for polygon in value
    )
