"""Do the installed mm packages fit together? ``python -m mmconvneur.utils.environment`` tells.

mmengine, mmcv, mmdet, mmseg and mmpretrain come from two families of distributions (OneDL and
OpenMMLab) that install under the same import names. pip lets one overwrite the other without a
word, and it accepts an mmcv without its compiled operators, which mmdet and mmseg need.

Nothing but the standard library is imported with this module: ``setup.py`` and the Makefile read
:data:`TESTED` from it on a bare machine.
"""

from __future__ import annotations

import csv
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

TESTED = {
    'torch': '>=2.1,<2.15',
    'onedl-mmengine': '>=0.10.12,<0.11',
    'onedl-mmcv': '>=2.3.6,<2.4',
    'onedl-mmdetection': '>=3.5.1,<3.6',
    'onedl-mmsegmentation': '>=1.4.2,<1.5',
    'onedl-mmpretrain': '>=1.3.6,<1.4',
    'mmengine': '>=0.10.7,<0.11',
    'mmcv': '>=2.1,<2.2',
    'mmdet': '>=3.3,<3.4',
    'mmsegmentation': '>=1.2.2,<1.3',
    'mmpretrain': '>=1.2,<1.3',
}
"""Distribution -> range of versions that the tests were run with."""

COMPILING = 'torch>=2.1,<2.14'
"""With PyTorch 2.14 and later, mmcv's operators do not compile."""

