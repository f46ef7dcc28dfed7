"""Classification through mmpretrain, and what it starts."""

from __future__ import annotations

import copy
import json
import pickle
import re
import runpy
import shlex
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from steps import CONFIGS, ROOT, build, train_step, wake_memory

from mmconvneur import ConvNeur, UsageError
from mmconvneur.checks.look import examine, sort
from mmconvneur.engine.checkpoints import latest_checkpoint
from mmconvneur.models.backbones.convneur import ARCHS
from mmconvneur.utils import configs
from mmconvneur.weights.loading import fit_state_dict
from sample_data import THING_CLASSES, make_scene

SAMPLE = 'convneur_m1_sample'
IMAGENET = [f'convneur_{arch}_imagenet' for arch in ('m1', 'm2', 'm3', 'm4', *'tsb')]
TINY = dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1))
TINY_CLASSIFIER = f"""
_base_ = {str(CONFIGS / f'{SAMPLE}.py')!r}
backbone = dict(_delete_=True, type='mmconvneur.ConvNeur', arch={TINY}, out_indices=(-1,))
model = dict(backbone=backbone, head=dict(in_channels=32))
train_cfg = dict(max_epochs=2)
param_scheduler = None
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
"""
needs_mmpretrain = pytest.mark.skipif(
    find_spec('mmpretrain') is None, reason='mmpretrain is not installed: make test-classification'
)


def load(name: str, **options: object) -> Config:
    return configs.load_config(Namespace(config=name, cfg_options=options))


def call(patch: pytest.MonkeyPatch, tool: str, *args: object) -> None:
    patch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
    runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')


# ------------------------------------------------------------------------- what needs no mmpretrain
@pytest.mark.parametrize('name', IMAGENET)
def test_recipe(name):
    cfg, text = Config.fromfile(CONFIGS / f'{name}.py'), (CONFIGS / f'{name}.py').read_text()
    arch = name.split('_')[1]
    assert (cfg.model.backbone.arch, cfg.model.head.num_classes) == (arch, 1000)
    assert cfg.model.head.in_channels == ARCHS[arch]['channels'][-1]
    gpus, images = re.search(r'# Hardware: (\d) GPUs x (\d+) images', text).groups()
    assert cfg.train_dataloader.batch_size == int(images)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=int(gpus) * int(images))
    assert f'configs/{name}.py' in text and '# Result:   not trained yet' in text
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.type) == (300, 'AdamW')
    assert [scheduler.end for scheduler in cfg.param_scheduler] == [20, 300]
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert kinds[1:-1] == ['RandomResizedCrop', 'RandomFlip', 'RandAugment', 'RandomErasing']
    assert [augment.type for augment in cfg.model.train_cfg.augments] == ['Mixup', 'CutMix']


def test_without_mmpretrain(monkeypatch):
    found = {'mmpretrain': None}
    monkeypatch.setattr(configs, 'find_spec', lambda name: found.get(name, find_spec(name)))
    with pytest.raises(UsageError) as error:
        load(SAMPLE)
    assert re.fullmatch(
        'the config is for classification, and mmpretrain is not installed: '
        r'python -m pip install "(onedl-)?mmpretrain>=[\d.]+,<[\d.]+"',
        str(error.value),
    )


@pytest.mark.parametrize('name', ['torchvision', 'mmpretrain'])
def test_with_packages_that_do_not_load(name, monkeypatch):
    monkeypatch.setattr(configs, 'find_spec', lambda name: 'installed')
    for package in ('torchvision', 'mmpretrain'):
        fake = None if package == name else ModuleType(package)
        monkeypatch.setitem(sys.modules, package, fake)
    with pytest.raises(
        UsageError, match=f'classification needs {name}, which does not load .*: in'
    ):
        load(SAMPLE)


@pytest.mark.parametrize('mixer', [dict(type='NeuralMemory'), None], ids=['memory', 'local'])
def test_a_classifier_starts_the_backbone_of_a_detector(mixer):
    """Whose first three maps get norms of their own; nothing else is new, nothing is lost."""
    classifier = ConvNeur(TINY, out_indices=(-1,), global_mixer=mixer)
    classifier.init_weights()
    own = classifier.state_dict()
    state = {f'backbone.{name}': value for name, value in own.items()}
    state |= {'head.fc.weight': torch.zeros(5, 32), 'head.fc.bias': torch.zeros(5)}
    given = {name.removeprefix('backbone.'): value for name, value in state.items()}
    detector = ConvNeur(TINY, global_mixer=mixer)
    report = fit_state_dict(detector, given, '')
    assert report.complete and sorted(report.matched) == sorted(own)
    assert report.new == [f'norm{i}.{part}' for i in range(3) for part in ('weight', 'bias')]
    assert report.unused == ['head.fc.weight', 'head.fc.bias']
    detector.load_state_dict(state_dict=given)
    image = torch.rand(1, 3, 64, 96)
    if mixer:
        wake_memory(detector)
        classifier.load_state_dict({name: detector.state_dict()[name] for name in own})
    assert torch.equal(detector(image)[-1], classifier(image)[-1])


