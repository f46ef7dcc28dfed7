"""What an installed mmconvneur carries: built as a wheel, installed into an empty folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_layout import SHIPPED_TOOLS

from model_index import release

ROOT = Path(__file__).parent.parent
# Both need the mm packages of this environment beside the installed copy.
PROBE = """
import sys
from pathlib import Path
import mmconvneur
from mmengine.config import Config
from mmengine.utils import get_installed_path, is_installed

home = Path(get_installed_path('mmconvneur'))
assert is_installed('mmconvneur')
assert Path(mmconvneur.__file__).parent == home, mmconvneur.__file__
configs = sorted((home / '.mim' / 'configs').glob('*.py'))
for path in configs:
    backbone = Config.fromfile(path).model.backbone.type
    assert (backbone == 'mmconvneur.ConvNeur') == ('_convneur_' in path.name), path
Path('mine.py').write_text("_base_ = 'mmconvneur::mask_rcnn_convneur_t_coco.py'")
from mmconvneur.utils.configs import find_config
assert Config.fromfile('mine.py').model.backbone.arch == 't'
print(home, len(configs))
"""
RELEASED = """
from mmconvneur.apis.model_zoo import released
print(*released('stand-in').paths)
"""
WEIGHTS = b'weights'
RELEASE = f'checkpoints/stand-in-{hashlib.sha256(WEIGHTS).hexdigest()[:8]}'


def sources(folder: str) -> dict[str, bytes]:
    """Path below the repository -> content of every Python file of a top-level folder."""
    files = (ROOT / folder).rglob('*.py')
    return {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in files}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that the repository stays as it is."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('mmconvneur', 'configs', 'tools'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ('setup.py', 'LICENSE', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, source / name)
    (source / 'checkpoints').mkdir()
    (source / f'{RELEASE}.pth').write_bytes(WEIGHTS)
    (source / f'{RELEASE}.py').write_text('flat = True\n')
    release(source, stand_in())
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', str(folder), str(source))
    return next(folder.glob('*.whl'))


def stand_in() -> dict:
    """A release, for there need not be one yet."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    return {
        'Name': 'stand-in',
        'Config': 'configs/mask_rcnn_convneur_m1_sample.py',
        'Metadata': {'Parameters': 7, 'File Size (MB)': 0.0, 'SHA256': digest},
        'Results': [{'Task': 'Object Detection', 'Metrics': {'box AP': 1.0}}],
        'Weights': f'{RELEASE}.pth',
    }


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, '-m', 'pip', *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def probe(cwd: Path, path: str, code: str = PROBE) -> list[str]:
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_wheel_holds_the_package_and_the_very_configs_and_tools(wheel):
    tools = {f'tools/{name}.py' for name in SHIPPED_TOOLS}
    carried = sources('configs') | {k: v for k, v in sources('tools').items() if k in tools}
    expected = sources('mmconvneur') | {f'mmconvneur/.mim/{k}': v for k, v in carried.items()}
    with zipfile.ZipFile(wheel) as archive:
        links = [i.filename for i in archive.infolist() if (i.external_attr >> 28) == 0xA]
        held = {n: archive.read(n) for n in archive.namelist() if n.endswith('.py')}
        released = [n for n in archive.namelist() if '/checkpoints/' in n]
    assert links == []
    assert released == [f'mmconvneur/.mim/{RELEASE}.pth']  # and nothing that lies beside it
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
        'torch<2.14,>=2.6',
        'tqdm',
    ]
    # pip would build it in isolation, without its operators.
    assert not any('mmcv' in x for x in required)


@pytest.mark.slow
def test_configs_and_released_models_are_found_after_a_wheel_install(wheel, tmp_path):
    site = tmp_path / 'site'
    pip('install', '--no-deps', '--target', str(site), str(wheel))
    home, count = probe(tmp_path, str(site))
    assert Path(home) == site / 'mmconvneur'
    assert int(count) == len(list((ROOT / 'configs').glob('*.py')))
    config, weights = probe(tmp_path, str(site), RELEASED)
    assert config == f'{home}/.mim/configs/mask_rcnn_convneur_m1_sample.py'
    assert weights == f'{home}/.mim/{RELEASE}.pth'
    assert Path(weights).read_bytes() == WEIGHTS


@pytest.mark.slow
def test_configs_are_found_in_an_editable_install(tmp_path):
    """The installation that `make` does: this repository."""
    home, count = probe(tmp_path, '')
    assert Path(home) == ROOT / 'mmconvneur'
    assert int(count) == len(list((ROOT / 'configs').glob('*.py')))
