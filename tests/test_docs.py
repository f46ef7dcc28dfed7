"""What README and docs show: configs that run, figures that agree."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from steps import ROOT, build, sample_batch, train_step, wake_memory
from test_tools import run, scalars

from mmconvneur import ConvNeur
from mmconvneur.apis.model_zoo import metrics_of, read_index
from mmconvneur.engine.checkpoints import latest_checkpoint
from mmconvneur.models.backbones.convneur import ARCHS
from mmconvneur.registry import MIXERS
from mmconvneur.utils.configs import check_family, check_pretrained
from mmconvneur.utils.widths import check_widths

# Before and after, by the name in the first line of each file.
README_CONFIGS = {
    'mask_rcnn_r50': 'ResNet',
    'mask_rcnn_convneur_t': 'ConvNeur',
    'upernet_r50': 'ResNetV1c',
    'upernet_convneur_t': 'ConvNeur',
}
# Backbone of the README's table -> its row in docs/performance.md.
MEASURED = {
    'ConvNeXt-T (Hugging Face)': 'hf-convnext-t@channels_last',
    'ConvNeur-T': 'convneur-t',
    'Swin-T (mmdet)': 'swin-t',
}


def config_files(page: str) -> dict[str, str]:
    """Path in the comment of the first line -> text, of every Python block that has one."""
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(), re.M | re.S)
    return {m[1]: block for block in blocks if (m := re.match(r'# (\S+\.py)\n', block))}


def rows(page: str, text: str | None = None) -> list[list[str]]:
    """The cells of all tables of a page."""
    lines = (text or (ROOT / page).read_text()).splitlines()
    return [
        [c.strip(' `') for c in line.strip('|').split('|')] for line in lines if line[:1] == '|'
    ]


def scores(task: str) -> list[list[str]]:
    """The table of a task in the comparison of global branches."""
    page = (ROOT / 'docs' / 'global_branches.md').read_text()
    return rows('', page.split(f'\n## {task}\n')[1].split('\n## ')[0])


# ------------------------------------------------------------------------- configs of the README
@pytest.fixture(scope='module')
def readme_configs(tmp_path_factory) -> Path:
    """The README's files where it says, in a copy of mmseg's configs."""
    folder = tmp_path_factory.mktemp('configs')
    shutil.copytree(Path(mmseg.__file__).parent / '.mim/configs/_base_', folder / '_base_')
    (folder / 'upernet').mkdir()
    for name, text in config_files('README.md').items():
        (folder / 'upernet' / name).write_text(text)
    return folder / 'upernet'


def test_the_readme_has_each_config_once():
    assert sorted(config_files('README.md')) == sorted(f'{name}.py' for name in README_CONFIGS)


def test_the_readme_names_the_weights_that_the_configs_do(readme_configs):
    shipped = Config.fromfile(ROOT / 'configs' / 'mask_rcnn_convneur_t_coco.py')
    for name in ('mask_rcnn_convneur_t', 'upernet_convneur_t'):
        init_cfg = Config.fromfile(readme_configs / f'{name}.py').model.backbone.init_cfg
        assert init_cfg == shipped.model.backbone.init_cfg


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'backbone'), README_CONFIGS.items())
def test_configs_of_the_readme_train(name, backbone, readme_configs, sample_dir):
    """As they stand, but without the download and on small pictures."""
    cfg = Config.fromfile(readme_configs / f'{name}.py')
    check_family(cfg)
    check_pretrained(cfg)
    cfg.model.backbone.init_cfg = None
    if cfg.default_scope == 'mmseg':
        cfg.model.pretrained = None
        cfg.model.data_preprocessor.size = (96, 96)
    model = build(cfg)
    assert type(model.backbone).__name__ == backbone
    check_widths(model)
    wake_memory(model.backbone)
    losses = train_step(model, sample_batch(cfg.default_scope, sample_dir, 'train'))
    assert losses and all(0 <= loss < 1000 for loss in losses.values()), losses
    if backbone == 'ConvNeur':
        assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
        for key, parameter in model.backbone.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key


# ------------------------------------------------------------------------------------------ figures
@pytest.mark.parametrize('page', ['README.md', 'docs/choose.md'])
def test_sizes_are_those_of_the_code(page):
    found = {row[0]: row for row in rows(page) if row[0] in ARCHS}
    assert set(found) == set(ARCHS)
    for arch, row in found.items():
        channels = ARCHS[arch]['channels']
        assert row[1] == ', '.join(map(str, channels))
        with torch.device('meta'):
            net = ConvNeur(arch, out_indices=(-1,), init_cfg=None)
        count = sum(p.numel() for p in net.parameters()) + 1000 * channels[-1] + 1000
        assert row[2] == f'{count / 1e6:.1f}', arch


def detection_costs() -> dict[str, list[str]]:
    """Row of the first table at detection size -> ratio of times, and peak memory."""
    page = (ROOT / 'docs' / 'performance.md').read_text()
    section = page.split('\n## Detection size', 1)[1].split('\n## ', 1)[0]
    measured = {}
    for row in rows('', section):
        measured.setdefault(row[0], row)
    header = measured['backbone']
    ratio = next(i for i, title in enumerate(header) if title.startswith('time /'))
    memory = header.index('MiB')
    return {name: [row[ratio].split()[0], row[memory]] for name, row in measured.items()}


def test_costs_in_the_readme_are_those_of_the_performance_page():
    measured = detection_costs()
    shown = {row[0]: row[1:] for row in rows('README.md') if row[0] in MEASURED}
    assert shown == {name: measured[key] for name, key in MEASURED.items()}


def test_figures_where_a_size_and_a_branch_are_chosen_are_the_measured_ones():
    table, measured = rows('docs/choose.md'), detection_costs()
    names = ['M1', 'M3', 'M4', 'T', 'Swin-T']
    times = table[table.index(names) + 2]
    keys = (name.lower() if name == 'Swin-T' else f'convneur-{name.lower()}' for name in names)
    assert times == [measured[key][0] for key in keys]
    mixers = ('None', *MIXERS.module_dict)
    branches = {row[0]: row[-2:] for row in table if len(row) == 5 and row[0] in mixers}
    for column, task in enumerate(('cue', 'legend')):
        titles, *runs = scores(task)
        medians = {run[0].removesuffix(' (default)'): run[titles.index('median')] for run in runs}
        for name, figures in branches.items():
            median = medians.get('none' if name == 'None' else name, 'not run')
            assert figures[column] == median, name


@pytest.mark.parametrize('entry', read_index(ROOT), ids=lambda entry: entry['Name'])
def test_results_of_released_models_agree(entry):
    """With the header of the config, and the page of the sample data: a cell, or in the text."""
    header = re.search(r'^# Result: (.+)$', (ROOT / entry['Config']).read_text(), re.M)[1]
    page = (ROOT / 'docs' / 'sample_data.md').read_text()
    titles, *cells = rows('docs/sample_data.md')
    (released,) = (dict(zip(titles, row, strict=False)) for row in cells if 'released' in row[0])
    for metric, value in metrics_of(entry).items():
        shown = f'{value:.1f}'
        assert f'{shown} {metric}' in header
        assert released.get(metric) == shown or f'{shown} {metric}' in page


@pytest.mark.parametrize('task', ['cue', 'legend'])
def test_scores_of_the_tasks_agree(task):
    shown = next(row[1:] for row in rows('README.md') if row[0] == task)
    titles, *runs = scores(task)
    for row, seeds in zip(('NeuralMemory (default)', 'none'), shown, strict=True):
        run = next(r for r in runs if r[0] == row)
        best = next(i for i, title in enumerate(titles) if title.endswith(f'rate {run[3]}'))
        assert seeds.split(', ') == [run[best], *run[4:6]]


def test_results_of_the_detectors_of_cue_agree():
    """With the headers of their configs and with the README."""
    page = (ROOT / 'docs' / 'global_context.md').read_text()
    section = rows('', page.split('\n## cue in a detector\n')[1].split('\n## ')[0])
    shown = {backbone.removesuffix(' (mmdet)'): figures for backbone, *figures in section[2:]}
    for backbone, name in (
        ('ConvNeur-M1', 'convneur_m1'),
        ('ResNet-18', 'r18'),
        ('PVTv2-B0', 'pvtv2_b0'),
    ):
        with_and_without = [backbone, f'{backbone} without the memory']
        cells = [shown[row] for row in with_and_without if row in shown]
        for task, columns in (('segformer', slice(1)), ('mask_rcnn', slice(1, 3))):
            header = (ROOT / f'configs/{task}_{name}_cue.py').read_text().split('_base_')[0]
            figures = re.findall(r'([\d.]+) (?:box AP|mask AP|mIoU)', header)
            assert figures == [figure for row in cells for figure in row[columns]], name
    counts = [shown[row][-1] for row in ('ConvNeur-M1', 'ConvNeur-M1 without the memory')]
    text = ' '.join((ROOT / 'README.md').read_text().split())
    assert (
        '{} of 588 objects the right class with the memory, and {} without'.format(*counts) in text
    )


def test_results_of_fashion_mnist_agree():
    """With the headers of their configs."""
    _, _, memory, none, resnet, _, _, segmentor, _, _ = rows('docs/pretraining.md')
    detector = re.findall(r'([\d.]+) / ([\d.]+)', ' '.join(memory))
    for name, figures in (
        ('convneur_m1_fashion', [memory[2], none[2], resnet[2]]),
        ('mask_rcnn_convneur_m1_fashion', [figure for pair in detector for figure in pair]),
        ('upernet_convneur_m1_fashion', segmentor[1:]),
    ):
        header = (ROOT / f'configs/{name}.py').read_text().split('_base_')[0]
        result = header.split('# Result:')[1]
        assert re.findall(r'\d+\.\d', result) == figures, name


def test_errors_of_the_troubleshooting_page_are_those_of_the_code():
    """Three words in a row of every error stand in the code."""
    code = '\n'.join(
        path.read_text() for part in ('mmconvneur', 'tools') for path in (ROOT / part).rglob('*.py')
    )
    # A string of several lines counts as one.
    code = ' '.join(re.sub(r"""['"]\s*\n\s*f?['"]""", '', code).split())
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    errors = re.findall(r'^error: (.+)$', page, re.M)
    assert len(errors) >= 20
    for error in errors:
        words = error.split()
        runs = [' '.join(words[i : i + 3]) for i in range(len(words) - 2)]
        assert any(run in code for run in runs), error


