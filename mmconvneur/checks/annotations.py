"""What in a COCO-style annotation file can be neither loaded nor evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    return next(problems(file), None)


def problems(file: str | Path, evaluated: bool = False, masks: bool = True) -> Iterator[str]:
    """What is wrong in a file.

    Args:
        file: Its path.
        evaluated: pycocotools needs more of it.
        masks: They are used.
    """
    try:
        content = json.loads(Path(file).read_text())
    except (ValueError, RecursionError) as error:
        yield f'{file} is no JSON file: {error}'
        return
    for part, fields in FIELDS.items():
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list):
            yield f'{file} has no list of {part}: COCO has lists of {", ".join(FIELDS)}'
            continue
        needed = fields | dict(iscrowd=NUMBER) if evaluated and part == 'annotations' else fields
        for i, item in enumerate(items):
            for name, kind in needed.items():
                if not isinstance(item, dict):
                    yield f'{file}: {part}[{i}] is {str(item)[:40]}, but has to be a dict'
                    break
                if name not in item:
                    yield f'{file}: {part}[{i}] has no {name}'
                elif not isinstance(value := item[name], kind) or (
                    name == 'bbox' and not is_box(value)
                ):
                    wanted = 'x, y, width, height' if name == 'bbox' else words(kind)
                    shown = repr(str(value)[:40])
                    yield f'{file}: {part}[{i}].{name} is {shown}, but has to be {wanted}'
            if masks and isinstance(item, dict) and not is_mask(item.get('segmentation') or []):
                yield f'{file}: {part}[{i}].segmentation is no list of polygons and no RLE dict'
    seen: set = set()
    for i, item in enumerate(content.get('annotations', ()) if isinstance(content, dict) else ()):
        if isinstance(item, dict) and isinstance(item.get('id'), KEY):
            if item['id'] in seen:
                yield f'{file}: annotations[{i}].id={item["id"]!r} is there twice'
            seen.add(item['id'])


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


def words(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return ' or '.join(kind.__name__ for kind in kinds)
