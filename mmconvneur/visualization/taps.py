"""Tap points: forward hooks that read tensors of a backbone while it runs as usual.

=================================  ============================================
tap point                          what passes there
=================================  ============================================
``ConvNeurBlock.fusion``, inputs   F_loc and the global context G, (B, C, H, W)
``NeuralMemory``, inputs           x, and the mask of valid pixels, (B, 1, H, W)
``NeuralMemory.norm``, outputs     the tokens z, (B, C_m, H, W)
``<any>.affinity``, output         logits of slots and pixels, (B, S, N)
=================================  ============================================

Any module with a submodule ``affinity`` whose first input is a map (B, C, H, W) has slots.

Dimension key: B images, of which the first is kept; N = H W tokens; C channels of the block, C_m of
the memory; S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..models.layers.block import ConvNeurBlock
from ..models.mixers.neural_memory import NeuralMemory


class FusionTap(NamedTuple):
    """A fusion and the global context ``(C, H, W)`` that entered it."""

    fusion: nn.Module
    context: Tensor


class MemoryTap(NamedTuple):
    """A memory, its tokens ``(C_m, H, W)`` and which of them are valid, ``(H, W)``: 1 or 0."""

    memory: NeuralMemory
    tokens: Tensor
    valid: Tensor


class Taps(NamedTuple):
    """Tensors at the tap points, by the name of the module; slots are logits ``(S, H, W)``."""

    fusions: dict[str, FusionTap]
    memories: dict[str, MemoryTap]
    slots: dict[str, Tensor]


@contextmanager
def capture(model: nn.Module) -> Iterator[Taps]:
    """The :class:`Taps` of the forward passes inside the context; a later pass replaces an earlier.

    Only forward hooks are used and then removed, so outputs stay the same to the bit.
    """
    taps = Taps({}, {}, {})
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            for hook in _listen(taps, name, module):
                hooks.enter_context(hook)
        yield taps


def _listen(taps: Taps, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
    def keep_context(fusion: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        taps.fusions[name] = FusionTap(fusion, _first(inputs[1]))

    def keep_tokens(
        memory: NeuralMemory, tokens: Tensor, x: Tensor, mask: Tensor | None = None
    ) -> None:
        valid = tokens.new_ones(tokens.shape[1:]) if mask is None else _first(mask)[0]
        taps.memories[name] = MemoryTap(memory, tokens, valid)

    def keep_logits(
        module: nn.Module, logits: Tensor, x: Tensor, *others: Tensor | None, **named: object
    ) -> None:
        taps.slots[name] = logits.unflatten(1, x.shape[-2:])

    if isinstance(module, ConvNeurBlock):
        yield module.fusion.register_forward_pre_hook(keep_context)
    if isinstance(module, NeuralMemory):
        yield from _listen_inside(module, module.norm, keep_tokens)
    affinity = getattr(module, 'affinity', None)
    if isinstance(affinity, nn.Module):
        yield from _listen_inside(module, affinity, keep_logits)


def _listen_inside(
    module: nn.Module, part: nn.Module, keep: Callable[..., None]
) -> Iterator[RemovableHandle]:
    """After each pass of ``module``: keep(module, output of its part, *its inputs)."""
    heard: dict[str, Tensor] = {}
    yield part.register_forward_hook(
        lambda part, inputs, output: heard.update(output=_first(output))
    )
    yield module.register_forward_hook(
        lambda module, inputs, named, _: keep(module, heard.pop('output'), *inputs, **named),
        with_kwargs=True,
    )


def _first(x: Tensor) -> Tensor:
    """Of a batch, and a copy: a module may go on to write into its tensors."""
    return x[0].detach().clone()
