"""Released models: how they are written, found by name, verified, and used for inference."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import runpy
import shutil
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
import yaml
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmseg.apis import MMSegInferencer, inference_model, init_model
from steps import ROOT, SAMPLE_CONFIGS, build
from test_tools import TOOLS, failing

from mmconvneur import UsageError
from mmconvneur.apis import model_zoo
from mmconvneur.apis.model_zoo import find_weights, read_index, released
from mmconvneur.engine.outputs import enlarge
from mmconvneur.weights import read_checkpoint
from mmconvneur.weights.trunk import Trunk, fingerprint, take_out, trunk_of
from model_index import release, table, with_table
from publish_checkpoint import flat_config, golden_maps

BACKBONE = """
_base_ = {base!r}
tiny = dict(
    _delete_=True,
    type='mmconvneur.ConvNeur',
    arch=dict(channels=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
)
custom_hooks = [dict(type='EMAHook', momentum=0.3)]
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""
CONFIGS = dict(
    detector=BACKBONE.format(base=str(SAMPLE_CONFIGS['mmdet']))
    + """
model = dict(
    backbone=tiny,
    neck=dict(in_channels=[8, 16, 24, 32]),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=7)),
)
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
""",
    segmentor=BACKBONE.format(base=str(SAMPLE_CONFIGS['mmseg']))
    + """
model = dict(
    backbone=tiny,
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=8),
    auxiliary_head=dict(in_channels=24, channels=8),
)
train_cfg = dict(max_iters=4, val_interval=4)
param_scheduler = None
default_hooks = dict(logger=dict(interval=1))
""",
)
CHECKPOINTS = dict(detector='epoch_1.pth', segmentor='iter_4.pth')
SIDECARS = ('.json', '.log.json', '.npz', '.pth', '.py')
METRICS = {'box AP': ('coco/bbox_mAP', 100), 'mask AP': ('coco/segm_mAP', 100), 'mIoU': ('mIoU', 1)}
CLASSES = ['coin', 'star', 'triangle', 'ring', 'bar', 'brick', 'grass', 'gravel']
ENTRY = {
    'Name': 'one',
    'In Collection': 'ConvNeur',
    'Config': 'configs/one.py',
    'Metadata': {'Parameters': 1234567, 'File Size (MB)': 2.5, 'SHA256': '0' * 64},
    'Results': [
        {'Task': 'Object Detection', 'Dataset': 'D', 'Metrics': {'box AP': 12.34}},
        {'Task': 'Instance Segmentation', 'Dataset': 'D', 'Metrics': {'mask AP': 5.0}},
    ],
    'Weights': 'checkpoints/one-00000000.pth',
}
TABLE = """\
| name | task | parameters | metric | config | checkpoint | size |
| --- | --- | --- | --- | --- | --- | --- |
| `one` | Object Detection, Instance Segmentation | 1.23 M | box AP 12.3, mask AP 5.0 \
| [config](configs/one.py) | [checkpoint](checkpoints/one-00000000.pth) | 2.5 MB |
"""


def repository(folder: Path) -> Path:
    """A folder with an empty index and a README, as this repository has them."""
    (folder / 'configs').mkdir(parents=True)
    shutil.copy(ROOT / 'model-index.yml', folder)
    metafile = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())
    (folder / 'configs' / 'metafile.yml').write_text(yaml.safe_dump(metafile | dict(Models=[])))
    (folder / 'README.md').write_text(with_table((ROOT / 'README.md').read_text(), []))
    return folder


@pytest.fixture(scope='module')
def home(sample_dir, tmp_path_factory) -> Path:
    """A repository that has released a detector and a segmentor, trained for some steps."""
    folder = repository(tmp_path_factory.mktemp('home') / 'repository')
    (folder / 'data').symlink_to(sample_dir / 'data')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, text in CONFIGS.items():
            config = Path('configs') / f'{name}.py'
            config.write_text(text)
            call(patch, 'train', config, '--work-dir', f'work_{name}')
            call(patch, 'publish_checkpoint', config, f'work_{name}/{CHECKPOINTS[name]}')
    return folder


@pytest.fixture
def at_home(home, monkeypatch) -> Path:
    """The same as the working directory and as what the package has."""
    monkeypatch.setattr(model_zoo, 'HOME', home)
    monkeypatch.chdir(home)
    return home


def call(monkeypatch: pytest.MonkeyPatch, tool: str, *args: object) -> None:
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
    runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')


