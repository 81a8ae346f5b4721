"""Errors that are shown to the user as one line, and the nearest name for a misspelt one."""

import dis
import re
import sysconfig
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib"))


class UserError(Exception):
    """An error the user can mend; ``train.py`` prints it as one line and exits with status 1."""


class DamagedFile(UserError):
    """A file of a run that is not what was written: cut short, altered, or of another version."""


class Misfit(UserError):
    """A checkpoint is whole, but the parts of this run cannot load it."""


PREEMPTED = 75
"""Exit status of a run that was stopped and can be resumed: EX_TEMPFAIL of sysexits.h."""


class Preempted(KeyboardInterrupt):
    """A signal ended a run, which saved its work; the same command resumes it."""


def did_you_mean(name: object, choices: Iterable[object]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``name``, else an empty string."""
    known = {str(choice).lower(): str(choice) for choice in choices}
    nearest = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f"; did you mean '{known[nearest[0]]}'?" if nearest else ""


def override(key: str, value: object) -> str:
    """``key=value`` for Hydra's parser, quoted if necessary; a shell needs its own quotes."""
    text = str(value)
    if not re.fullmatch("[A-Za-z0-9_./-]+", text):
        text = re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + (end[2] and '\\"'), text)
        text = f'"{text}"'
    return f"{key}={text}"


def message_of(error: BaseException) -> str:
    """The message of an error in one line, or its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, ..."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_deliberate(error: BaseException) -> bool:
    """Whether a ``raise`` statement raised the error, not an operation that failed."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def is_ours(error: BaseException) -> bool:
    """Whether this project, or a library that it called, raised the error, not a user's code."""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    paths = [Path(file).resolve() for file in files if not file.startswith("<")]
    own = [path for path in paths if not any(map(path.is_relative_to, LIBRARIES))]
    return not own or own[-1].is_relative_to(PACKAGE)
