"""Do the installed mm packages fit together?

mmengine, mmcv, mmdet and mmseg come from two families of distributions (OneDL and OpenMMLab) that
install under the same import names. pip lets one overwrite the other without a word, and it
accepts an mmcv without its compiled operators. :func:`diagnose` tells such cases apart, and
``python -m mmconvneur.utils.environment`` prints what it finds.

Nothing but the standard library is imported with this module: ``setup.py`` and
``tools/dev/install.py`` read :data:`TESTED` from it on a bare machine.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

TESTED = {
    'torch': '>=2.6,<2.14',
    'onedl-mmengine': '>=0.10.12,<0.11',
    'onedl-mmcv': '>=2.3.6,<2.4',
    'onedl-mmdetection': '>=3.5.1,<3.6',
    'onedl-mmsegmentation': '>=1.4.2,<1.5',
}
"""Distribution -> range of versions that the tests were run with."""

PROVIDERS = {
    'torch': ('torch',),
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
"""Import name -> distributions that install it, the tested one first."""


@dataclass(frozen=True)
class Package:
    """What is installed under one import name: its distributions and the folder Python imports."""

    name: str
    owners: tuple[Distribution, ...]
    folder: Path | None

    @property
    def label(self) -> str:
        """The distributions with their versions, as in ``onedl-mmcv 2.3.6``."""
        return ' and '.join(f'{_dist_name(o)} {o.version}' for o in self.owners)


@dataclass(frozen=True)
class Report:
    """The verdict on an environment.

    ``case`` is 'good', 'ops missing', 'two providers', 'left-over files', 'mixed families' or
    'none'. ``problem`` and ``cure`` (a shell command) are empty for a good environment. ``notes``
    lists versions outside the tested range; they do not make it bad.
    """

    case: str
    packages: tuple[Package, ...]
    problem: str = ''
    cure: str = ''
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'{self.case}: {self.problem}; mend it with: {self.cure}' if self.cure else self.case


def diagnose(paths: Sequence[str]) -> Report:
    """Judge the mm packages on a list of search paths by looking at their files.

    Args:
        paths: folders in the order of ``sys.path``. Nothing is imported from them.
    """
    paths = list(paths)
    installed: dict[str, Distribution] = {}
    for dist in distributions(path=paths):
        installed.setdefault(_dist_name(dist), dist)
    packages = tuple(
        Package(name, tuple(installed[d] for d in names if d in installed), _folder(name, paths))
        for name, names in PROVIDERS.items()
    )
    for case, look in LOOKS.items():
        if verdict := look({p.name: p for p in packages}):
            return Report(case, packages, *verdict)
    return Report('good', packages, notes=tuple(_notes(packages)))


def examine() -> Report:
    """:func:`diagnose` this interpreter, then prove a good verdict by loading mmcv's operators."""
    report = diagnose(sys.path)
    if report.case != 'good':
        return report
    try:
        import mmcv._ext  # noqa: F401
    except ImportError as error:
        reason = str(error).splitlines()[0]
        if error.name == 'cv2':
            problem, cure = f'OpenCV does not load ({reason})', _HEADLESS
        else:
            problem, cure = f'mmcv._ext does not load ({reason})', _rebuild('mmcv')
        return replace(report, case='ops missing', problem=problem, cure=cure)
    return report


def check_environment() -> None:
    """Return if the mm packages fit together; warn of versions that were never tested.

    Raises:
        UsageError: which of the cases of :class:`Report` it is, and the command that mends it.
    """
    from mmconvneur.errors import UsageError

    report = examine()
    if report.case != 'good':
        raise UsageError(str(report))
    for note in report.notes:
        warnings.warn(note, stacklevel=2)


def exit_unless_good() -> None:
    """For scripts, ahead of imports that a broken environment would fail: one line, status 1."""
    from mmconvneur.errors import UsageError

    try:
        check_environment()
    except UsageError as error:
        sys.exit(f'error: {error}')


def main() -> int:
    """Print versions, notes and the verdict; the exit status is 0 for a good environment."""
    report = examine()
    for package in report.packages:
        print(f'{package.name:9} {package.label or "-":31} {package.folder or "-"}')
    for note in report.notes:
        print(f'note: {note}')
    print(f'verdict: {report}')
    return int(report.case != 'good')


# Each look returns (problem, cure), or None where all is well.


def _two_providers(packages: dict[str, Package]) -> tuple[str, str] | None:
    double = [p for p in _mm(packages) if len(p.owners) > 1]
    if not double:
        return None
    problem = ', '.join(f'{p.label} both install {p.name}' for p in double)
    names = ' '.join(_dist_name(o) for p in double for o in p.owners)
    # Each has overwritten files of the other, so neither can stay.
    return problem, f'python -m pip uninstall -y {names} && {_install(*(p.name for p in double))}'