def entry_of(home: Path, name: str) -> dict:
    (entry,) = (entry for entry in read_index(home) if entry['Name'] == name)
    return entry


# -------------------------------------------------------------------------------------- publishing
@pytest.mark.parametrize('name', CONFIGS)
def test_the_weights_are_those_of_the_training_in_float16(name, home):
    file = home / entry_of(home, name)['Weights']
    stored = torch.load(file, weights_only=True)
    given = read_checkpoint(home / f'work_{name}' / CHECKPOINTS[name])
    assert stored['state_dict'].keys() == given['state_dict'].keys()
    for key, value in given['state_dict'].items():
        expected = value.half() if value.is_floating_point() else value
        assert torch.equal(stored['state_dict'][key], expected), key
        assert stored['state_dict'][key].dtype == expected.dtype, key
    # MMEngine keeps the weights of the last step aside: they are not what was released.
    last = given['ema_state_dict']
    assert any(
        not torch.equal(last[f'module.{key}'].half(), value)
        for key, value in stored['state_dict'].items()
        if key.endswith('.weight')
    )
    dataset = given['meta']['dataset_meta']
    assert stored['meta']['dataset_meta'] == dict(
        classes=CLASSES[: len(dataset['classes'])], palette=[list(c) for c in dataset['palette']]
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_all_that_repeats_a_training_lies_beside_the_weights(name, home):
    entry = entry_of(home, name)
    weights = home / entry['Weights']
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert entry['Metadata']['SHA256'] == digest
    assert weights.name == f'{name}-{digest[:8]}.pth'
    files = sorted(weights.parent.glob(f'{name}-*'))
    assert [file.name for file in files] == [f'{weights.stem}{suffix}' for suffix in SIDECARS]
    given = read_checkpoint(home / f'work_{name}' / CHECKPOINTS[name])['meta']

    record = json.loads(weights.with_suffix('.json').read_text())
    config = home / 'configs' / f'{name}.py'
    parameters = build(Config.fromfile(config)).parameters()
    assert record['sha256'] == digest and record['seed'] == given['seed']
    assert record['command'] == f'python tools/train.py checkpoints/{weights.stem}.py'
    assert record['parameters'] == sum(parameter.numel() for parameter in parameters)
    assert record['parameters'] == entry['Metadata']['Parameters']
    assert record['software']['torch'] == torch.__version__
    optional = ['mmpretrain'] if find_spec('mmpretrain') else []
    assert record['software'].keys() == {
        *('python', 'mmconvneur', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', *optional)
    }
    assert record['hardware']['processes'] == 1 and record['hardware']['cpu']
    length = dict(detector=('Epochs', 1), segmentor=('Iterations', 4))[name]
    assert dict([length]).items() <= entry['Metadata'].items()
    assert entry['Metadata']['Training Data'] == 'Sample data'

    flat, cfg = Config.fromfile(weights.with_suffix('.py')), Config.fromfile(config)
    assert '_base_' not in weights.with_suffix('.py').read_text()
    assert flat.model == cfg.model and flat.train_dataloader == cfg.train_dataloader
    assert flat.randomness.seed == given['seed']
    log = [json.loads(line) for line in weights.with_suffix('.log.json').read_text().splitlines()]
    steps = dict(detector=6, segmentor=4)[name]
    assert [line['iter'] for line in log if 'loss' in line] == list(range(1, steps + 1))
    for suffix in ('.json', '.log.json', '.py'):
        assert str(home) not in (weights.parent / f'{weights.stem}{suffix}').read_text()

    model = build(Config.fromfile(config))
    model.load_state_dict(torch.load(weights, weights_only=True)['state_dict'])
    with np.load(weights.with_suffix('.npz')) as golden:
        for i, feature in enumerate(golden_maps(model.backbone)):
            np.testing.assert_allclose(golden[f'map_{i}'], feature.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('given', 'kept'),
    [
        ('detector', 'detector'),
        ('https://a.b/c.pth', 'https://a.b/c.pth'),
        ('/home/a/b.pth', 'b.pth'),
    ],
)
def test_the_flat_config_names_no_folder_of_the_machine(given, kept):
    text = Config(dict(load_from=given)).pretty_text
    assert flat_config(dict(cfg=text, seed=0)).load_from == kept


def test_a_training_keeps_the_name_that_it_starts_from(at_home, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Runner, 'train', lambda runner: started.append(runner))
    options = ['--work-dir', tmp_path, '--cfg-options', 'load_from=detector']
    call(monkeypatch, 'train', 'configs/detector.py', *options)
    assert started[0].cfg.load_from == 'detector'
    assert Path(started[0]._load_from) == at_home / entry_of(at_home, 'detector')['Weights']


def test_the_flat_config_repeats_the_training(at_home, tmp_path, monkeypatch):
    flat = Path(entry_of(at_home, 'segmentor')['Weights']).with_suffix('.py')
    call(monkeypatch, 'train', flat, '--work-dir', tmp_path)
    first, again = (
        read_checkpoint(folder / CHECKPOINTS['segmentor'])['state_dict']
        for folder in (at_home / 'work_segmentor', tmp_path)
    )
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_listed_metrics_are_those_of_the_stored_file(name, at_home, tmp_path, monkeypatch):
    call(monkeypatch, 'test', f'configs/{name}.py', name, '--work-dir', tmp_path)
    (line,) = (json.loads(file.read_text()) for file in tmp_path.glob('*/*.json'))
    entry = entry_of(at_home, name)
    listed = {k: v for result in entry['Results'] for k, v in result['Metrics'].items()}
    assert set(listed) == dict(detector={'box AP', 'mask AP'}, segmentor={'mIoU'})[name]
    for metric, value in listed.items():
        key, percent = METRICS[metric]
        assert value == pytest.approx(line[key] * percent, abs=1e-3)
    record = json.loads((at_home / entry['Weights']).with_suffix('.json').read_text())
    assert record['metrics'] == {key: line[key] for key in record['metrics']}


@pytest.fixture
def unfinished(home, tmp_path, monkeypatch) -> Path:
    """A repository with the detector's config and training, and nothing released."""
    folder = repository(tmp_path / 'repository')
    (folder / 'data').symlink_to(home / 'data')
    (folder / 'configs' / 'detector.py').write_text(CONFIGS['detector'])
    (folder / 'configs' / 'segmentor.py').write_text(CONFIGS['segmentor'])
    shutil.copytree(home / 'work_detector', folder / 'work')
    (folder / 'empty').mkdir()
    shutil.copy(folder / 'work' / 'epoch_1.pth', folder / 'empty')
    monkeypatch.chdir(folder)
    return folder


def without_meta(training: dict) -> None:
    training['meta'] = dict(epoch=1, iter=6)


def without_a_finite_weight(training: dict) -> None:
    training['state_dict']['backbone.norm0.weight'][0] = 1e5


def without_a_weight(training: dict) -> None:
    del training['state_dict']['roi_head.bbox_head.fc_reg.bias']


@pytest.mark.parametrize(('args', 'spoil', 'parts'), [
    (['detector.py', 'work/epoch_1.pth'], without_meta, ['cfg, dataset_meta, seed', 'train.py']),
    (['detector.py', 'work/epoch_1.pth'], without_a_finite_weight, ['norm0.weight', 'float16']),
    (['detector.py', 'work/epoch_1.pth'], without_a_weight,
     ['not belong to the model of the config', '1 missing (roi_head.bbox_head.fc_reg.bias)']),
    (['detector.py', 'empty/epoch_1.pth'], None, ['empty holds no training log']),
    (['detector.py', 'no.pth'], None, ['no.pth does not exist']),
    (['segmentor.py', 'work/epoch_1.pth'], None, ['not the one the checkpoint was']),
    (['detector.py', 'work/epoch_1.pth', '--name', 'a.b'], None, ['--name a.b', 'letters']),
    (['../elsewhere.py', 'work/epoch_1.pth'], None, ['not of this repository', 'configs/']),
])  # fmt: skip
def test_what_cannot_be_released_is_refused_whole(
    args, spoil, parts, unfinished, monkeypatch, capsys
):
    (unfinished / 'elsewhere.py').write_text(CONFIGS['detector'])
    if spoil:
        training = read_checkpoint('work/epoch_1.pth')
        spoil(training)
        torch.save(training, 'work/epoch_1.pth')
    message = failing(monkeypatch, capsys, 'publish_checkpoint', f'configs/{args[0]}', *args[1:])
    for part in parts:
        assert part in message, message
    assert read_index(unfinished) == [] and not (unfinished / 'checkpoints').exists()


def test_a_learned_part_is_released_with_its_trunk(home, unfinished, monkeypatch):
    """What is released is what the whole checkpoint gave."""
    training = read_checkpoint('work/epoch_1.pth')
    state = training['state_dict']
    backbone = {k.removeprefix('backbone.'): v for k, v in state.items() if 'backbone.' in k}
    torch.save(backbone, 'trunk.pth')
    take_out(state, 'backbone', Trunk(fingerprint(trunk_of(backbone)), 'trunk.pth', None))
    torch.save(training, 'work/epoch_1.pth')
    call(monkeypatch, 'publish_checkpoint', 'configs/detector.py', 'work/epoch_1.pth')
    ours, whole = (
        read_checkpoint(folder / entry_of(folder, 'detector')['Weights'])['state_dict']
        for folder in (unfinished, home)
    )
    assert ours.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(ours[name], value), name


def test_releases_are_written_in_the_root_of_the_repository(
    unfinished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    args = (unfinished / 'configs' / 'detector.py', unfinished / 'work' / 'epoch_1.pth')
    message = failing(monkeypatch, capsys, 'publish_checkpoint', *args)
    assert 'configs/metafile.yml does not exist: run this in the root' in message


# ------------------------------------------------------------------------------------------- index
def assert_index_is_true(home: Path) -> None:
    """README, configs and files are what the index says."""
    entries = read_index(home)
    readme = (home / 'README.md').read_text()
    assert readme == with_table(readme, entries)
    for entry in entries:
        assert (home / entry['Config']).is_file()
        assert entry['In Collection'] == 'ConvNeur'
        if not entry['Weights'].startswith('http'):
            content = (home / entry['Weights']).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry['Metadata']['SHA256']
            assert round(len(content) / 1e6, 1) == entry['Metadata']['File Size (MB)']


def test_the_index_of_this_repository_is_true():
    assert_index_is_true(ROOT)
    assert ROOT.samefile(model_zoo.HOME / '..' / '..')
    assert read_index(model_zoo.HOME) == read_index(ROOT)


def test_the_index_after_releases_is_true(home):
    assert [entry['Name'] for entry in read_index(home)] == ['detector', 'segmentor']
    assert_index_is_true(home)
    metafile = yaml.safe_load((home / 'configs' / 'metafile.yml').read_text())
    assert [collection['Name'] for collection in metafile['Collections']] == ['ConvNeur']


def test_table():
    assert table([ENTRY]) == TABLE
    readme = 'a\n<!-- models: begin -->\nold\n<!-- models: end -->\nb\n'
    assert with_table(readme, [ENTRY]) == readme.replace('old\n', TABLE)
    assert with_table(with_table(readme, [ENTRY]), []) == readme.replace(
        'old', 'No model is released yet.'
    )


def test_a_release_replaces_the_one_of_its_name(tmp_path):
    home = repository(tmp_path / 'repository')
    (home / 'checkpoints').mkdir()
    for stem in ('one-00000000', 'one-11111111', 'one-two-00000000'):
        for suffix in SIDECARS:
            (home / 'checkpoints' / f'{stem}{suffix}').touch()
    other = ENTRY | {'Name': 'one-two', 'Weights': 'checkpoints/one-two-00000000.pth'}
    newer = ENTRY | {'Weights': 'checkpoints/one-11111111.pth'}
    for entry in (other, ENTRY, ENTRY):
        release(home, entry)
    assert read_index(home) == [ENTRY, other]
    assert len(list((home / 'checkpoints').iterdir())) == 3 * len(SIDECARS)
    release(home, newer)
    assert read_index(home) == [newer, other]
    left = sorted(file.name for file in (home / 'checkpoints').iterdir())
    assert left == [f'{s}{x}' for s in ('one-11111111', 'one-two-00000000') for x in SIDECARS]
    assert 'one-11111111.pth' in (home / 'README.md').read_text()


# ------------------------------------------------------------------------------------- short names
def test_a_name_gives_config_verified_weights_task_and_metrics(at_home):
    entry = entry_of(at_home, 'segmentor')
    model = released('segmentor')
    assert model == (
        'segmentor',
        str(at_home / 'configs' / 'segmentor.py'),
        str(at_home / entry['Weights']),
        'Semantic Segmentation',
        entry['Results'][0]['Metrics'],
    )
    assert model.paths == model[1:3]


def test_weights_are_found_by_path_before_name(at_home, tmp_path, monkeypatch):
    weights = at_home / entry_of(at_home, 'detector')['Weights']
    assert find_weights('detector') == find_weights(str(weights)) == weights
    with pytest.raises(UsageError, match=r'detector\.pth does not exist'):
        find_weights('detector.pth')
    with pytest.raises(UsageError, match='checkpoint no/detector does not exist'):
        find_weights('no/detector')
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights, 'detector')
    assert find_weights('detector') == Path('detector')


def test_an_unknown_name_lists_the_valid_ones(at_home, monkeypatch, capsys):
    message = failing(monkeypatch, capsys, 'test', 'configs/detector.py', 'detectr')
    assert message == (
        "error: unknown model 'detectr': did you mean detector? choose one of detector, segmentor"
    )
    with pytest.raises(UsageError, match="'x': choose one of detector, segmentor$"):
        released('x')


def test_without_releases_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(model_zoo, 'HOME', repository(tmp_path / 'repository'))
    with pytest.raises(UsageError, match="unknown model 'one': none is released yet"):
        released('one')


def test_other_weights_than_the_released_are_refused(at_home, tmp_path, monkeypatch, capsys):
    copy = tmp_path / 'repository'
    shutil.copytree(at_home, copy, symlinks=True)
    monkeypatch.setattr(model_zoo, 'HOME', copy)
    entry = entry_of(copy, 'detector')
    file = copy / entry['Weights']
    file.write_bytes(file.read_bytes() + b'x')
    message = failing(monkeypatch, capsys, 'test', 'configs/detector.py', 'detector')
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f'{file} has the sha256 {found}' in message
    assert f'detector is {entry["Metadata"]["SHA256"]}: delete the file' in message
    file.unlink()
    with pytest.raises(UsageError, match=f'{file}, the weights of detector, is missing'):
        released('detector')


def test_weights_at_a_url_are_downloaded_once_and_verified(at_home, tmp_path, monkeypatch, capfd):
    entry = entry_of(at_home, 'detector')
    cache, copy = tmp_path / 'cache', repository(tmp_path / 'repository')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(cache))
    monkeypatch.setattr(model_zoo, 'HOME', copy)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=at_home)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/{entry["Weights"]}'
        release(copy, entry | dict(Weights=url))
        file = Path(released('detector').weights)
        server.shutdown()
    assert '100%' in capfd.readouterr().err  # a bar
    assert file.parent == cache / 'checkpoints'
    assert file.read_bytes() == (at_home / entry['Weights']).read_bytes()
    assert released('detector').weights == str(file)  # nobody serves it any more
    assert f'[checkpoint]({url})' in (copy / 'README.md').read_text()

    file.write_bytes(file.read_bytes() + b'x')
    found, expected = hashlib.sha256(file.read_bytes()).hexdigest(), entry['Metadata']['SHA256']
    with pytest.raises(UsageError, match=f'{file} has the sha256 {found}.* is {expected}'):
        released('detector')
    file.unlink()
    with pytest.raises(UsageError, match=f'{url} cannot be downloaded .* put it at {file}'):
        released('detector')


