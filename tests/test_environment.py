"""Each case of utils/environment.py, on distributions laid out in a folder as pip lays them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions
from pathlib import Path

import packaging
import pytest

from mmconvneur.utils.environment import PROVIDERS, diagnose, examine

EXT = '_ext' + EXTENSION_SUFFIXES[0]
VERSIONS = {
    'torch': '2.13.0+cpu',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmcv-lite': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'onedl-mmpretrain': '1.3.6',
    'mmpretrain': '1.2.0',
}
IMPORT_NAME = {dist: name for name, dists in PROVIDERS.items() for dist in dists}
ONEDL = tuple(VERSIONS)[:5]
OPENMMLAB = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation')


def install(site: Path, dist: str, version: str | None = None) -> Path:
    """Write a distribution's package and metadata; return the package's folder."""
    version = version or VERSIONS[dist]
    name = IMPORT_NAME[dist]
    files = [f'{name}/__init__.py', f'{name}/core.py']
    if name == 'mmcv' and dist != 'mmcv-lite':
        files.append(f'{name}/{EXT}')
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text('')
    info = site / f'{dist.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n')
    (info / 'RECORD').write_text(''.join(f'{file},,\n' for file in files))
    return site / name


def install_all(site: Path, dists: tuple[str, ...] = ONEDL) -> None:
    for dist in dists:
        install(site, dist)


@pytest.mark.parametrize('family', [ONEDL, OPENMMLAB], ids=['onedl', 'openmmlab'])
@pytest.mark.parametrize('left_out', [None, 'mmdet', 'mmseg'])
def test_either_family_is_good_with_either_toolbox(tmp_path, family, left_out):
    install_all(tmp_path, tuple(d for d in family if IMPORT_NAME[d] != left_out))
    report = diagnose([str(tmp_path)])
    assert (report.case, report.problem, report.cure, report.notes) == ('good', '', '', ())


@pytest.mark.parametrize(
    'dist, version, notes',
    [
        ('torch', '2.1.0', 0),
        ('torch', '2.14.1', 0),
        ('torch', '2.15.0', 1),
        ('torch', '2.0.1', 1),
        ('onedl-mmcv', '2.3.9', 0),
        ('onedl-mmcv', '2.4.0', 1),
        ('onedl-mmdetection', '3.5.0', 1),
    ],
)
def test_versions_outside_the_tested_range_are_noted(tmp_path, dist, version, notes):
    install_all(tmp_path, tuple(d for d in ONEDL if d != dist))
    install(tmp_path, dist, version)
    report = diagnose([str(tmp_path)])
    assert report.case == 'good'
    assert len(report.notes) == notes
    assert all(note.startswith(f'{dist} {version} is untested') for note in report.notes)


@pytest.mark.parametrize('family', [ONEDL[:3], OPENMMLAB[:3]], ids=['onedl', 'openmmlab'])
def test_classification_alone_needs_no_operators(tmp_path, family):
    mmpretrain = 'onedl-mmpretrain' if 'onedl-mmcv' in family else 'mmpretrain'
    install_all(tmp_path, (*family, mmpretrain))
    (tmp_path / 'mmcv' / EXT).unlink()
    assert diagnose([str(tmp_path)])[:4] == ('good', '', '', ())
    install(tmp_path, 'onedl-mmdetection' if 'onedl-mmcv' in family else 'mmdet')
    assert diagnose([str(tmp_path)]).case == 'ops missing'


def test_ops_missing(tmp_path):
    install_all(tmp_path)
    (tmp_path / 'mmcv' / EXT).unlink()
    report = diagnose([str(tmp_path)])
    assert report.case == 'ops missing'
    assert report.problem == 'onedl-mmcv 2.3.6 has no compiled operators (mmcv._ext)'
    assert report.cure.startswith('python -m pip uninstall -y onedl-mmcv && ')
    assert report.cure.endswith('--no-build-isolation --no-cache-dir "onedl-mmcv>=2.3.6,<2.4"')


def test_lite_mmcv_never_had_ops(tmp_path):
    install_all(tmp_path, ('torch', 'mmengine', 'mmcv-lite', 'mmdet'))
    report = diagnose([str(tmp_path)])
    assert report.case == 'ops missing'
    assert report.cure.startswith('python -m pip uninstall -y mmcv-lite && ')
    assert report.cure.endswith('"mmcv>=2.1,<2.2"')


def test_two_providers(tmp_path):
    install_all(tmp_path)
    install(tmp_path, 'mmcv')
    report = diagnose([str(tmp_path)])
    assert report.case == 'two providers'
    assert report.problem == 'onedl-mmcv 2.3.6 and mmcv 2.1.0 both install mmcv'
    assert report.cure.startswith('python -m pip uninstall -y onedl-mmcv mmcv && ')
    assert report.cure.endswith('--no-build-isolation "onedl-mmcv>=2.3.6,<2.4"')


def test_removing_one_of_two_providers_leaves_the_other_gutted(tmp_path):
    install_all(tmp_path)
    (tmp_path / 'mmcv' / 'core.py').unlink()
    report = diagnose([str(tmp_path)])
    assert report.case == 'left-over files'
    assert 'onedl-mmcv 2.3.6 is listed as installed but files of it are gone' in report.problem
    assert report.cure.startswith('python -m pip uninstall -y onedl-mmcv && ')
    assert report.cure.endswith('--no-build-isolation "onedl-mmcv>=2.3.6,<2.4"')


def test_folder_that_no_distribution_owns(tmp_path):
    install_all(tmp_path)
    (tmp_path / 'onedl_mmsegmentation-1.4.2.dist-info' / 'METADATA').unlink()
    report = diagnose([str(tmp_path)])
    assert report.case == 'left-over files'
    assert report.problem == f'{tmp_path / "mmseg"} belongs to no installed distribution'
    assert report.cure.startswith(f'mv "{tmp_path / "mmseg"}" "{tmp_path / "mmseg"}.old" && ')


def test_editable_install_is_owned(tmp_path):
    site, source = tmp_path / 'site', tmp_path / 'source'
    install_all(site, tuple(d for d in ONEDL if d != 'onedl-mmdetection'))
    (source / 'mmdet').mkdir(parents=True)
    (source / 'mmdet' / '__init__.py').touch()
    info = site / 'onedl_mmdetection-3.5.1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Name: onedl-mmdetection\nVersion: 3.5.1\n')
    (info / 'direct_url.json').write_text(
        json.dumps({'url': source.as_uri(), 'dir_info': {'editable': True}})
    )
    assert diagnose([str(site), str(source)]).case == 'good'


@pytest.mark.parametrize(
    'dists, foreign, wanted',
    [
        (('onedl-mmengine', 'onedl-mmcv', 'mmdet'), 'mmdet', 'onedl-mmdetection>=3.5.1,<3.6'),
        (('onedl-mmengine', 'mmcv', 'onedl-mmdetection'), 'mmcv', 'onedl-mmcv>=2.3.6,<2.4'),
        (('mmengine', 'onedl-mmcv'), 'mmengine', 'onedl-mmengine>=0.10.12,<0.11'),
    ],
)
def test_mixed_families(tmp_path, dists, foreign, wanted):
    install_all(tmp_path, ('torch', *dists))
    report = diagnose([str(tmp_path)])
    assert report.case == 'mixed families'
    assert report.cure.startswith(f'python -m pip uninstall -y {foreign} && ')
    assert report.cure.endswith(f'--no-build-isolation "{wanted}"')


@pytest.mark.parametrize(
    'dists, absent',
    [
        ((), 'torch, mmengine, mmcv, mmdet, mmseg'),
        (('torch', 'onedl-mmengine', 'onedl-mmdetection'), 'mmcv'),
        (('torch', 'onedl-mmengine', 'onedl-mmcv'), 'mmdet, mmseg'),
        (ONEDL[1:], 'torch'),
    ],
)
def test_none(tmp_path, dists, absent):
    install_all(tmp_path, dists)
    report = diagnose([str(tmp_path)])
    assert report.case == 'none'
    assert report.problem == f'{absent} not installed'
    for name in absent.split(', '):
        assert f'"{PROVIDERS[name][0]}>=' in report.cure


def test_what_is_absent_comes_from_the_family_that_is_there(tmp_path):
    install_all(tmp_path, ('torch', 'mmengine', 'mmdet'))
    assert diagnose([str(tmp_path)]).cure.endswith('--no-build-isolation "mmcv>=2.1,<2.2"')


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )


def test_this_environment_is_good():
    report = examine()
    assert (report.case, report.problem) == ('good', '')
    done = run('-m', 'mmconvneur.utils.environment')
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == 'verdict: good'


def test_a_second_family_beside_the_real_one_is_told(tmp_path):
    (other,) = {'mmengine', 'onedl-mmengine'}.difference(packages_distributions()['mmengine'])
    install(tmp_path, other)
    (tmp_path / 'mmengine' / '__init__.py').unlink()
    (tmp_path / 'mmengine' / 'core.py').unlink()
    (tmp_path / 'mmengine').rmdir()
    done = run('-m', 'mmconvneur.utils.environment', PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert 'verdict: two providers: ' in done.stdout.splitlines()[-1]


CHECK = 'from mmconvneur.utils import environment; environment.exit_unless_good()'


def run_in(site: Path) -> subprocess.CompletedProcess:
    """Check the environment with a folder in place of this interpreter's site-packages."""
    (site / 'packaging').symlink_to(Path(packaging.__file__).parent)
    return run('-S', '-c', CHECK, PYTHONPATH=str(site))