def _left_over(packages: dict[str, Package]) -> tuple[str, str] | None:
    for p in _mm(packages):
        aside = f'mv "{p.folder}" "{p.folder}.old"'
        if not p.owners:
            if p.folder:
                problem = f'{p.folder} belongs to no installed distribution'
                return problem, f'{aside} && {_install(p.name)}'
            continue
        home = _home(p.owners[0], p.name)
        gone = [f for f in _recorded(p.owners[0], p.name) if not f.exists()]
        if gone or not (home / '__init__.py').exists():
            problem = f'{p.label} is listed as installed but files of it are gone from {home}'
            return problem, _rebuild(p.name)
        if p.folder and p.folder.resolve() != home.resolve():
            return f'{p.folder} hides the {p.name} of {p.label}', aside
    return None


def _mixed(packages: dict[str, Package]) -> tuple[str, str] | None:
    mm = [p for p in _mm(packages) if p.owners]
    other = [p for p in mm if _dist_name(p.owners[0]) not in TESTED]
    if not other or len(other) == len(mm):
        return None
    problem = ', '.join(p.label for p in mm) + ' come from two families'
    names = ' '.join(_dist_name(p.owners[0]) for p in other)
    return problem, f'python -m pip uninstall -y {names} && {_install(*(p.name for p in other))}'


def _none(packages: dict[str, Package]) -> tuple[str, str] | None:
    absent = [name for name in ('torch', 'mmengine', 'mmcv') if not packages[name].owners]
    if not (packages['mmdet'].owners or packages['mmseg'].owners):
        absent += ['mmdet', 'mmseg']
    if not absent:
        return None
    return f'{", ".join(absent)} not installed', _install(*(n for n in absent if n != 'torch'))


def _no_ops(packages: dict[str, Package]) -> tuple[str, str] | None:
    mmcv = packages['mmcv']
    name, home = _dist_name(mmcv.owners[0]), _home(mmcv.owners[0], 'mmcv')
    if any((home / f'_ext{suffix}').exists() for suffix in EXTENSION_SUFFIXES):
        return None
    problem = f'{mmcv.label} has no compiled operators (mmcv._ext)'
    if name in TESTED:
        return problem, _rebuild('mmcv')
    return problem, f'python -m pip uninstall -y {name} && {_install("mmcv")}'


LOOKS = {
    'two providers': _two_providers,
    'left-over files': _left_over,
    'mixed families': _mixed,
    'none': _none,
    'ops missing': _no_ops,
}
"""Case -> look, in the order in which one finding makes the later ones meaningless."""


def _notes(packages: Sequence[Package]) -> list[str]:
    from packaging.specifiers import SpecifierSet

    notes = []
    for p in packages:
        for owner in p.owners:
            tested = PROVIDERS[p.name][0]
            inside = SpecifierSet(TESTED[tested]).contains(owner.version, prereleases=True)
            if _dist_name(owner) != tested or not inside:
                notes.append(f'{p.label} is untested here; tested is {tested} {TESTED[tested]}')
    return notes


def _mm(packages: dict[str, Package]) -> list[Package]:
    return [p for p in packages.values() if p.name != 'torch']


def _dist_name(dist: Distribution) -> str:
    return re.sub(r'[-_.]+', '-', dist.metadata['Name'] or '').lower()


def _folder(name: str, paths: list[str]) -> Path | None:
    spec = PathFinder.find_spec(name, paths)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _home(dist: Distribution, name: str) -> Path:
    """Where a distribution says its package is: beside its metadata, or in an editable source."""
    direct = json.loads(dist.read_text('direct_url.json') or '{}')
    if direct.get('dir_info', {}).get('editable'):
        return Path(url2pathname(urlparse(direct['url']).path)) / name
    return Path(str(dist.locate_file(name)))


def _recorded(dist: Distribution, name: str) -> list[Path]:
    files = dist.files or []
    return [Path(str(f.locate())) for f in files if f.parts[0] == name and f.suffix == '.py']


def _install(*names: str, flags: str = '') -> str:
    # The build of mmcv imports torch and needs the tools named here; with build isolation it
    # would leave its operators out.
    wanted = ' '.join(f'"{PROVIDERS[n][0]}{TESTED[PROVIDERS[n][0]]}"' for n in names)
    first = f'python -m pip install "setuptools>=80" wheel ninja psutil "torch{TESTED["torch"]}"'
    if not names:
        return first
    return f'{first} && python -m pip install --no-build-isolation {flags}{wanted}'


def _rebuild(name: str) -> str:
    return _install(name, flags='--force-reinstall --no-deps --no-cache-dir ')


_HEADLESS = 'python -m pip install --force-reinstall --no-deps opencv-python-headless'


if __name__ == '__main__':
    sys.exit(main())