# --------------------------------------------------------------------------------------- inference
def expected_result(home: Path, name: str, index: int):
    """The prediction for a validation image by the model's own test step."""
    cfg = Config.fromfile(home / 'configs' / f'{name}.py')
    model = build(cfg).eval()
    stored = torch.load(home / entry_of(home, name)['Weights'], weights_only=True)['state_dict']
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    with torch.no_grad():
        (result,) = model.test_step(pseudo_collate([dataset[index]]))
    return result


def assert_same_instances(actual, expected) -> None:
    assert len(expected) == 7
    for key in ('bboxes', 'scores', 'labels', 'masks'):
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=1e-5, msg=key)


def test_detectors_of_mmdet_work_from_the_name(at_home):
    image = 'data/sample/images/val/000002.png'
    expected = expected_result(at_home, 'detector', 2).pred_instances
    model = init_detector(*released('detector').paths, device='cpu')
    assert model.dataset_meta['classes'] == CLASSES[:5]
    assert_same_instances(inference_detector(model, image).pred_instances, expected)
    inferencer = DetInferencer(*released('detector').paths, device='cpu', show_progress=False)
    (found,) = inferencer(image, return_datasamples=True)['predictions']
    assert_same_instances(found.pred_instances, expected)


def test_segmentors_of_mmseg_work_from_the_name(at_home):
    image = 'data/sample/images/val/000002.png'
    expected = expected_result(at_home, 'segmentor', 2)
    labels = expected.pred_sem_seg.data
    model = init_model(*released('segmentor').paths, device='cpu')
    assert model.dataset_meta['classes'] == CLASSES
    found = inference_model(model, image)
    torch.testing.assert_close(found.seg_logits.data, expected.seg_logits.data, rtol=0, atol=1e-5)
    assert torch.equal(found.pred_sem_seg.data, labels)
    inferencer = MMSegInferencer(*released('segmentor').paths, device='cpu')
    assert (inferencer(image)['predictions'] == labels[0].numpy()).all()


