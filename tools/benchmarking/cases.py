"""One race: backbones at one size, batch size and dtype, in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mmconvneur.errors import UsageError, check_choice
from mmconvneur.utils.timing import Spread, Step, race, ratios, seconds

from .backbones import build, configure
from .measure import count_kernels, count_macs, peak_memory, record

MEMORY_FORMATS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
EXECUTIONS = {  # mode of torch.compile
    'eager': None,
    'cudagraphs': None,  # the eager kernels, recorded once and replayed
    'compiled': 'default',
    'reduce-overhead': 'reduce-overhead',  # compiled and replayed
}
NEED_GPU = ('cudagraphs', 'reduce-overhead')
MODES = ('forward', 'train')
# (weights and input, autocast)
DTYPES = {
    'float32': (torch.float32, None),  # without TF32
    'tf32': (torch.float32, None),  # of a GPU
    'bfloat16': (torch.bfloat16, None),
    'float16': (torch.float16, None),
    'amp': (torch.float32, torch.bfloat16),
}
WARM_UPS = 5  # untimed runs: one is counted, two compile, two are profiled
MATMUL_SIZES = dict(cpu=2048, cuda=8192)
MATMUL = 'matmul'


class Case(NamedTuple):
    height: int
    width: int
    batch_size: int
    dtype: str
    mode: str

    @property
    def pixels(self) -> int:
        return self.batch_size * self.height * self.width

    def __str__(self) -> str:
        return f'{self.batch_size} x {self.height}x{self.width}, {self.dtype}, {self.mode}'


class Contestant(NamedTuple):
    label: str
    config: dict
    layout: str
    execution: str


def parse_contestant(label: str, layout: str, execution: str) -> Contestant:
    """The contestant of ``NAME[:OPTION,...][@SETTING,...]``.

    A setting is a layout or a way of execution that differs from the one given for all.

    Raises:
        UsageError: For an unknown name, option or setting.
    """
    what, _, settings = label.partition('@')
    for setting in filter(None, settings.split(',')):
        check_choice('setting', setting, (*MEMORY_FORMATS, *EXECUTIONS))
        if setting in MEMORY_FORMATS:
            layout = setting
        else:
            execution = setting
    return Contestant(label, configure(what), layout, execution)


def run_case(
    case: Case,
    contestants: Sequence[Contestant],
    baseline: str,
    rounds: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda runs: None,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Race the contestants and return one row for each that runs.

    Times are divided by those of the ``baseline``, a label. ``advance`` is called with the number
    of runs that are done, ``report`` with one line for each contestant that does not run.

    Raises:
        UsageError: If the baseline does not run.
    """
    steps, rows = {}, {}
    tf32 = case.dtype == 'tf32'
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    for contestant in contestants:
        label = contestant.label
        try:
            steps[label], rows[label] = prepare(contestant, case, device)
        except UsageError:
            raise
        except Exception as error:  # an absent package, too little memory, a dtype it cannot take
            reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
            if label == baseline:
                raise UsageError(
                    f'the baseline {label} does not run at {case} ({reason}): '
                    'choose another --baseline'
                ) from error
            report(f'{label} is left out at {case}: {reason}')
            advance(WARM_UPS + rounds)
        else:
            advance(WARM_UPS)

    def clock(step: Step) -> float:
        advance(1)
        return seconds(step, device)

    size = MATMUL_SIZES[device.type]
    dtype, autocast = DTYPES[case.dtype]
    steps[MATMUL] = matmul(size, autocast or dtype, device)
    times = race(steps, rounds, clock)
    torch.compiler.reset()  # what it compiles per size is limited, and would stay
    for label, row in rows.items():
        rate = [row['macs'] * case.batch_size / t for t in times[label]]
        peak = [size**3 / t for t in times[MATMUL]]
        spreads = dict(
            time_ms=Spread.of([1e3 * t for t in times[label]]),
            ratio=Spread.of(ratios(times[label], times[baseline])),
            peak_fraction=Spread.of(ratios(rate, peak)),
        )
        for name, spread in spreads.items():
            row |= {name: spread.median, f'{name}_q1': spread.q1, f'{name}_q3': spread.q3}
        row['times_ms'] = [1e3 * t for t in times[label]]
    return list(rows.values())


def prepare(contestant: Contestant, case: Case, device: torch.device) -> tuple[Step, dict]:
    """A step that is warmed up, and the row of what it costs apart from time."""
    execution = contestant.execution
    if execution in NEED_GPU and device.type != 'cuda':
        raise UsageError(f'{contestant.label}: {execution} needs a GPU; choose eager or compiled')
    dtype, _ = DTYPES[case.dtype]
    torch.manual_seed(0)
    placement = dict(dtype=dtype, memory_format=MEMORY_FORMATS[contestant.layout])
    with device:
        model = build(contestant.config).to(**placement)
        image = torch.randn(case.batch_size, 3, case.height, case.width).to(**placement)
    model.train(case.mode == 'train')
    macs = count_macs(make_step(model, image, case))
    mode = EXECUTIONS[execution]
    run = torch.compile(model, dynamic=False, mode=mode) if mode else model
    step = make_step(run, image, case)
    step(), step()
    row = dict(
        backbone=contestant.label,
        **case._asdict(),
        layout=contestant.layout,
        execution=execution,
        params=sum(p.numel() for p in model.parameters()),
        macs=macs // case.batch_size,
        # CUDA graphs hold their memory between steps, where it cannot be told from the weights.
        memory_bytes=None if mode == 'reduce-overhead' else peak_memory(step, device),
        kernels=count_kernels(step, device),
    )
    return record(step) if execution == 'cudagraphs' else step, row


def make_step(model: torch.nn.Module, image: torch.Tensor, case: Case) -> Step:
    """A forward pass without gradients, or a forward and backward pass without the optimizer.

    The backward pass starts from given gradients of the four maps, as a neck would send them. Maps
    behind which nothing learns have none.
    """
    _, autocast = DTYPES[case.dtype]

    def forward() -> Sequence[torch.Tensor]:
        with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
            return model(image)

    def forward_without_gradients() -> None:
        with torch.no_grad():
            forward()

    def train() -> None:
        maps = forward()
        learning = [i for i, x in enumerate(maps) if x.requires_grad]
        torch.autograd.backward([maps[i] for i in learning], [gradients[i] for i in learning])
        model.zero_grad(set_to_none=True)

    if case.mode == 'forward':
        return forward_without_gradients
    gradients = [torch.randn_like(m) for m in forward()]
    return train


def matmul(size: int, dtype: torch.dtype, device: torch.device) -> Step:
    """A product of two square matrices, large enough for the machine's best rate."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    return lambda: left @ right
