"""What an installed mmconvneur carries, and that every kind of installation works alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_layout import ROOT, SHIPPED_TOOLS

from mmconvneur.apis.model_zoo import read_index

NAME = 'mask_rcnn_convneur_m1_sample'
# The data is beside it; the mm packages are those of this environment.
TOUR = """
import runpy, sys
from pathlib import Path
import mmconvneur
from mmengine.config import Config
from mmengine.utils import is_installed
from mmconvneur.utils import configs
from mmconvneur.apis.model_zoo import released

home, tools, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
assert is_installed('mmconvneur')
assert Path(mmconvneur.__file__).parent == home, mmconvneur.__file__
for path in released(name).paths:
    assert home / '.mim' in Path(path).parents, path


def run(tool, *arguments):
    sys.argv = [tool, *arguments]
    runpy.run_path(str(tools / f'{tool}.py'), run_name='__main__')


workers = ('num_workers=0', 'persistent_workers=False')
run(
    *('train', name, '--work-dir', 'train', '--cfg-options', 'train_cfg.max_epochs=1'),
    *('train_cfg.val_interval=2', 'train_dataloader.dataset.indices=8'),
    *(f'train_dataloader.{option}' for option in workers),
)
run(
    *('test', name, name, '--work-dir', 'test', '--cfg-options'),
    *(f'test_dataloader.{option}' for option in workers),
)
run('demo', 'data/sample/images/val', '--model', name, '--out-dir', 'pictures')
Path('mine.py').write_text("_base_ = 'mmconvneur::mask_rcnn_convneur_t_coco.py'")
assert Config.fromfile('mine.py').model.backbone.arch == 't'
"""


def sources(folder: str) -> dict[str, bytes]:
    """Path below the repository -> content of every Python file of a top-level folder."""
    files = (ROOT / folder).rglob('*.py')
    return {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in files}


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """What a wheel is built from, copied so that the repository stays as it is."""
    source = tmp_path_factory.mktemp('clone')
    for name in ('mmconvneur', 'configs', 'tools', 'checkpoints'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ('setup.py', 'LICENSE', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory) -> Path:
    folder, copy = tmp_path_factory.mktemp('wheel'), tmp_path_factory.mktemp('build') / 'clone'
    shutil.copytree(source, copy, symlinks=True)
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', str(folder), str(copy))
    return next(folder.glob('*.whl'))


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, '-m', 'pip', *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_the_package_and_the_very_configs_and_tools(wheel):
    tools = {f'tools/{name}.py' for name in SHIPPED_TOOLS}
    carried = sources('configs') | {k: v for k, v in sources('tools').items() if k in tools}
    expected = sources('mmconvneur') | {f'mmconvneur/.mim/{k}': v for k, v in carried.items()}
    with zipfile.ZipFile(wheel) as archive:
        links = [i.filename for i in archive.infolist() if (i.external_attr >> 28) == 0xA]
        held = {n: archive.read(n) for n in archive.namelist() if n.endswith('.py')}
        released = [n for n in archive.namelist() if '/checkpoints/' in n]
    assert links == []
    # Nothing that lies beside the weights.
    assert sorted(released) == sorted(f'mmconvneur/.mim/{e["Weights"]}' for e in read_index(ROOT))
    assert sorted(held) == sorted(expected)
    assert held == expected


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith('.dist-info/METADATA'))
        metadata = archive.read(name).decode()
    version = (ROOT / 'mmconvneur' / '__init__.py').read_text().split("__version__ = '")[1]
    assert f'\nVersion: {version.split(chr(39))[0]}\n' in metadata
    required = [x for x in metadata.splitlines() if x.startswith('Requires-Dist: ')]
    core = [x for x in required if 'extra ==' not in x]
    assert sorted(x.removeprefix('Requires-Dist: ') for x in core) == [
        'numpy',
        'packaging',
        'torch>=2.1',
        'tqdm',
    ]
    # pip would build it in isolation, without its operators.
    assert not any('mmcv' in x for x in required)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['wheel', 'editable', 'clone'])
def test_every_installation_trains_tests_and_draws_by_name(
    kind, source, wheel, sample_dir, tmp_path
):
    """``editable``: the one that `make` makes; ``clone``: the tools of a copy, not installed."""
    home, tools, path = ROOT / 'mmconvneur', ROOT / 'tools', ''
    if kind == 'wheel':
        pip('install', '--no-deps', '--target', str(tmp_path / 'site'), str(wheel))
        home, path = tmp_path / 'site' / 'mmconvneur', str(tmp_path / 'site')
        tools = home / '.mim' / 'tools'
    if kind == 'clone':
        home, tools, path = source / 'mmconvneur', source / 'tools', str(source)
    (tmp_path / 'data').symlink_to(sample_dir / 'data')
    done = subprocess.run(
        [sys.executable, '-c', TOUR, str(home), str(tools), NAME],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = (tmp_path / 'train').glob('*/vis_data/scalars.json')
    line = json.loads(next(losses).read_text().splitlines()[0])
    assert line['iter'] == 2 and 0 < line['loss'] < 10
    (metrics,) = (json.loads(file.read_text()) for file in (tmp_path / 'test').glob('*/*.json'))
    assert metrics['coco/bbox_mAP'] > 0.2  # released weights, not random ones
    images = sample_dir / 'data' / 'sample' / 'images' / 'val'
    drawn = {file.name for file in (tmp_path / 'pictures').iterdir()}
    assert drawn == {file.name for file in images.iterdir()}
