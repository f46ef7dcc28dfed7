"""What mmdet, mmseg and MMEngine accept in configs and weights is accepted here."""

from __future__ import annotations

import argparse
import copy
import runpy
import sys

import numpy as np
import pytest
import torch
from fuzz import GROUPS, failure
from mmcv.transforms import LoadImageFromFile
from mmdet.models import MaskRCNN
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS
from mmseg.models import EncoderDecoder
from PIL import Image
from steps import SAMPLE_CONFIGS, build
from test_environment import IMPORT_NAME, ONEDL, OPENMMLAB, install_all
from test_tools import DETECTION, SEGMENTATION, TOOLS, failing
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mmconvneur import ConvNeur, UsageError
from mmconvneur.apis.inference import infer, inference_pipeline, load_model
from mmconvneur.errors import UsageErrors
from mmconvneur.utils import configs, environment
from mmconvneur.utils.arguments import OptionsAction, usage_message
from mmconvneur.utils.configs import check_family, check_options, check_pretrained, fill_in
from mmconvneur.utils.widths import check_widths
from mmconvneur.weights.loading import check_heads

WIDTHS = [8, 16, 24, 32]
ARCH = dict(channels=WIDTHS, depths=[1, 1, 1, 1])
BFP = dict(type='BFP', in_channels=64, num_levels=5, refine_level=2)


def tiny(family: str) -> Config:
    cfg = Config.fromfile(SAMPLE_CONFIGS[family])
    cfg.model.backbone.arch = ARCH
    if family == 'mmdet':
        cfg.model.neck.in_channels = WIDTHS
    else:
        cfg.model.decode_head.update(in_channels=WIDTHS, channels=8)
        cfg.model.auxiliary_head.update(in_channels=24, channels=8)
    return cfg