# -------------------------------------------------------------------------------------------- demo
def pixels(path: Path | str) -> np.ndarray:
    """Of an image, as large as it is drawn."""
    image = mmcv.imread(path, channel_order='rgb')
    return enlarge(image, BaseDataElement())[0].astype(int)


def test_demo_draws_detections_above_the_score(at_home, tmp_path, monkeypatch, capsys):
    images = 'data/sample/images/val'
    weights = entry_of(at_home, 'detector')['Weights']
    own = ('--model', 'configs/detector.py', '--checkpoint', weights)
    for folder, args in dict(
        a=(images, '--model', 'detector', '--score-thr', 0),
        b=(f'{images}/*[01].png', *own, '--score-thr', 0),
        c=(f'{images}/000001.png', *own, '--score-thr', 1),
    ).items():
        np.random.seed(0)  # mmdet varies the colours of masks
        call(monkeypatch, 'demo', *args, '--out-dir', tmp_path / folder)
    assert 'a: 6 pictures' in capsys.readouterr().out
    names = [[f.name for f in sorted((tmp_path / folder).iterdir())] for folder in 'abc']
    assert names == [
        [f'{i:06}.png' for i in range(6)],
        ['000000.png', '000001.png'],
        ['000001.png'],
    ]
    image = pixels(f'{images}/000001.png')
    drawn, same, empty = (pixels(tmp_path / folder / '000001.png') for folder in 'abc')
    assert (drawn == same).all() and drawn.shape == image.shape
    assert (np.abs(empty - image) <= 2).all()
    assert (np.abs(drawn - image) > 2).any()


