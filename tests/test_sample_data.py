"""What the generator writes, read back with pycocotools, OpenCV and independent arithmetic."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools.coco import COCO
from scipy.stats import chi2_contingency, chisquare

from mmconvneur.errors import UsageError
from mmconvneur.utils.configs import SAMPLE_TASKS
from sample_data import (
    CUE_CLASSES,
    FASHION_CLASSES,
    LEGEND_CLASSES,
    STUFF_CLASSES,
    THING_CLASSES,
    far_from_corners,
    legend_plan,
    make_dataset,
    make_scene,
    photographs,
)
from sample_data import TASKS as ALL_TASKS
from sample_data.corners import CUE_COLOURS
from sample_data.fashion import fashion

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools' / 'make_sample_data.py'
DATASETS = ROOT / 'configs' / '_base_' / 'datasets'
SPLITS = ('train', 'val')
TASKS = {name: task for name, task in ALL_TASKS.items() if not task.items}  # of no other files
SMALL = dict(num_train=3, num_val=2, size=67)


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    """Every task at its own size, 12 + 6 pictures."""
    root = tmp_path_factory.mktemp('data')
    for task in TASKS:
        assert make_dataset(task, root / task, 12, 6)
    return root


def read(root, kind, split, record):
    path = root / kind / split / record['file_name']
    image = cv2.imread(str(path), cv2.IMREAD_COLOR if kind == 'images' else cv2.IMREAD_UNCHANGED)
    return image[..., ::-1] if kind == 'images' else image


def digest(root):
    files = sorted(p for p in root.rglob('*') if p.is_file() and p.name != 'dataset.json')
    return hashlib.sha256(b''.join(p.read_bytes() for p in files)).hexdigest()


def records(root, task):
    """(split, COCO, image record, annotations) of every picture."""
    for split in SPLITS:
        coco = COCO(root / task / 'annotations' / f'instances_{split}.json')
        for record in coco.loadImgs(coco.getImgIds()):
            found = coco.loadAnns(coco.getAnnIds(imgIds=record['id']))
            yield split, coco, record, found


def test_configs_have_the_classes_of_the_tasks():
    classes = {
        'sample_instance': THING_CLASSES,
        'sample_semantic': (*THING_CLASSES, *STUFF_CLASSES),
        'fashion_instance': FASHION_CLASSES,
        'fashion_semantic': (*FASHION_CLASSES, *STUFF_CLASSES),
        'cue': ('background', *CUE_CLASSES),
        'legend': ('background', *LEGEND_CLASSES),
    }
    for name, expected in classes.items():
        cfg = Config.fromfile(DATASETS / f'{name}.py')
        metainfo = cfg.train_dataloader.dataset.metainfo
        assert tuple(metainfo.classes) == expected
        assert len({tuple(colour) for colour in metainfo.palette}) == len(expected)
        if name == 'cue':
            assert [tuple(colour) for colour in metainfo.palette[1:]] == list(CUE_COLOURS)
    assert [len(task.things) for task in TASKS.values()] == [5, 3, 3]


def test_the_package_names_the_tasks_in_its_errors():
    assert SAMPLE_TASKS == tuple(ALL_TASKS)


@pytest.mark.parametrize('task', TASKS)
def test_same_seed_same_bytes(task, tmp_path):
    make_dataset(task, tmp_path / 'a', **SMALL)
    make_dataset(task, tmp_path / 'b', **SMALL)
    make_dataset(task, tmp_path / 'c', **SMALL, seed=1)
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b') != digest(tmp_path / 'c')


@pytest.mark.parametrize('task', TASKS)
def test_a_picture_does_not_depend_on_the_others(datasets, task):
    for split, _, record, _ in records(datasets, task):
        if record['id'] == 4:
            scene = make_scene(task, split, 4, TASKS[task].size)
            np.testing.assert_array_equal(
                scene.image, read(datasets / task, 'images', split, record)
            )
            other = make_scene(task, SPLITS[split == 'train'], 4, TASKS[task].size)
            assert (scene.image != other.image).mean() > 0.5


@pytest.mark.parametrize('task', TASKS)
def test_masks_boxes_and_semantics_agree(datasets, task):
    things, size = TASKS[task].things, TASKS[task].size
    for split, coco, record, annotations in records(datasets, task):
        assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(things)
        semantic = read(datasets / task, 'semantic', split, record)
        assert read(datasets / task, 'images', split, record).shape == (size, size, 3)
        claimed = np.zeros((size, size), int)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            claimed += mask
            assert (semantic[mask] == annotation['category_id']).all()
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert annotation['bbox'] == box
            assert annotation['area'] == len(x) >= 12
            assert annotation['iscrowd'] == 0
        assert claimed.max() == 1
        stuff = range(len(things) + 1, len(things) + len(TASKS[task].stuff) + 1)
        if task == 'legend':
            for x, y, width, height in (mark['box'] for mark in record['marks']):
                entry = semantic[y : y + height, x : x + width]
                assert len(np.unique(entry)) == 1
                assert entry[0, 0] in (range(1, 4) if split == 'train' else [255])
                entry[:] = 0
        assert np.isin(semantic[claimed == 0], [0, *stuff]).all()
        assert 1 <= len(annotations) <= 7


def test_sample_has_every_class_scale_and_stuff():
    scenes = [make_scene('sample', 'train', i, 96) for i in range(120)]
    seen = np.unique([v for s in scenes for v in np.unique(s.semantic)])
    assert seen.tolist() == list(range(9))
    spans, aspects, hidden = [], [], 0
    for scene in scenes:
        for index in range(len(scene.labels)):
            mask = (scene.owner == index + 1).astype(np.uint8)
            _, (width, height), _ = cv2.minAreaRect(cv2.findNonZero(mask))
            spans.append(max(width, height) + 1)
            aspects.append((max(width, height) + 1) / (min(width, height) + 1))
            touching = cv2.dilate(mask, np.ones((3, 3))) * scene.owner
            hidden += bool((touching > index + 1).any())
    assert min(spans) < 12 and max(spans) > 40  # 24 and 80 pixels at 192
    assert min(aspects) < 1.1 and max(aspects) > 4
    assert hidden > 30


@pytest.mark.parametrize('task', TASKS)
def test_splits_use_disjoint_regions(task):
    used = {split: {} for split in SPLITS}
    for split in SPLITS:
        for index in range(150):
            for name, *box in make_scene(task, split, index, 64).sources:
                used[split].setdefault(name, set()).add(tuple(box))
    assert set(used['train']) == set(used['val']) == set(photographs.FILES)
    for name, boxes in used['train'].items():
        for x, y, w, h in boxes:
            for u, v, s, t in used['val'][name]:
                assert x + w <= u or u + s <= x or y + h <= v or v + t <= y
                assert name == 'coins' or x + w + 8 <= u
    assert (len(used['train']['coins']), len(used['val']['coins'])) == (18, 6)


def test_sources_are_where_the_pixels_come_from():
    rng = np.random.default_rng(0)
    side = 151
    for name in ('brick', 'chelsea'):
        for split in SPLITS:
            picture, (_, x, y, w, h) = photographs.crop(name, split, side, rng)
            square = photographs.photograph(name)[y : y + h, x : x + w]
            square = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
            closest = min(np.abs(picture - s).mean() for s in (square, square[:, ::-1]))
            assert closest < 6
            assert np.abs(picture - square[::-1]).mean() > 2 * closest


def saturation(image):
    return image.max(-1).astype(int) - image.min(-1)


def corners(image, width, height):
    yield image[:height, :width]
    yield image[:height, -width:]
    yield image[-height:, :width]
    yield image[-height:, -width:]


def test_cue_is_told_by_a_corner_of_the_picture(datasets):
    classes = set()
    for split, _, record, annotations in records(datasets, 'cue'):
        image = read(datasets / 'cue', 'images', split, record)
        counts = [(saturation(corner) > 70).sum() for corner in corners(image, 14, 14)]
        assert sorted(counts)[-2] < 10 < 130 < max(counts)
        corner = list(corners(image, 14, 14))[int(np.argmax(counts))]
        colour = corner[saturation(corner) > 70].mean(0)
        for annotation in annotations:
            assert (
                CUE_CLASSES[annotation['category_id'] - 1]
                == ('red', 'green', 'blue')[int(colour.argmax())]
            )
        classes |= {a['category_id'] for a in annotations}
        inner = image[16:-16, 16:-16]
        assert (saturation(inner) > 70).mean() < 0.001  # things and ground carry no colour
    assert classes == {1, 2, 3}


@pytest.mark.parametrize('task', ['cue', 'legend'])
def test_things_keep_their_distance(datasets, task):
    for _, coco, record, annotations in records(datasets, task):
        mask = np.any([coco.annToMask(a) for a in annotations], 0)
        y, x = np.nonzero(mask)
        for mark in record['marks']:
            left, top, width, height = mark['box']
            columns, rows = np.arange(left, left + width), np.arange(top, top + height)
            across = np.abs(x[:, None] - columns).min(1)
            down = np.abs(y[:, None] - rows).min(1)
            assert np.maximum(across, down).min() >= 33


def test_far_from_corners_by_brute_force():
    size, width, height, distance = 23, 3, 5, 7
    box = [(i, j) for i in range(height) for j in range(width)]
    far = far_from_corners(size, width, height, distance)
    for y in range(size):
        for x in range(size):
            flips = [(v, u) for v in (y, size - 1 - y) for u in (x, size - 1 - x)]
            least = min(max(abs(v - i), abs(u - j)) for v, u in flips for i, j in box)
            assert far[y, x] == (least >= distance)


def colour_name(rgb):
    on = tuple(int(channel > 0.57 * max(rgb)) for channel in rgb)
    return {
        (1, 0, 0): 'red', (0, 1, 0): 'green', (0, 0, 1): 'blue',
        (1, 1, 0): 'yellow', (0, 1, 1): 'cyan', (1, 0, 1): 'magenta',
    }[on]  # fmt: skip


def mark_name(square):
    """From the share of ink, without the blurred edges."""
    ink = (square[1:-1, 1:-1].mean(-1) < 130).mean()
    return 'dark' if ink > 0.9 else 'light' if ink < 0.1 else 'stripes'


def read_legend(image):
    """{colour: mark} from the pixels of the corners."""
    pairs = {}
    for corner in corners(image, 26, 14):
        y, x = np.nonzero(saturation(corner) > 80)
        if len(x) > 100:
            x0, y0 = round(np.median(x) - 5.5), round(np.median(y) - 5.5)
            patch = corner[y0 : y0 + 12, x0 : x0 + 12]
            mark = corner[y0 : y0 + 12, x0 + 12 : x0 + 24]
            pairs[colour_name(patch.mean((0, 1)))] = mark_name(mark)
    return pairs


def test_legend_is_readable_and_true(datasets):
    classes, sizes = set(), set()
    for split, coco, record, annotations in records(datasets, 'legend'):
        image = read(datasets / 'legend', 'images', split, record)
        legend = read_legend(image)
        assert len(set(legend.values())) == len(legend) == len(record['marks'])
        sizes.add(len(legend))
        if split == 'train':
            semantic = read(datasets / 'legend', 'semantic', split, record)
            for mark in record['marks']:
                name = LEGEND_CLASSES[semantic[mark['box'][1], mark['box'][0]] - 1]
                assert mark['name'].endswith(name)
        assert {m['name'] for m in record['marks']} == {f'{c} {g}' for c, g in legend.items()}
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            mark = legend[colour_name(image[mask].mean(0))]
            assert LEGEND_CLASSES[annotation['category_id'] - 1] == mark
            classes.add(mark)
    assert classes == set(LEGEND_CLASSES) and sizes == {1, 2, 3}


def independent(*columns):
    """p of the hypothesis that the first column (classes) does not depend on the second."""
    table = np.zeros([len(np.unique(c)) for c in columns])
    places = tuple(np.unique(c, return_inverse=True)[1] for c in columns)
    np.add.at(table, places, 1)
    return chi2_contingency(table).pvalue


def test_legend_has_no_shortcut():
    rows = []
    for index in range(2000):
        plan = legend_plan(np.random.default_rng([3, 0, index]), 3)
        entry = plan.entries[0]
        rows.append((plan.classes[entry], plan.colours[entry], plan.corners[entry], entry))
    classes, colours, places, entries = np.transpose(rows)
    assert chisquare(np.bincount(classes)).pvalue > 0.001
    assert chisquare(np.bincount(colours)).pvalue > 0.001
    for column in (colours, places, entries):
        assert independent(classes, column) > 0.001
    told = [g for g, c, p in zip(classes, colours, places, strict=True) if (c, p) == (0, 0)]
    assert len(set(told)) == 3


@pytest.mark.parametrize('task', ['cue', 'legend'])
def test_nothing_about_a_thing_tells_its_class(task):
    rows = []
    for index in range(400):
        scene = make_scene(task, 'train', index, 64)
        mask = scene.owner == 1
        y, x = np.nonzero(mask)
        bright = scene.image[mask].mean()
        rows.append((scene.labels[0], x.mean(), y.mean(), bright, len(x), len(scene.labels)))
    classes, *looks = np.transpose(rows)
    assert chisquare(np.unique(classes, return_counts=True)[1]).pvalue > 0.001
    for look in looks:
        assert independent(classes, look > np.median(look)) > 0.001


@pytest.mark.parametrize('marks', [dict(patch=8, distance=20), dict(patch=12, distance=30)])
def test_difficulty_of_the_legend_is_settable(marks):
    scene = make_scene('legend', 'train', 0, 128, **marks)
    assert {tuple(m['box'][2:]) for m in scene.marks} == {(2 * marks['patch'], marks['patch'])}
    with pytest.raises(UsageError, match='distance=90 leaves no room'):
        make_scene('legend', 'train', 0, 128, distance=90)


# ------------------------------------------------------------------------------------ Fashion-MNIST
@pytest.fixture(scope='module')
def idx(tmp_path_factory):
    """Four files as those of Fashion-MNIST: the brightness of a square is the class of an item."""
    folder = tmp_path_factory.mktemp('idx')
    for prefix, number, shift in (('train', 30, 0), ('t10k', 20, 2)):
        labels = np.arange(number, dtype=np.uint8) % 10
        images = np.zeros((number, 28, 28), np.uint8)
        images[:, 4:18, 5 + shift : 20] = 50 + 20 * labels[:, None, None]
        for name, array in (
            (f'{prefix}-images-idx3-ubyte', images),
            (f'{prefix}-labels-idx1-ubyte', labels),
        ):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
            (folder / f'{name}.gz').write_bytes(gzip.compress(head + array.tobytes()))
    return str(folder)


def test_items_of_fashion_mnist_by_class(idx, tmp_path):
    assert make_dataset('fashion', tmp_path / 'fashion', 2, 1, 64, folder=idx)
    for split, number in (('train', 30), ('val', 20)):
        images, labels = fashion(split, idx)
        things = tmp_path / 'fashion' / 'things' / split
        assert sorted(path.name for path in things.iterdir()) == sorted(FASHION_CLASSES)
        assert len(list(things.glob('*/*.png'))) == number == len(images)
        for index in range(number):
            path = things / FASHION_CLASSES[labels[index]] / f'{index:05}.png'
            assert (cv2.imread(str(path)) == images[index][..., None]).all()


def test_scenes_of_items(idx):
    seen, angles = set(), []
    for index in range(40):
        scene = make_scene('fashion', 'train', index, 128, folder=idx)
        other = make_scene('fashion', 'val', index, 128, folder=idx)
        assert {s[3] for s in scene.sources if s[0] == 'fashion'} <= {15}  # as wide as in training
        assert {s[3] for s in other.sources if s[0] == 'fashion'} <= {13}
        seen |= set(scene.labels)
        assert set(np.unique(scene.semantic)) <= set(range(14))
        assert (scene.semantic[scene.owner > 0] <= 10).all()
        for i, label in enumerate(scene.labels):
            mask = scene.owner == i + 1
            assert (scene.semantic[mask] == label + 1).all() and mask.sum() >= 12
            (_, _), _, angle = cv2.minAreaRect(cv2.findNonZero(mask.astype(np.uint8)))
            angles.append(angle)
    assert seen == set(range(10)) and np.std(angles) > 10


def test_files_that_are_not_fashion_mnist(idx, tmp_path):
    with pytest.raises(
        UsageError, match='train-images-idx3-ubyte, alone or as .gz, does not exist'
    ):
        make_dataset('fashion', tmp_path / 'a', 1, 1, 64, folder=str(tmp_path))
    for name in Path(idx).iterdir():
        content = gzip.decompress(name.read_bytes())
        (tmp_path / name.stem).write_bytes(content[:-1])
    with pytest.raises(UsageError, match='is no IDX file of 3 axes, or is damaged'):
        make_dataset('fashion', tmp_path / 'a', 1, 1, 64, folder=str(tmp_path))


def interrupted(numbers, description):
    yield from list(numbers)[:1]
    raise KeyboardInterrupt


def test_an_interrupted_build_leaves_nothing_behind(tmp_path):
    root = tmp_path / 'sample'
    with pytest.raises(KeyboardInterrupt):
        make_dataset('sample', root, **SMALL, progress=interrupted)
    assert list(tmp_path.iterdir()) == []
    make_dataset('sample', root, **SMALL)
    before = digest(root)
    with pytest.raises(KeyboardInterrupt):
        make_dataset('sample', root, **SMALL, seed=1, progress=interrupted)
    assert list(tmp_path.iterdir()) == [root]
    assert digest(root) == before


def test_left_overs_of_a_kill_are_cleared(tmp_path):
    (tmp_path / '.cue.partial' / 'images' / 'train').mkdir(parents=True)
    make_dataset('cue', tmp_path / 'cue', **SMALL)
    assert list(tmp_path.iterdir()) == [tmp_path / 'cue']


def test_again_does_nothing_and_other_arguments_rebuild(tmp_path):
    root = tmp_path / 'new' / 'cue'
    assert make_dataset('cue', root, **SMALL)
    made = (root / 'dataset.json').stat().st_mtime_ns
    assert not make_dataset('cue', root, **SMALL)
    assert (root / 'dataset.json').stat().st_mtime_ns == made
    assert make_dataset('cue', root, **SMALL | dict(num_train=2))
    assert len(list((root / 'images' / 'train').iterdir())) == 2
    description = json.loads((root / 'dataset.json').read_text())
    assert description['num_train'] == 2 and description['task'] == 'cue'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(task='coco'), "unknown task 'coco': choose one of sample, cue, legend"),
        (dict(num_train=0), 'num_train=0 is too small: choose 1 or more'),
        (dict(num_val=-1), 'num_val=-1 is too small: choose 1 or more'),
        (dict(size=63), 'size=63 is too small: choose 64 or more'),
        (dict(seed=-1), 'seed=-1 is too small: choose 0 or more'),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        make_dataset(**dict(task='cue', root=tmp_path / 'x') | arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('marker', [None, '{"maker": "somebody else"}', '[1', '7'])
def test_a_directory_of_somebody_else_is_left_alone(tmp_path, marker):
    (tmp_path / 'photo.png').write_bytes(b'mine')
    if marker:
        (tmp_path / 'dataset.json').write_text(marker)
    with pytest.raises(UsageError, match='holds something else'):
        make_dataset('cue', tmp_path, **SMALL)
    assert (tmp_path / 'photo.png').read_bytes() == b'mine'


def test_unknown_split_and_missing_photograph(monkeypatch):
    with pytest.raises(UsageError, match="unknown split 'test': choose one of train, val"):
        make_scene('cue', 'test', 0, 64)
    monkeypatch.setitem(photographs.FILES, 'nowhere', 'nowhere.png')
    with pytest.raises(UsageError, match='nowhere.png is missing: scikit-image'):
        photographs.photograph('nowhere')


def test_tool(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(TOOL), '--task', 'legend', *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    small = ('--num-train', '2', '--num-val', '1', '--size', '64')
    assert 'data/legend is made' in run(*small).stdout
    assert 'data/legend is there already' in run(*small).stdout
    failed = run('--size', '5')
    assert failed.returncode == 1
    assert failed.stderr == 'error: size=5 is too small: choose 64 or more\n'
    failed = run('--items', 'somewhere')
    assert failed.stderr == 'error: --items is for --task fashion alone: leave it out\n'