PROVIDERS = {
    'torch': ('torch',),
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
"""Import name -> distributions that install it: OneDL's, OpenMMLab's, then variants of those."""

OF_OPERATORS = ('mmdet', 'mmseg')
"""What needs mmcv's compiled operators."""

DISTRIBUTIONS = {
    'PIL': 'Pillow',
    'cv2': 'opencv-python-headless',
    'skimage': 'scikit-image',
    'yaml': 'PyYAML',
}
"""Import name -> distribution, of packages under another name that the mm packages and we use."""

HEADLESS = 'python -m pip install --force-reinstall --no-deps opencv-python-headless'


class Report(NamedTuple):
    """The verdict on an environment.

    ``case`` is 'good', 'ops missing', 'import fails', 'two providers', 'left-over files', 'mixed
    families' or 'none'. ``problem`` and ``cure`` (a shell command) are empty for a good
    environment. ``notes`` lists versions outside the tested range; they do not make it bad.
    """

    case: str
    problem: str = ''
    cure: str = ''
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'{self.case}: {self.problem}; fix it with: {self.cure}' if self.cure else self.case


def diagnose(paths: Sequence[str]) -> Report:
    """Judge the mm packages on a list of search paths by looking at their files.

    Args:
        paths: Folders in the order of ``sys.path``. Nothing is imported from them.
    """
    owners = installed(paths)
    mm = {name: found for name, found in owners.items() if name != 'torch' and found}
    folders = {name: folder for name in PROVIDERS if (folder := _folder(name, paths))}

    # In the order in which one finding makes the later ones meaningless.
    double = [name for name, found in mm.items() if len(found) > 1]
    if double:
        problem = ', '.join(f'{" and ".join(map(label, mm[n]))} both install {n}' for n in double)
        # Each has overwritten files of the other, so neither can stay.
        return Report('two providers', problem, cure(double, owners))
    for name, folder in folders.items():
        if not owners[name]:
            problem = f'{folder} belongs to no installed distribution'
            aside = f'mv "{folder}" "{folder}.old" && {cure([name], owners)}'
            return Report('left-over files', problem, aside)
    for name, (owner,) in mm.items():
        # Not owner.files: from Python 3.12 on, it leaves out what is gone.
        record = csv.reader((owner.read_text('RECORD') or '').splitlines())
        files = [path for path, *_ in record if re.fullmatch(rf'{name}/.*\.py', path)]
        if not all(Path(str(owner.locate_file(file))).exists() for file in files):
            problem = f'{label(owner)} is listed as installed but files of it are gone'
            return Report('left-over files', problem, cure([name], owners))
    foreign = [name for name, (owner,) in mm.items() if not _of_onedl(owner)]
    if 0 < len(foreign) < len(mm):
        problem = ', '.join(label(owner) for (owner,) in mm.values()) + ' come from two families'
        return Report('mixed families', problem, cure(foreign, owners))
    absent = [name for name in ('torch', 'mmengine', 'mmcv') if not owners[name]]
    if not mm.keys() & {*OF_OPERATORS, 'mmpretrain'}:
        absent += OF_OPERATORS
    if absent:
        return Report('none', f'{", ".join(absent)} not installed', cure(absent, owners))
    mmcv = folders.get('mmcv')  # an editable one is found by loading it alone
    compiled = mmcv and any((mmcv / f'_ext{suffix}').exists() for suffix in EXTENSION_SUFFIXES)
    if mmcv and not compiled and mm.keys() & set(OF_OPERATORS):
        problem = f'{label(*mm["mmcv"])} has no compiled operators (mmcv._ext)'
        return Report('ops missing', problem, cure(['mmcv'], owners, '--no-cache-dir '))
    return Report('good', notes=tuple(_notes(owners)))


def examine() -> Report:
    """:func:`diagnose` this interpreter, and prove a good verdict by loading mmcv's operators."""
    report = diagnose(sys.path)
    if report.case != 'good':
        return report
    owners = installed(sys.path)
    operators = ('mmcv._ext',) * any(owners[name] for name in OF_OPERATORS)
    for name in ('torch', 'mmengine', 'mmcv', *operators):
        try:
            import_module(name)
        except Exception as error:  # an extension for another Python or NumPy can raise anything
            return _unloadable(name, error)
    if owners['mmdet'] and owners['mmpretrain']:
        try:
            import_module('mmpretrain.models')
        except ImportError:
            pass  # mmdet goes on without it
        except TypeError as error:  # a base class that transformers 5 no longer has
            problem = f'mmdet imports mmpretrain, which does not load ({error})'
            return Report('import fails', problem, 'python -m pip install "transformers<5"')
    return report


def _unloadable(name: str, error: Exception) -> Report:
    """Why a package that is installed does not load: itself, or one that it imports."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    problem = f'{name} does not load ({reason})'
    absent = getattr(error, 'name', None) or ''
    if isinstance(error, ModuleNotFoundError) and absent.partition('.')[0] not in PROVIDERS:
        return Report('import fails', problem, install(absent))
    if absent == 'cv2':
        return Report('import fails', f'OpenCV does not load ({reason})', HEADLESS)
    owners = installed(sys.path)
    if name == 'mmcv._ext':
        return Report('ops missing', problem, cure(['mmcv'], owners, '--no-cache-dir '))
    if name == 'torch':
        again = f'python -m pip install --force-reinstall "torch{TESTED["torch"]}"'
        return Report('import fails', problem, again)
    return Report('import fails', problem, cure([name], owners))


def install(module: str) -> str:
    """The command that installs what is imported as ``module``."""
    name = module.partition('.')[0]
    return f'python -m pip install {DISTRIBUTIONS.get(name, name)}'


def exit_unless_good() -> None:
    """For scripts, ahead of imports that a broken environment would fail: one line, status 1.

    Versions that were never tested are warned of.
    """
    report = examine()
    if report.case != 'good':
        sys.exit(f'error: {report}')
    for note in report.notes:
        warnings.warn(note, stacklevel=2)


def main() -> int:
    """Print versions, notes and the verdict; the exit status is 0 for a good environment."""
    report = examine()
    for name, owners in installed(sys.path).items():
        versions = ' and '.join(map(label, owners)) or '-'
        print(f'{name:10} {versions:31} {_folder(name, sys.path) or "-"}')
    for note in report.notes:
        print(f'note: {note}')
    print(f'verdict: {report}')
    return int(report.case != 'good')


def installed(paths: Sequence[str]) -> dict[str, list[Distribution]]:
    """Import name -> the distributions that install it, of all :data:`PROVIDERS`."""
    found: dict[str, Distribution] = {}
    for dist in distributions(path=list(paths)):
        found.setdefault(normalised(dist), dist)
    return {name: [found[d] for d in names if d in found] for name, names in PROVIDERS.items()}


def normalised(dist: Distribution) -> str:
    return re.sub(r'[-_.]+', '-', dist.metadata['Name'] or '').lower()


def label(dist: Distribution) -> str:
    """A distribution with its version, as in ``onedl-mmcv 2.3.6``."""
    return f'{normalised(dist)} {dist.version}'


def cure(names: Iterable[str], owners: dict[str, list[Distribution]], flags: str = '') -> str:
    """The command that puts tested distributions in the place of what installs ``names``."""
    present = ' '.join(normalised(dist) for name in names for dist in owners[name])
    wanted = ' '.join(fitting(names, owners))
    # mmcv's build imports torch and needs the tools named first; with build isolation it leaves its
    # operators out. OpenMMLab's imports pkg_resources, which later setuptools lack.
    steps = [
        f'python -m pip uninstall -y {present}' * bool(present),
        f'python -m pip install "setuptools>=80,<81" wheel ninja psutil "{COMPILING}"',
        f'python -m pip install --no-build-isolation {flags}{wanted}' * bool(wanted),
    ]
    return ' && '.join(filter(None, steps))


def fitting(names: Iterable[str], owners: dict[str, list[Distribution]]) -> list[str]:
    """Tested distributions that install ``names``, as pip takes them.

    They are of the family of what stays; of OneDL where nothing does.
    """
    staying = [d for n, found in owners.items() if n not in ('torch', *names) for d in found]
    family = int(bool(staying) and not any(map(_of_onedl, staying)))
    tested = (PROVIDERS[name][family] for name in names if name != 'torch')
    return [f'"{dist}{TESTED[dist]}"' for dist in tested]


def cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    named = re.search(r'model name\s*: (.*)', info.read_text()) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def _of_onedl(dist: Distribution) -> bool:
    return normalised(dist).startswith('onedl-')


def _notes(owners: dict[str, list[Distribution]]) -> Iterable[str]:
    from packaging.specifiers import SpecifierSet

    for name, found in owners.items():
        for owner in found:
            tested = dist if (dist := normalised(owner)) in TESTED else PROVIDERS[name][0]
            inside = SpecifierSet(TESTED[tested]).contains(owner.version, prereleases=True)
            if dist != tested or not inside:
                yield f'{label(owner)} is untested here; tested is {tested} {TESTED[tested]}'


def _folder(name: str, paths: Sequence[str]) -> Path | None:
    spec = PathFinder.find_spec(name, list(paths))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == '__main__':
    sys.exit(main())