def test_demo_lays_the_label_map_over_the_image(at_home, tmp_path, monkeypatch):
    image = 'data/sample/images/val/000002.png'
    call(monkeypatch, 'demo', image, '--model', 'segmentor', '--out-dir', tmp_path)
    labels = expected_result(at_home, 'segmentor', 2).pred_sem_seg.data[0].numpy()
    labels = labels.repeat(5, 0).repeat(5, 1)  # 480 pixels in place of 96
    palette = np.array(Config.fromfile('configs/segmentor.py').metainfo.palette)
    visible = 0.2 * pixels(image) + 0.8 * palette[labels]
    close = (np.abs(pixels(tmp_path / '000002.png') - visible) <= 2).all(-1)
    assert close.mean() > 0.6  # the rest is under the names of the classes


@pytest.mark.parametrize(('args', 'parts'), [
    (['no/*.png', '--model', 'detector'], ['no image found at no/*.png', '.jpg']),
    (['configs', '--model', 'detector'], ['no image found at configs']),
    (['bad.png', '--model', 'segmentor'], ['bad.png cannot be read as an image']),
    (['bad.png', '--model', 'segmenter'], ["unknown model 'segmenter'", 'mean segmentor?']),
    (['bad.png', '--model', 'configs/detector.py'], ['is a config', '--checkpoint']),
    (['bad.png', '--model', 'detector', '--checkpoint', 'no.pth'], ['no.pth does not exist']),
    (['bad.png', '--model', 'nothing', '--checkpoint', 'WEIGHTS'], ['nothing does not exist']),
    (['bad.png', '--model', 'detector', '--out-dir', '.'], ['--out-dir . would replace bad.png']),
])  # fmt: skip
def test_bad_input_of_the_demo_is_one_line(args, parts, at_home, monkeypatch, capsys):
    (at_home / 'bad.png').write_bytes(b'no image')
    weights = entry_of(at_home, 'detector')['Weights']
    args = [weights if arg == 'WEIGHTS' else arg for arg in args]
    message = failing(monkeypatch, capsys, 'demo', *args)
    for part in parts:
        assert part in message, message