# ---------------------------------------------------------------------------- necks and heads
@MODELS.register_module()
class DeepestFirst(nn.Module):
    """A neck that lists its widths from the last map to the first."""

    def __init__(self, in_channels: list[int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.convs = nn.ModuleList(nn.Conv2d(width, 64, 1) for width in in_channels)

    def forward(self, maps: tuple) -> tuple:
        return tuple(conv(x) for conv, x in zip(self.convs, maps[::-1], strict=True))[::-1]


@pytest.mark.parametrize(
    ('family', 'part', 'options'),
    [
        ('mmdet', 'neck', [tiny('mmdet').model.neck, BFP]),
        ('mmdet', 'neck', dict(type='DeepestFirst', in_channels=WIDTHS[::-1], _delete_=True)),
        ('mmseg', 'decode_head', dict(in_channels=WIDTHS[1:], in_index=[1, 2, 3])),
    ],
    ids=['list', 'deepest first', 'some stages'],
)
def test_parts_that_fit_are_accepted(family, part, options):
    cfg = tiny(family)
    if isinstance(options, list):
        cfg.model[part] = options
    else:
        cfg.merge_from_dict(dict(model={part: options}))
    check_widths(build(cfg))


@pytest.mark.parametrize(
    ('family', 'options', 'parts'),
    [
        ('mmdet', dict(neck=dict(in_channels=[8, 16, 24, 40])), ['neck.in_channels=[8, 16, 24, 4']),
        ('mmdet', dict(backbone=dict(out_indices=(1, 2, 3))), ['gives [16, 24, 32]']),
        ('mmdet', dict(rpn_head=dict(in_channels=32)), ['rpn_head.in_channels=32']),
        (
            *('mmdet', dict(neck=dict(num_outs=5))),
            ['rpn_head has anchors or points of 4 levels (strides), but the neck gives 5 maps'],
        ),
        (
            *('mmdet', dict(roi_head=dict(bbox_head=dict(in_channels=31)))),
            ['roi_head.bbox_head.in_channels=31'],
        ),
        (
            *('mmdet', dict(roi_head=dict(mask_head=dict(in_channels=31)))),
            ['roi_head.mask_head.in_channels=31'],
        ),
        ('mmseg', dict(auxiliary_head=dict(in_channels=23)), ['auxiliary_head.in_channels=23']),
        (
            'mmseg',
            dict(backbone=dict(out_indices=(0, 1)), decode_head=dict(in_index=[0, 1, 2, -2])),
            ['decode_head.in_index=[0, 1, 2, -2], but the', 'auxiliary_head.in_index=2, but the'],
        ),
        (
            'mmseg',
            dict(
                decode_head=dict(
                    _delete_=True, type='FCNHead', in_channels=31, in_index=3, channels=8,
                    num_classes=8, norm_cfg=dict(type='BN'),
                ),
                auxiliary_head=dict(in_channels=23),
            ),
            ['decode_head.in_channels=31', 'auxiliary_head.in_channels=23'],
        ),
    ],
    ids=['neck', 'number', 'rpn', 'levels', 'boxes', 'masks', 'auxiliary', 'stages', 'both'],
)  # fmt: skip
def test_parts_that_do_not_fit_are_all_named(family, options, parts):
    cfg = tiny(family)
    cfg.merge_from_dict(dict(model=options))
    with pytest.raises(UsageError) as error:
        check_widths(build(cfg))
    assert len(error.value.messages) == len(parts)
    for message, part in zip(error.value.messages, parts, strict=True):
        assert part in message


def test_a_width_that_only_training_meets_is_told_in_one_line():
    head = build(tiny('mmdet')).roi_head.bbox_head
    with pytest.raises(RuntimeError) as error:
        head(torch.zeros(2, 3, 7, 7))
    assert f'gets {3 * 7 * 7}' in usage_message(error.value)


def test_a_swapped_mmseg_config_is_told_all_its_lines():
    cfg = tiny('mmseg')
    cfg.model.pretrained = 'open-mmlab://resnet50_v1c'
    with pytest.raises(UsageError) as error:
        check_pretrained(cfg)
    lines = 'pretrained=None, decode_head=dict(in_channels=[8, 16, 24, 32]), '
    assert lines + 'auxiliary_head=dict(in_channels=24)' in str(error.value)
    cfg.model.auxiliary_head.in_index = 4
    with pytest.raises(UsageErrors) as errors:
        check_pretrained(cfg)
    swapped, beyond = errors.value.messages
    assert lines[:-2] + ', and weights' in swapped
    assert 'auxiliary_head.in_index=4, but the backbone gives 4 maps' in beyond


# ------------------------------------------------------------------------------------ options
def test_keys_that_the_runner_asks_the_config_for():
    keys = ['find_unused_parameters', 'compile', 'sync_bn', 'model_wrapper_cfg.type']
    keys += ['activation_checkpointing', 'efficient_conv_bn_eval', 'strategy.type']
    check_options(tiny('mmseg'), dict.fromkeys(keys))


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('/my data/a b', '/my data/a b'),
        ("['traffic light', 'car']", ['traffic light', 'car']),
        ('[( 1, 2 ), a b]', [(1, 2), 'a b']),
        ('my (old) set', 'my (old) set'),
        ('1, 2', [1, 2]),
    ],
)
def test_blanks_stay_in_values(text, value):
    parser = argparse.ArgumentParser()
    parser.add_argument('--o', nargs='+', action=OptionsAction)
    assert parser.parse_args(['--o', f'a={text}']).o == dict(a=value)


# ------------------------------------------------------------------------------ types as classes
@pytest.mark.parametrize(('family', 'kind'), [('mmdet', MaskRCNN), ('mmseg', EncoderDecoder)])
def test_the_family_of_a_config_of_classes(family, kind):
    cfg = tiny(family)
    cfg.default_scope, cfg.model.type, cfg.visualizer = None, type('Mine', (kind,), {}), None
    fill_in(cfg)
    assert cfg.default_scope == family and cfg.visualizer.type.startswith(family)
    check_family(cfg)
    cfg.model.roi_head = dict(type=EncoderDecoder if family == 'mmdet' else MaskRCNN)
    if family == 'mmdet':
        with pytest.raises(UsageError, match='model.roi_head is EncoderDecoder.*segmentation'):
            check_family(cfg)


