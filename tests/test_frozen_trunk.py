"""Global branches that learn on a frozen ConvNeXt, and checkpoints without it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from steps import two_iterations, wake_memory
from test_weights import ARCH, CHANNELS, counts, logged
from test_weights import source as source  # a fixture
from torch import Tensor, nn

from mmconvneur import ConvNeur, UsageError
from mmconvneur.engine.hooks import LearnedPartHook
from mmconvneur.weights import read_checkpoint, recognise
from mmconvneur.weights.trunk import fingerprint, put_back, trunk_of

IN_TRUNK = re.compile(r'downsample_layers|local_branch')


def frozen(**options) -> ConvNeur:
    torch.manual_seed(0)
    backbone = ConvNeur(ARCH, frozen_trunk=True, drop_path_rate=0.5, **options)
    backbone.init_weights()
    wake_memory(backbone)
    return backbone


def image() -> Tensor:
    return torch.randn(2, 3, 67, 101, generator=torch.Generator().manual_seed(1))


def saved_floats(block: nn.Module, x: Tensor) -> int:
    """What a forward pass keeps for the backward pass, apart from parameters."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = block(x)
    for parameter in block.parameters():
        kept.pop(parameter.data_ptr(), None)
    del y
    return sum(kept.values())


def test_only_what_a_convnext_has_not_learns():
    backbone = frozen().train().eval().train()
    sum(x.square().mean() for x in backbone(image())).backward()
    for name, parameter in backbone.named_parameters():
        learns = not IN_TRUNK.match(name) and '.local_branch.' not in name
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None) == learns, name
        assert not learns or parameter.grad.abs().sum() > 0, name
    gradients = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}

    free = ConvNeur(ARCH)
    free.load_state_dict(backbone.state_dict())
    sum(x.square().mean() for x in free.train()(image())).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, free.get_parameter(name).grad, rtol=1e-5, atol=1e-7)


def test_the_trunk_is_as_in_evaluation_while_training():
    backbone = frozen().train()
    modes = {name: module.training for name, module in backbone.named_modules()}
    for name, training in modes.items():
        if re.search(r'downsample_layers|local_branch|drop_path', name):
            assert not training, name
        if 'global_branch' in name or name.startswith('norm'):
            assert training, name
    with torch.no_grad():
        training, evaluation = backbone(image()), backbone.eval()(image())
    for ours, theirs in zip(training, evaluation, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_nothing_is_kept_below_the_first_memory_and_half_above_it():
    backbone = frozen(placement=[2])
    seen = {}
    for i, stage in enumerate(backbone.stages):
        stage.register_forward_hook(lambda _, __, x, i=i: seen.update({i: x.requires_grad}))
    backbone(image())
    assert seen == {0: False, 1: False, 2: True, 3: True}

    dim, positions = CHANNELS[2], 5 * 7
    x = torch.randn(1, dim, 5, 7, requires_grad=True)
    x = x.contiguous(memory_format=torch.channels_last)
    statistics = 2 * positions  # of the norm
    # PyTorch keeps what goes into a convolution whether its weight learns or not; then what goes
    # into the norm and, four times as wide, into the GELU.
    kept = (1 + 1 + 4) * dim * positions + statistics
    assert saved_floats(backbone.stages[2][1], x) == kept
    # With weights that learn, what goes into both matrices and what the layer scale multiplies.
    kept += (1 + 4 + 1) * dim * positions
    assert saved_floats(ConvNeur(ARCH).stages[2][1], x) == kept


def test_frozen_stages_freeze_their_memories_too():
    backbone = frozen(frozen_stages=1)
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('stages.0', 'norm0')) for name in names)
    assert any(name.startswith('stages.1.0.global_branch') for name in names)


def test_optimizers_get_what_learns():
    model = nn.ModuleDict(dict(backbone=frozen(), head=nn.Linear(3, 5)))
    for constructor in (
        dict(constructor='DefaultOptimWrapperConstructor'),
        dict(
            constructor='mmconvneur.LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9),
        ),
    ):
        adamw = dict(type='AdamW', lr=0.1, weight_decay=0.05)
        wrapper = build_optim_wrapper(model, dict(optimizer=adamw, **constructor))
        before = {name: p.clone() for name, p in model.named_parameters()}
        maps = model.backbone(image())
        wrapper.update_params(sum(x.square().mean() for x in maps) + model.head.weight.sum())
        learning = [p for p in model.backbone.parameters() if p.requires_grad]
        assert len(wrapper.optimizer.state) == len(learning) + 1
        for name, parameter in model.backbone.named_parameters():
            stayed = torch.equal(before[f'backbone.{name}'], parameter)
            assert stayed != parameter.requires_grad, name


# ------------------------------------------------------------------- checkpoints without the trunk
@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('training')