# ------------------------------------------------------------------------- configs of other pages
CONFIGS_OF_PAGES = [
    (page, name)
    for page in ('dropin', 'choose', 'backbones')
    for name in config_files(f'docs/{page}.md')
]


@pytest.fixture(scope='module')
def all_configs(tmp_path_factory) -> Path:
    """Those of this repository, and beside their folder those of mmseg."""
    folder = tmp_path_factory.mktemp('all')
    for path in (Path(mmseg.__file__).parent / '.mim/configs').iterdir():
        (folder / path.name).symlink_to(path)
    (folder / 'ours').mkdir()
    for path in (ROOT / 'configs').iterdir():
        (folder / 'ours' / path.name).symlink_to(path)
    for page, name in CONFIGS_OF_PAGES:
        (folder / 'ours' / name).write_text(config_files(f'docs/{page}.md')[name])
    return folder / 'ours'


@pytest.mark.parametrize(('page', 'name'), CONFIGS_OF_PAGES)
def test_configs_of_pages_build(page, name, all_configs):
    cfg = Config.fromfile(all_configs / name)
    check_family(cfg)
    check_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__.startswith('mmconvneur.')


# --------------------------------------------------------------------------- configs of fine-tuning
FINE_TUNING = ('my_detector', 'my_small_detector', 'my_segmentor', 'my_small_segmentor')
BRIEFLY = dict(
    detector=('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4'),
    segmentor=('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'param_scheduler=None')
    + ('default_hooks.checkpoint.interval=2',),
)


@pytest.fixture(scope='module')
def clone(tmp_path_factory, sample_dir) -> Path:
    """The configs of this repository beside those of the page, and the sample data."""
    folder = tmp_path_factory.mktemp('clone')
    (folder / 'data').symlink_to(sample_dir / 'data')
    (folder / 'configs').mkdir()
    for path in (ROOT / 'configs').iterdir():
        (folder / 'configs' / path.name).symlink_to(path)
    for name, text in config_files('docs/finetune.md').items():
        (folder / name).write_text(text)
    return folder


def test_the_page_has_the_configs_of_its_table():
    files = [f'configs/{name}.py' for name in FINE_TUNING]
    assert list(config_files('docs/finetune.md')) == files
    assert [row[2] for row in rows('docs/finetune.md') if row[2] in files] == files


def test_fine_tuning_names_released_models(clone):
    names = {entry['Name'] for entry in read_index(ROOT)}
    for name in FINE_TUNING:
        start = Config.fromfile(clone / f'configs/{name}.py').get('load_from')
        assert start in names if 'small' in name else start is None


@pytest.mark.slow
@pytest.mark.parametrize('name', FINE_TUNING)
def test_configs_of_the_page_fine_tune(name, clone, tmp_path):
    """Some steps and an evaluation; small pictures, and a stand-in for weights that are fetched."""
    cfg = Config.fromfile(clone / f'configs/{name}.py')
    options = [*BRIEFLY[name.rsplit('_', 1)[1]], 'train_dataloader.num_workers=0']
    options += ['train_dataloader.persistent_workers=False']
    if cfg.get('load_from'):
        start = tmp_path / 'released.pth'
        torch.save(build(Config.fromfile(ROOT / f'configs/{cfg.load_from}.py')).state_dict(), start)
        options.append(f'load_from={start}')
    else:
        options.append('model.backbone.init_cfg=None')
        for split in ('train', 'test', 'val'):
            pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
            for i, step in enumerate(pipeline):
                if step.type in ('Resize', 'RandomResize'):
                    options.append(f'{split}_dataloader.dataset.pipeline.{i}.scale=(96,96)')
                elif step.type == 'RandomCrop':
                    options.append(f'{split}_dataloader.dataset.pipeline.{i}.crop_size=(96,96)')
        if cfg.default_scope == 'mmseg':
            options.append('model.data_preprocessor.size=(96,96)')
    run(clone, 'train', f'configs/{name}.py', '--work-dir', tmp_path, '--cfg-options', *options)
    (log,) = tmp_path.glob('*/*.log')
    assert scalars(tmp_path, 'coco/bbox_mAP' if cfg.default_scope == 'mmdet' else 'mIoU')
    if cfg.get('load_from'):
        new = 6 if name == 'my_small_detector' else 0  # weights and biases of three last layers
        assert f' {new} shape mismatched' in log.read_text().split('neck and heads: ')[1]
        look_at_results(clone, f'configs/{name}.py', latest_checkpoint(tmp_path), tmp_path)


def look_at_results(clone: Path, config: str, checkpoint: Path, folder: Path) -> None:
    """The page's other commands."""
    run(clone, 'browse_dataset', config, '--out-dir', folder / 'train', '-n', 2)
    assert len(list((folder / 'train').iterdir())) == 2
    run(clone, 'test', config, checkpoint, '--work-dir', folder / 'test')
    images = 'data/sample/images/val'
    run(
        *(clone, 'demo', images, '--model', config, '--checkpoint', checkpoint),
        *('--out-dir', folder / 'val'),
    )
    assert len(list((folder / 'val').iterdir())) == len(list((clone / images).iterdir()))
