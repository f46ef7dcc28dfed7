"""Sphinx settings of ``make docs``: README, docs/ and the docstrings as one site.

The repository is the source folder, so that links between the pages are the same here and there.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

project = 'mmconvneur'
extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
root_doc = 'README'
include_patterns = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/*.md', 'docs/*.ipynb']
exclude_patterns = ['.venv', 'build', 'data', 'work_dirs']
nitpicky = True
nitpick_ignore_regex = [  # types of other packages, which are not looked up
    (
        'py:class',
        r'(torch|nn|mmdet|mmengine|numpy|collections|contextlib|pathlib|re)\..+|Tensor|Weights',
    ),
    ('py:class', r'\.?DefaultOptimWrapperConstructor'),
]
html_theme = 'furo'
html_title = project
html_show_copyright = False
myst_heading_anchors = 4
nb_execution_mode = 'cache'  # of the notebook, as long as it stays the same
nb_execution_cache_path = 'build/notebooks'
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = 'remove'
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints_format = 'short'
python_maximum_signature_line_length = 80
napoleon_use_ivar = True

CONTENTS = {
    'Start': (
        *('install', 'dropin', 'choose', 'finetune', 'pretraining', 'tutorial', 'train', 'deploy'),
    ),
    'Reference': (
        *('troubleshooting', 'weights', 'release', 'safety', 'backbones', 'visualization'),
        *('sample_data', 'api'),
    ),
    'Measured': ('benchmark', 'performance', 'global_context', 'global_branches'),
    'Project': ('/CONTRIBUTING', '/CHANGELOG'),
}


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """The README is the first page; the tables of contents are for the site alone."""
    if name == root_doc:
        for title, pages in CONTENTS.items():
            names = '\n'.join(page if page[0] == '/' else f'docs/{page}' for page in pages)
            source[0] += f'\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```\n'


def translate(
    app: Sphinx, what: str, name: str, obj: object, options: dict, lines: list[str]
) -> None:
    """Our docstrings in reStructuredText: equations as they are written, short names as links."""
    text = '\n'.join(lines)
    text = re.sub(r'(?m)^(\S.*(?<!::))\n\n(?= {4}\S)', r'\1\n\n.. code-block:: none\n\n', text)
    text = re.sub(r'(:(?:class|func|meth|mod):`)(?=\w)', r'\1.', text)
    lines[:] = text.splitlines()


def skip_fields(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: dict
) -> bool | None:
    """The fields of a NamedTuple stand under Attributes already."""
    return type(obj).__name__ == '_tuplegetter' or None


def setup(app: Sphinx) -> None:
    app.connect('source-read', add_contents)
    app.connect('autodoc-process-docstring', translate, priority=100)  # before napoleon
    app.connect('autodoc-skip-member', skip_fields)
