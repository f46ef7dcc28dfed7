"""A global branch from its config, its shape proven before it is used."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.func import functional_call

from ...errors import UsageError, check_choice
from ...registry import MIXERS

HEIGHT, WIDTH = 11, 13
# The values decide on the shapes, or the operator has no rule for them: nothing can be said.
UNDECIDABLE = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)


def build_mixer(cfg: dict, dim: int) -> nn.Module:
    """A global branch for ``dim`` channels from its config; short names and scoped names work.

    Raises:
        UsageError: For an unknown name or option, or a mixer that changes the shape of a map.
    """
    if not isinstance(cfg, dict) or not cfg.get('type'):
        raise UsageError(f"global_mixer={cfg!r}: give a config, dict(type='NeuralMemory')")
    cfg = dict(cfg)
    name = cfg.pop('type')
    mixer = MIXERS.get(name) if isinstance(name, str) else name
    if not callable(mixer):
        check_choice('global mixer', name, sorted(MIXERS.module_dict))
    unknown = set(cfg) - set(inspect.signature(mixer).parameters)
    if unknown:
        valid = ', '.join(list(inspect.signature(mixer).parameters)[1:])
        named = ', '.join(sorted(map(str, unknown)))
        raise UsageError(f'{name} has no option {named}: it takes {valid}')
    try:
        mixer = mixer(dim, **cfg)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f'global mixer {name} cannot be built from {cfg}: {error}') from error
    check_contract(mixer, dim, cfg)
    return mixer


def check_contract(mixer: nn.Module, dim: int, options: dict) -> None:
    """Raise ``UsageError`` unless a mixer of these options maps ``(1, dim, 11, 13)`` to this shape.

    PyTorch's fake tensors take the place of input, parameters and buffers: shapes are found but
    nothing is computed, so that it costs milliseconds and leaves the mixer, also one on the meta
    device, and the random state as they were.
    """
    name, shape = type(mixer).__name__, (1, dim, HEIGHT, WIDTH)
    state = [*mixer.named_parameters(), *mixer.named_buffers()]
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            fake = {k: torch.empty(v.shape, dtype=v.dtype, device='cpu') for k, v in state}
            out = functional_call(mixer, fake, torch.empty(shape, device='cpu'))
    except UNDECIDABLE:
        return
    except UsageError:
        raise
    except Exception as error:
        reason = str(error).splitlines() or [type(error).__name__]
        given = f' with {options}' if options else ''
        raise UsageError(
            f'global mixer {name}{given} fails on a map of {shape}: {reason[0]}; it must map '
            '(B, C, H, W) to the same shape, for any H and W'
        ) from error
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if found != shape:
        raise UsageError(
            f'global mixer {name} maps {shape} to {found}: it must map (B, C, H, W) to the same '
            'shape'
        )