def test_ops_that_do_not_load_are_told(tmp_path):
    """Files are in place, so only loading them shows that they are no good."""
    install_all(tmp_path)
    (tmp_path / 'mmcv' / EXT).write_text('built for another PyTorch')
    done = run_in(tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith('error: ops missing: mmcv._ext does not load (')
    assert '--no-build-isolation --no-cache-dir "onedl-mmcv' in lines[0]


def test_bare_python_is_told_without_a_traceback():
    done = run('-S', '-c', CHECK)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        'error: none: torch, mmengine, mmcv, mmdet, mmseg not installed; '
    )


@pytest.mark.parametrize('tool', ['train', 'test', 'browse_dataset', 'visualize'])
def test_tools_say_it_before_their_imports_fail(tool):
    root = Path(__file__).parent.parent
    done = run('-S', f'tools/{tool}.py', 'config.py', PYTHONPATH=str(root))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith('error: none: torch, mmengine, mmcv, mmdet, mmseg not installed')


def let_operators_load(site: Path) -> None:
    """Python takes a plain module for mmcv._ext as well, which stands in for a build that loads."""
    (site / 'mmcv' / '_ext').mkdir()
    (site / 'mmcv' / '_ext' / '__init__.py').touch()


@pytest.mark.parametrize(
    ('source', 'status'),
    [
        ('class PreTrained(None): ...', 1),
        ('import torchvision', 0),  # absent: mmdet catches it
        ('', 0),
    ],
)
def test_mmpretrain_that_mmdet_cannot_import_is_told(tmp_path, source, status):
    install_all(tmp_path, (*ONEDL, 'onedl-mmpretrain'))
    let_operators_load(tmp_path)
    (tmp_path / 'mmpretrain' / 'models.py').write_text(source)
    done = run_in(tmp_path)
    assert done.returncode == status
    message = 'error: import fails: mmdet imports mmpretrain, which does not load (NoneType '
    assert done.stderr.startswith(message) == bool(status)
    assert len(done.stderr.splitlines()) == status


def test_untested_versions_are_warned_about_once_they_load(tmp_path):
    install_all(tmp_path, ONEDL[1:])
    install(tmp_path, 'torch', '2.15.0')
    let_operators_load(tmp_path)
    done = run_in(tmp_path)
    assert done.returncode == 0
    assert 'torch 2.15.0 is untested here; tested is torch >=2.1,<2.15' in done.stderr
