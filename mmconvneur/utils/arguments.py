"""Arguments of the command-line tools, and errors in one line."""

from __future__ import annotations

import argparse
import ast
import errno
import functools
import pickle
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mmengine.config import DictAction
from mmengine.registry import build_from_cfg

from ..errors import UsageError, UsageErrors
from .environment import install
from .flat import literal
from .widths import width_problem

BLANK = '\ue000'  # of the private use area: no option has it
FOR_THE_USER = {  # what a user can do something about
    getattr(errno, name)
    for name in 'ENOENT EACCES EPERM ENOSPC EDQUOT EROFS ENOTDIR EISDIR EEXIST ENAMETOOLONG'.split()
    if hasattr(errno, name)
}


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Print a user's mistake in one line on stderr and exit with status 1, without a traceback."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except Exception as error:
            message = usage_message(error)
            if message is None:
                raise
            for line in error.messages if isinstance(error, UsageErrors) else [message]:
                print('error:', ' '.join(line.split()), file=sys.stderr)
            sys.exit(1)

    return run


def usage_message(error: BaseException | None) -> str | None:
    """The innermost error of a chain that the user can fix, as text; ``None`` if there is none."""
    message, outermost = None, error
    if isinstance(error, ModuleNotFoundError) and error.name:
        message = f'{error}: {install(error.name)}'
    while error is not None:
        if isinstance(error, UsageError):
            # PyTorch puts the traceback of a worker process in front of its message.
            message = str(error).rpartition('UsageError: ')[2]
        elif isinstance(error, (KeyError, TypeError)) and raised_by_registry(error):
            message = f'{error.args[0]}: check the spelling of this type or option in the config'
            if 'unexpected keyword' in message:
                message += ', or put _delete_=True beside type to drop the options of another type'
        elif isinstance(error, pickle.UnpicklingError) and message is None:
            message = (
                'a checkpoint holds more than tensors, and reading that can run any code: '
                'if you trust its source, add --trust-checkpoint'
            )
        elif isinstance(error, OSError) and error.errno in FOR_THE_USER:
            where = error.filename or 'a file'
            message = f'{where}: {error.strerror}'
        elif isinstance(error, RuntimeError) and (problem := width_problem(error)):
            message = f'{problem}: change one of them'
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return message or (None if outermost is None else unbuilt(outermost))


def raised_by_registry(error: BaseException) -> bool:
    """Whether MMEngine knew no such type, or could not call it with such options."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals['__name__'].startswith('mmengine.registry')


def unbuilt(error: BaseException) -> str | None:
    """What MMEngine was building from a config when an error came, its options, and where."""
    calls = list(traceback.walk_tb(error.__traceback__))
    builds = [frame for frame, _ in calls if frame.f_code is build_from_cfg.__code__]
    if not builds or 'obj_cls' not in (found := builds[-1].f_locals):
        return None
    name = getattr(found['obj_cls'], '__name__', found['obj_cls'])
    given = {k: str(v) for k, v in found['args'].items() if not holds_more(v)}
    options = ', '.join(f'{key}={value[:80]}' for key, value in given.items())
    frame, line = calls[-1]
    place = f'{Path(frame.f_code.co_filename).name}, line {line}'
    reason = f'{type(error).__name__}: {error}'
    return f'{name} cannot be built with {options or "its defaults"}: {reason} ({place})'


def holds_more(value: object) -> bool:
    """Whether an option is a part of its own, or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return not all(isinstance(v, (str, int, float, list, tuple, type(None))) for v in values)


def common_parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every tool that runs a model."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    add_trust(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torchrun sets LOCAL_RANK; the older torch.distributed.launch passes an argument instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The way out for files that cannot be read safely, for every tool that reads any."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold more than weights; they can then run any code',
    )


def config_parser(description: str) -> argparse.ArgumentParser:
    """Arguments of every tool that reads a config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='path of a config, or the name of a shipped one')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        help='settings that override those of the config: key=value ...',
    )
    return parser


class OptionsAction(DictAction):
    """MMEngine's action, which also takes ``dict(...)`` and ``{...}``, alone and in lists.

    Blanks inside of values stay: paths and class names have them.
    """

    @staticmethod
    def _parse_iterable(val: str) -> object:
        if 'dict(' not in val and '{' not in val:
            # Only the blanks around the entries of a list are to go.
            entries = re.sub(r'(?<=[\[(,]) +| +(?=[\]),])', '', val)
            return _with_blanks(DictAction._parse_iterable(entries.replace(' ', BLANK)))
        try:
            return literal(ast.parse(val.strip(), mode='eval').body)
        except (SyntaxError, TypeError, ValueError):
            raise UsageError(
                f'--cfg-options ...={val} is no Python value: put the whole option in double '
                'quotes and strings in single ones'
            ) from None


def _with_blanks(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_blanks, value))
    return value.replace(BLANK, ' ') if isinstance(value, str) else value


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    try:
        return parser.parse_args()
    except UsageError:
        raise
    except ValueError:  # from DictAction
        raise UsageError('--cfg-options takes pairs of the form key=value') from None