def test_things_are_cut_out_whole_with_a_margin(sample_dir):
    for split, number in (('train', 24), ('val', 6)):
        things, seen = sample_dir / 'data/sample/things' / split, 0
        for index in range(number):
            scene = make_scene('sample', split, index, 96)
            for i, label in enumerate(scene.labels):
                y, x = (scene.owner == i + 1).nonzero()
                height, width = y.max() - y.min() + 1, x.max() - x.min() + 1
                side = min(96, round(1.2 * max(height, width)))
                path = things / THING_CLASSES[label] / f'{index:06}_{i}.png'
                crop, seen = cv2.imread(str(path))[..., ::-1], seen + 1
                assert crop.shape == (side, side, 3)
                top = int(np.clip(y.min() + (height - side) // 2, 0, 96 - side))
                left = int(np.clip(x.min() + (width - side) // 2, 0, 96 - side))
                assert (crop == scene.image[top : top + side, left : left + side]).all()
                assert top <= y.min() and y.max() < top + side
                assert left <= x.min() and x.max() < left + side
        assert len(list(things.glob('*/*.png'))) == seen


# --------------------------------------------------------------------------------- what needs it
@needs_mmpretrain
@pytest.mark.parametrize('name', IMAGENET)
def test_parameters_are_those_of_the_table(name):
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    count = sum(p.numel() for p in model.parameters())
    page = (ROOT / 'docs/choose.md').read_text()
    row = re.search(rf'^\| `{cfg.model.backbone.arch}` \|.*$', page, re.M)[0]
    assert row.split('|')[3].strip() == f'{count / 1e6:.1f}'


@needs_mmpretrain
def test_a_step_with_the_augmentation_of_the_recipe(sample_dir):
    """Every parameter gets a gradient, from soft labels."""
    cfg = load(IMAGENET[0])
    data = dict(cfg.train_dataloader.dataset, type='CustomDataset')
    data['data_root'] = str(sample_dir / 'data/sample/things')
    model = build(cfg)
    wake_memory(model.backbone)
    dataset = DATASETS.build(data)
    batch = pseudo_collate([dataset[i] for i in (0, -1)])
    prepared = model.data_preprocessor(copy.deepcopy(batch), training=True)
    assert prepared['inputs'].shape == (2, 3, 224, 224)
    for sample in prepared['data_samples']:
        assert sample.gt_score.sum() == pytest.approx(1) and len(sample.gt_score) == 1000
    losses = train_step(model, batch)
    assert 5 < losses['loss'] < 9  # log 1000 = 6.9
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.fixture(scope='module')
def trained(sample_dir, tmp_path_factory) -> tuple[Path, Path]:
    """Config and checkpoint of a tiny classifier."""
    folder = tmp_path_factory.mktemp('trained')
    config = folder / 'tiny.py'
    config.write_text(TINY_CLASSIFIER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sample_dir)
        call(patch, 'train', config, '--work-dir', folder)
    return config, latest_checkpoint(folder)


@needs_mmpretrain
def test_a_test_repeats_the_validation_and_keeps_what_it_found(
    trained, sample_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(sample_dir)
    config, checkpoint = trained
    assert checkpoint.name == 'epoch_2.pth'
    out, shown = tmp_path / 'out.pkl', tmp_path / 'shown'
    common = ('test', config, checkpoint, '--work-dir', tmp_path / 'work')
    call(monkeypatch, *common, '--out', out, '--show-dir', shown)
    (file,) = (tmp_path / 'work').glob('*/*.json')
    reached = json.loads(file.read_text())['accuracy/top1']
    (log,) = config.parent.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (validated,) = (line['accuracy/top1'] for line in lines if 'accuracy/top1' in line)
    assert reached == validated
    found = pickle.loads(out.read_bytes())
    images = list((sample_dir / 'data/sample/things/val').glob('*/*.png'))
    right = [int(x['pred_label']) == int(x['gt_label']) for x in found]
    assert len(found) == len(images) and 100 * sum(right) / len(right) == pytest.approx(reached)
    assert len(list(shown.glob('*/*.png'))) == len(images)
    call(monkeypatch, *common, '--tta')
    with pytest.raises(SystemExit):
        call(monkeypatch, *common, '--out', tmp_path / 'folder')


@needs_mmpretrain
def test_other_tools(trained, sample_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(sample_dir)
    config, checkpoint = trained
    call(monkeypatch, 'check', config)
    printed = capsys.readouterr().out
    assert 'train, images' in printed and 'nothing is wrong' in printed
    call(monkeypatch, 'browse_dataset', config, '--out-dir', tmp_path / 'drawn', '-n', '2')
    assert len(list((tmp_path / 'drawn').iterdir())) == 2
    arguments = ('--model', config, '--checkpoint', checkpoint, '--out-dir', tmp_path / 'out')
    call(monkeypatch, 'demo', 'data/sample/images/val', *arguments)
    assert len(list((tmp_path / 'out').iterdir())) == 6
    if find_spec('onnx') and find_spec('onnxruntime'):
        with pytest.raises(SystemExit):
            call(monkeypatch, 'export', config, checkpoint, '--out', tmp_path / 'model.onnx')
        assert 'is for classification' in capsys.readouterr().err


MISTAKES = {
    'model.head.num_classes is 4, but the train and val data has 5 classes: set it to 5': {
        'model.head.num_classes': 4
    },
    'model.head.in_channels=33: model.head.fc takes 33 channels and gets 320, but the neck gives '
    '[320]: change one of them': {'model.head.in_channels': 33},
    'the train classes are in another order than the folders in data/sample/things/train, whose '
    "sorted names are labels 0, 1, ...: write metainfo=dict(classes=('bar', 'coin', 'ring', "
    "'star', 'triangle'))": {
        'train_dataloader.dataset.metainfo.classes': ('coin', 'bar', 'ring', 'star', 'triangle'),
        'val_dataloader.dataset.metainfo.classes': ('coin', 'bar', 'ring', 'star', 'triangle'),
    },
    'data/none/train is missing or empty: put the train images of CustomDataset there': {
        'train_dataloader.dataset.data_root': 'data/none'
    },
    'model is ImageClassifier, which is for classification (mmpretrain), but the config is for '
    "detection (default_scope='mmdet')": {'default_scope': 'mmdet'},
}


@needs_mmpretrain
@pytest.mark.parametrize('message', MISTAKES)
def test_mistakes_are_named(message, sample_dir, monkeypatch):
    monkeypatch.chdir(sample_dir)
    monkeypatch.setattr(configs, 'find_spec', lambda name: find_spec(name) or name == 'mmdet')
    options = MISTAKES[message]
    try:
        cfg = load(SAMPLE, **options)
        args = Namespace(config=SAMPLE, cfg_options=options)
        _, mistakes = sort(examine(cfg, args, 'train', 'val')[1])
    except UsageError as error:
        mistakes = [str(error)]
    assert any(mistake.startswith(message) for mistake in mistakes), mistakes


# ---------------------------------------------------------------------------------------- the page
PAGE = (ROOT / 'docs' / 'pretraining.md').read_text()


def stand_in(path: Path) -> None:
    """A checkpoint as a classifier leaves it, where none can be trained."""
    backbone = ConvNeur('m1', out_indices=(-1,))
    backbone.init_weights()
    state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    path.parent.mkdir(parents=True)
    torch.save(dict(state_dict={**state, 'head.fc.weight': torch.zeros(5, 320)}), path)


@pytest.mark.slow
def test_the_chain_of_the_page(sample_dir, tmp_path, monkeypatch):
    """Pretrain, start a detector, release it: the commands of the page, on a few images."""
    pytest.importorskip('mmdet')
    from test_model_zoo import repository

    home = repository(tmp_path / 'home')
    (home / 'data').symlink_to(sample_dir / 'data')
    for path in CONFIGS.glob('*[!l]'):  # but metafile.yml
        (home / 'configs' / path.name).symlink_to(path)
    (text,) = re.findall(r'^```python\n(.*?)^```', PAGE, re.M | re.S)
    config = Path(re.match(r'# (\S+\.py)\n', text)[1])
    # So short a training finds nothing that is sure.
    (home / config).write_text(text + "model['test_cfg'] = dict(rcnn=dict(score_thr=0.0))\n")
    monkeypatch.chdir(home)
    few = ['train_dataloader.dataset.indices=4', 'train_cfg.val_interval=9']
    few += ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    section = PAGE.split('\n## Try it on the sample data\n')[1].split('\n## ')[0]
    (commands,) = re.findall(r'^```bash\n(.*?)^```', section, re.M | re.S)
    for command in commands.splitlines()[1:]:
        python, tool, *arguments = shlex.split(command)
        assert python == 'python' and Path(tool).parent == Path('tools')
        classifies = Path(arguments[0]).stem == SAMPLE
        if not classifies or find_spec('mmpretrain'):
            few_images = ['--cfg-options', *few] if tool.endswith('train.py') else []
            call(monkeypatch, Path(tool).stem, *arguments, *few_images)
        elif tool.endswith('train.py'):
            stand_in(home / f'work_dirs/{SAMPLE}/epoch_8.pth')
    (log,) = (home / 'work_dirs' / config.stem).glob('*/*.log')
    assert re.search(r'ConvNeur from ConvNeur: 206 matched, 6 newly .* 0 missing', log.read_text())
    assert len(list((home / 'checkpoints').glob(f'{config.stem}-*.pth'))) == 1
