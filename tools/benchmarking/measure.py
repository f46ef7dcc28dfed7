"""Costs of a step: multiplications and memory; ``mmconvneur.utils.timing`` has the time.

A step is a function without arguments that runs a network once.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.profiler._utils import traverse_dfs
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from mmconvneur.utils.timing import Step, synchronize

aten = torch.ops.aten


def _attention(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _convolution_backward(gradient, x, weight, *args, **_) -> int:
    # As often as its forward pass for the gradient of the input, and again for the weight's.
    *_, transposed, _, _, needed = args
    return conv_flop_count(x, weight, gradient, transposed) * sum(needed[:2])


# Torch's counter leaves out the CPU's attention kernels, and counts the weight's gradient of a
# depthwise convolution as if it were a full one.
FORMULAS = {
    aten.convolution_backward: _convolution_backward,
}
if hasattr(aten, '_scaled_dot_product_flash_attention_for_cpu'):
    FORMULAS |= {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }


def count_macs(step: Step) -> int:
    """Multiply-accumulates of the convolutions, matrix products and attentions that a step runs.

    They are counted as they are executed, so the inner step of a memory is in. Elementwise
    products, norms, activations and interpolations are not.
    """
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        step()
    return counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes that a step holds at its peak on top of what is held before: weights and input.

    On a GPU from the statistics of torch's allocator, on a CPU from every allocation and release
    of a tensor that the profiler saw. The high-water mark of the process would say less: freed
    pages stay with it, so it depends on what ran before. Scratch space that a library takes
    without torch is not seen.
    """
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.experimental_event_tree()
    changes = [e for e in traverse_dfs(events) if e.tag == _EventType.Allocation]
    changes.sort(key=lambda e: e.start_time_ns)
    return max(accumulate((e.extra_fields.alloc_size for e in changes), initial=0))


def count_kernels(step: Step, device: torch.device) -> int | None:
    """Kernels that a step starts on a GPU, copies included; None on a CPU."""
    if device.type != 'cuda':
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    events = profiler.profiler.kineto_results.events()
    return sum(event.device_type() == torch.autograd.DeviceType.CUDA for event in events)


def record(step: Step) -> Step:
    """The kernels of a step as a CUDA graph: replayed, they do not wait for Python.

    A replay reads weights and images where they were, so it holds on to the step that owns them.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # handles and workspaces are made on the stream of the capture
        step(), step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay(owner: Step = step) -> None:
        graph.replay()

    return replay
