"""The one promise of a mixer that can be checked before it is used: its shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.func import functional_call

from ..errors import UsageError

HEIGHT, WIDTH = 11, 13
# The values decide on the shapes, or the operator has no rule for them: nothing can be said.
UNDECIDABLE = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)


def check_contract(mixer: nn.Module, dim: int) -> None:
    """Raise ``UsageError`` unless a mixer maps ``(1, dim, 11, 13)`` to the same shape.

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
        raise UsageError(
            f'global mixer {name} fails on a map of {shape}: {reason[0]}; it must map '
            '(B, C, H, W) to the same shape, for any H and W'
        ) from error
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if found != shape:
        raise UsageError(
            f'global mixer {name} maps {shape} to {found}: it must map (B, C, H, W) to the same '
            'shape'
        )