@pytest.mark.parametrize('kind', [OptimWrapper, 'OptimWrapper', 'mmengine.OptimWrapper', None])
def test_amp_replaces_the_wrapper_in_any_spelling(kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    cfg = tiny('mmseg')
    cfg.optim_wrapper.pop('type', None)
    if kind:
        cfg.optim_wrapper.type = kind
    runpy.run_path(str(TOOLS / 'train.py'))['use_amp'](cfg)
    assert cfg.optim_wrapper.type == AmpOptimWrapper.__name__


@pytest.mark.parametrize('wrap', ['ConcatDataset', 'RepeatDataset'])
def test_flips_reach_wrapped_data(wrap):
    cfg = tiny('mmseg')
    cfg.pop('tta_pipeline')
    inner = cfg.test_dataloader.dataset
    steps = copy.deepcopy(inner.pipeline)
    inner = dict(datasets=[inner, inner]) if wrap == 'ConcatDataset' else dict(dataset=inner)
    cfg.test_dataloader.dataset = dict(type=wrap, **inner)
    runpy.run_path(str(TOOLS / 'test.py'))['augment'](cfg)
    dataset = cfg.test_dataloader.dataset
    for one in dataset.get('datasets') or [dataset.dataset]:
        assert one.pipeline[:-1] == steps[:-1]
        assert one.pipeline[-1].type == 'TestTimeAug'


@pytest.mark.slow
def test_trains_with_a_hook_off_and_keys_of_the_runner(sample_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(sample_dir)
    argv = ['train.py', SEGMENTATION, '--work-dir', tmp_path / 'a b', '--cfg-options']
    argv += ['default_hooks.checkpoint=None', 'default_hooks.visualization=None']
    argv += ['find_unused_parameters=True', 'sync_bn=torch']
    argv += ['activation_checkpointing=[decode_head]', 'train_cfg.max_iters=1', 'val_cfg=None']
    argv += ['val_dataloader=None', 'val_evaluator=None', 'param_scheduler=None']
    argv += ['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    monkeypatch.setattr(sys, 'argv', list(map(str, argv)))
    runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')
    assert (tmp_path / 'a b' / f'{SEGMENTATION}.py').is_file()
    assert not list((tmp_path / 'a b').glob('iter_*.pth'))


# ---------------------------------------------------------------------------------- inference
@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('family', ['mmdet', 'mmseg'])
def test_images_are_read_as_the_test_data_says(family, channels, tmp_path):
    """The pipeline stands in the data loader alone, and the file has no classes."""
    cfg = tiny(family)
    cfg.pop('test_pipeline')
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[0.0], std=[9.0])
    cfg.model.data_preprocessor.bgr_to_rgb = False
    colours = 'grayscale' if channels == 1 else 'unchanged'
    first = dict(type=LoadImageFromFile, color_type=colours)
    cfg.test_dataloader.dataset.pipeline[0] = first
    pixels = np.arange(64 * 64 * channels, dtype=np.uint8).reshape(64, 64, channels)
    Image.fromarray(pixels.squeeze()).save(tmp_path / 'a.png')
    torch.save(dict(state_dict=build(cfg).state_dict()), tmp_path / 'a.pth')
    model, given = load_model(cfg, str(tmp_path / 'a.pth')), []
    model.backbone.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    infer(model, inference_pipeline(cfg), tmp_path / 'a.png')
    read = pixels if channels == 1 else pixels[..., [2, 1, 0, 3]]
    expected = torch.from_numpy(np.ascontiguousarray(read)).permute(2, 0, 1) / 9
    torch.testing.assert_close(given[0][0, :, :64, :64].cpu(), expected)
    assert model.dataset_meta['classes'] == cfg.metainfo.classes


@pytest.mark.parametrize(('channels', 'shown'), [(1, [0, 0, 0]), (4, [2, 1, 0])])
def test_the_training_images_of_other_channels_are_drawn(channels, shown):
    picture = runpy.run_path(str(TOOLS / 'browse_dataset.py'))['picture']
    image = torch.arange(channels * 6, dtype=torch.uint8).reshape(channels, 2, 3)
    np.testing.assert_array_equal(picture(image), image[shown].permute(1, 2, 0))


# ------------------------------------------------------------------------------------ weights
def detector(kind: str) -> nn.Module:
    cfg = tiny('mmdet')
    ordinary = cfg.model
    if kind == 'RPN':
        cfg.model = dict(ordinary, type='RPN')
        del cfg.model['roi_head']
    elif kind == 'SoftTeacher':
        cfg.model = dict(
            type=kind,
            detector=ordinary,
            data_preprocessor=dict(
                type='MultiBranchDataPreprocessor', data_preprocessor=ordinary.data_preprocessor
            ),
            semi_train_cfg=dict(freeze_teacher=True),
            semi_test_cfg=dict(predict_on='teacher'),
        )
    return build(cfg)


@pytest.mark.parametrize(
    ('given', 'started', 'new'),
    [
        ('MaskRCNN', 'SoftTeacher', None),
        ('MaskRCNN', 'RPN', None),
        ('RPN', 'MaskRCNN', 'roi_head.'),
    ],
)
def test_weights_that_mmdet_renames_while_loading(given, started, new):
    model, state = detector(started), detector(given).state_dict()
    report = check_heads(model, state, complete=new is None)
    heads = [key for key in model.state_dict() if 'backbone.' not in key]
    missing = [key for key in heads if new and key.startswith(new)]
    assert (report.missing, report.mismatched) == (missing, [])
    assert len(report.matched) == len(heads) - len(missing) > 0


@pytest.mark.parametrize(
    'change',
    [
        lambda layer: prune.l1_unstructured(layer, 'weight', 0.5),
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
    ids=['pruned', 'weight', 'spectral', 'weight, parametrised', 'spectral, parametrised'],
)
def test_layers_with_changed_weights_are_saved_and_loaded(change):
    nets = ConvNeur(ARCH).eval(), ConvNeur(ARCH).eval()
    for net in nets:
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.3)  # no norm of zeros
                change(layer)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = nets[0](x)
        nets[1].load_state_dict(nets[0].state_dict())
        for a, e in zip(nets[1](x), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------- what is installed
@pytest.mark.parametrize(
    ('absent', 'command'),
    [('yapf', 'pip install yapf'), ('cv2', 'pip install opencv-python-headless')],
)
def test_a_failed_import_is_not_blamed_on_operators(absent, command, monkeypatch):
    def fail(name: str) -> None:
        if name == 'mmcv':
            raise ModuleNotFoundError(f'No module named {absent!r}', name=absent)

    monkeypatch.setattr(environment, 'import_module', fail)
    report = environment.examine()
    assert report.case == 'import fails' and report.cure.endswith(command)


def test_the_study_names_scikit_image_where_it_is_absent(monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'sample_data']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'skimage', None)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOLS / 'compare_mixers.py'))
    assert (
        stopped.value.code.startswith('error: ')
        and 'pip install scikit-image' in stopped.value.code
    )


@pytest.mark.parametrize('dists', [ONEDL, OPENMMLAB], ids=['onedl', 'openmmlab'])
@pytest.mark.parametrize(('config', 'absent'), [(DETECTION, 'mmdet'), (SEGMENTATION, 'mmseg')])
def test_what_is_not_installed_is_named_in_the_family_of_the_rest(
    config, absent, dists, tmp_path, monkeypatch, capsys
):
    (wanted,) = (dist for dist in dists if IMPORT_NAME[dist] == absent)
    install_all(tmp_path, tuple(dist for dist in dists if dist != wanted))
    found = environment.installed([str(tmp_path)])
    monkeypatch.setattr(configs, 'installed', lambda paths: found)
    monkeypatch.setitem(sys.modules, absent, None)
    message = failing(monkeypatch, capsys, 'train', config)
    assert f'{absent} is not installed: python -m pip install "{wanted}>=' in message


@pytest.mark.parametrize('group', GROUPS)
def test_the_first_random_cases(group):
    assert not [problem for seed in range(5) if (problem := failure(group, seed))]