@pytest.fixture(scope='module')
def training(source, sample_dir, folder) -> Config:
    """A training on the trunk of ``trunk.pth``, with moving averages."""
    torch.save(source.state_dict(), folder / 'trunk.pth')
    cfg = two_iterations(folder, **ARCH)
    cfg.model.backbone.update(
        frozen_trunk=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(folder / 'trunk.pth')),
    )
    cfg.train_dataloader.dataset.data_root = str(sample_dir / 'data' / 'sample')
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.custom_hooks = [
        dict(type='mmconvneur.LearnedPartHook'),
        dict(type='EMAHook', momentum=0.5),
    ]
    cfg.experiment_name = 'first'
    return cfg


@pytest.fixture(scope='module')
def trained(training) -> nn.Module:
    """The model at the end of the training, whose checkpoint is ``iter_2.pth``."""
    runner = Runner.from_cfg(training)
    runner.train()
    return runner.model


def built(cfg: Config, **init_cfg) -> nn.Module:
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', **init_cfg) if init_cfg else None
    init_default_scope('mmseg')
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('state', ['state_dict', 'ema_state_dict'])
def test_checkpoints_hold_the_learned_part_and_name_the_trunk(state, trained, folder):
    start = 'backbone' if state == 'state_dict' else 'module.backbone'
    tensors = read_checkpoint(folder / 'iter_2.pth')[state]
    held = {key.removeprefix('module.') for key in tensors} - {'steps'}
    assert held == {
        key for key in trained.state_dict() if not re.search(r'\.(local_branch|downsample)', key)
    }
    trunk = tensors._metadata[start]['trunk']
    assert trunk['checkpoint'] == str(folder / 'trunk.pth')
    assert re.fullmatch('[0-9a-f]{64}', trunk['sha256'])


@pytest.mark.parametrize('start', ['nothing', 'the trunk', 'no init_cfg'])
def test_a_learned_part_is_completed_in_every_model(start, training, trained, folder):
    trunk, learned = folder / 'trunk.pth', folder / 'iter_2.pth'
    # MMDetection and MMSegmentation drop init_cfg where they build a model for inference.
    model = built(training, **({} if start == 'no init_cfg' else dict(checkpoint=str(trunk))))
    if start == 'the trunk':
        model.init_weights()
    with logged() as lines:
        load_checkpoint(model, str(learned))
    assert f'ConvNeur from ConvNeur (its learned part) and the trunk of {trunk} (' in lines[-1]
    assert counts(lines[-1])[1:] == [0, 0, 0, 0, 0]
    held = read_checkpoint(learned)['state_dict']
    for name, value in model.state_dict().items():
        assert torch.equal(value, held.get(name, trained.state_dict()[name])), name


def test_a_trunk_is_put_back(training, trained, folder):
    state = read_checkpoint(folder / 'iter_2.pth')['state_dict']
    whole = trained.state_dict() | state  # what learned is that of the moving average
    put_back(state, built(training, checkpoint=str(folder / 'trunk.pth')))
    assert state.keys() == whole.keys() and 'trunk' not in state._metadata['backbone']
    for name, value in whole.items():
        assert torch.equal(state[name], value), name


def test_a_training_continues_from_its_learned_part(training, trained, folder):
    cfg = copy.deepcopy(training)
    cfg.update(load_from=str(folder / 'iter_2.pth'), resume=True, experiment_name='second')
    cfg.work_dir = str(folder / 'second')
    cfg.train_cfg.max_iters = 3
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 3
    (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    wanted = fingerprint(trunk_of(trained.backbone.state_dict()))
    for model in (runner.model, ema.ema_model.module):
        assert fingerprint(trunk_of(model.backbone.state_dict())) == wanted


def refused(message: str, training: Config, learned: dict, **init_cfg) -> None:
    model = built(training, **init_cfg)
    with pytest.raises(UsageError, match=message) as error:
        model.load_state_dict(learned)
    assert '\n' not in str(error.value)


def test_a_learned_part_is_refused_without_its_trunk_or_with_another(
    training, trained, folder, tmp_path
):
    trunk, learned = folder / 'trunk.pth', read_checkpoint(folder / 'iter_2.pth')['state_dict']
    other, lost = tmp_path / 'other.pth', tmp_path / 'lost.pth'
    torch.save({key: value + 1 for key, value in torch.load(trunk).items()}, other)
    another = rf'{other} is not the trunk .*, {trunk} .*: give that'
    refused(another, training, learned, checkpoint=str(other))
    cannot = rf'its trunk cannot be read: checkpoint {lost} does not exist'
    refused(cannot, training, learned, checkpoint=str(lost))
    learned._metadata['backbone']['trunk']['checkpoint'] = str(lost)
    refused(cannot, training, learned)
    nameless = 'learned part of a ConvNeur without saying which'
    refused(nameless, training, dict(learned))
    with pytest.raises(UsageError, match=nameless):
        recognise(learned)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'no frozen trunk to leave out: set .*frozen_trunk=True'),
        (dict(frozen_trunk=True), 'does not come from a file, .*: set model.backbone.init_cfg='),
    ],
)
def test_a_trunk_that_no_file_could_give_back_is_not_left_out(options, message):
    runner = SimpleNamespace(model=nn.ModuleDict(dict(backbone=ConvNeur(ARCH, **options))))
    with pytest.raises(UsageError, match=message):
        LearnedPartHook().before_train(runner)
