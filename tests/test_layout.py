"""How the parts of the package depend on each other, and on packages that need not be there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHIPPED_TOOLS = (
    'browse_dataset',
    'check',
    'convert_checkpoint',
    'demo',
    'export',
    'plot_training',
    'test',
    'train',
    'visualize',
)
OPTIONAL = (
    *('onnx', 'onnxruntime', 'pytest', 'ruff', 'safetensors', 'skimage', 'tensorboard'),
    'transformers',
)
IMPORT_WITHOUT = """
import runpy, sys
hidden, *tools = sys.argv[1:]
for name in hidden.split():
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
for tool in tools:
    runpy.run_path(tool)
"""


def imported_modules(file: Path, known: set[str]) -> Iterator[str]:
    """The modules of this package that a file imports as it is imported itself."""
    module = module_name(file)
    package = module.split('.') if file.name == '__init__.py' else module.split('.')[:-1]
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = '.'.join(start + [node.module] * bool(node.module))
            names = [f'{source}.{alias.name}' for alias in node.names]
            yield from (name if name in known else source for name in names)


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts).removesuffix('.__init__')


def test_imports_go_one_way():
    files = {module_name(file): file for file in (ROOT / 'mmconvneur').rglob('*.py')}
    graph = {
        name: {found for found in imported_modules(file, set(files)) if found in files}
        for name, file in files.items()
    }
    assert 'mmconvneur.errors' in graph['mmconvneur.models.backbones.base']
    assert 'mmconvneur.models.backbones.base' in graph['mmconvneur.models.backbones.convneur']
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_shipped_tools_import_without_optional_packages():
    tools = [str(ROOT / 'tools' / f'{name}.py') for name in SHIPPED_TOOLS]
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_WITHOUT, ' '.join(OPTIONAL), *tools],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
