import ast
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """``__version__`` of the package, read without importing it (and torch with it)."""
    for node in ast.parse((ROOT / 'mmconvneur' / '__init__.py').read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '__version__':
            return ast.literal_eval(node.value)
    raise RuntimeError('mmconvneur/__init__.py defines no __version__')


TESTED = runpy.run_path(str(ROOT / 'mmconvneur' / 'utils' / 'environment.py'))['TESTED']

# The others work in the repository alone.
TOOLS = (
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

setup(
    name='mmconvneur',
    version=version(),
    description='ConvNeur, a backbone with a neural memory, for MMDetection and MMSegmentation',
    license='Apache-2.0',
    packages=find_packages(include=['mmconvneur', 'mmconvneur.*']),
    # .mim holds links to these files and folders; the wheel gets the files themselves.
    package_data={
        'mmconvneur': [
            '.mim/checkpoints/*.pth',
            '.mim/configs/**/*.py',
            '.mim/configs/metafile.yml',
            '.mim/model-index.yml',
            *(f'.mim/tools/{name}.py' for name in TOOLS),
        ]
    },
    python_requires='>=3.10',
    # No mm package here: either family will do, which pip cannot say. No upper bounds: an
    # environment that works is left as it is.
    install_requires=['torch>=2.1', 'numpy', 'packaging', 'tqdm'],
    extras_require={
        # onedl-mmcv is missing on purpose: under pip's build isolation it installs without its
        # operators, so it has to come first, by hand (see the Makefile). Pillow and
        # pycocotools are used by mmdet and mmseg but not declared by every release of them.
        'onedl': [
            name + TESTED[name]
            for name in ('onedl-mmengine', 'onedl-mmdetection', 'onedl-mmsegmentation')
        ]
        + ['Pillow', 'pycocotools'],
        # With torchvision, which belongs to a release of torch.
        'classification': ['onedl-mmengine' + TESTED['onedl-mmengine']]
        + ['onedl-mmpretrain' + TESTED['onedl-mmpretrain'], 'torchvision'],
        'sample': ['scikit-image', 'matplotlib', 'Pillow', 'pycocotools', 'rich'],
        'dev': [
            'furo',
            'mypy==2.4.1',
            'myst-nb',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'pre-commit',
            'pytest',
            'ruff==0.17.5',
            'safetensors',
            'setuptools>=80',
            'tensorboard',
            'transformers',
            'wheel',
        ],
    },
)
