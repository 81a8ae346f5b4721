"""One call in a fresh process: ``python -m research.process``, pinned and never orphaned.

The callable is passed by cloudpickle in a file without a name, and its result in another, so that
nothing is unpickled from a folder that others could write to.
"""

import ctypes
import errno
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn

import cloudpickle

from research.signals import OF_A_RUN, ignore

ROOT = Path(__file__).parents[1]
PR_SET_PDEATHSIG = 1
ALWAYS = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}  # the log of a killed job is complete


class Call(NamedTuple):
    """A pickled callable without arguments, and what its process needs to import it.

    Attributes:
        pickled: the callable.
        path: ``sys.path``.
        argv: ``sys.argv``.

    """

    pickled: bytes
    path: Sequence[str]
    argv: Sequence[str]


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        status: its exit status, or minus the number of the signal that ended it.
        result: the callable's result; None if it did not return.
        error: one line on the exception that it raised, or on a missing result; None otherwise.

    """

    status: int
    result: Any
    error: str | None


class Process:
    """A process that makes one call, as leader of its own session.

    Args:
        call: the call, from ``make_call``.
        log: the file descriptor for all that it prints.
        out: the file descriptor for standard output, if it is another.
        environ: its environment.
        cpus: the CPUs it is pinned to; empty leaves it unpinned.
        obeys: whether signals that ask a run to end interrupt it; otherwise it ignores them.

    """

    def __init__(
        self,
        call: Call,
        *,
        log: int,
        environ: Mapping[str, str],
        out: int | None = None,
        cpus: Sequence[int] = (),
        obeys: bool = True,
    ) -> None:
        self.result_file = tempfile.TemporaryFile()  # noqa: SIM115  until ending() closes it
        header = {"cpus": cpus, "parent": os.getpid(), "path": call.path, "argv": call.argv}
        header |= {"folder": os.getcwd(), "obeys": obeys}
        root = str(find_root(call.path))
        search_path = os.pathsep.join([root, *filter(None, [environ.get("PYTHONPATH")])])
        try:
            with tempfile.TemporaryFile() as call_file:
                call_file.write(json.dumps(header).encode() + b"\n" + call.pickled)
                call_file.seek(0)
                files = (call_file.fileno(), self.result_file.fileno())
                self.popen = subprocess.Popen(
                    [sys.executable, "-m", "research.process", *map(str, files)],
                    stdin=subprocess.DEVNULL,
                    stdout=log if out is None else out,
                    stderr=log,
                    env={**environ, "PYTHONPATH": search_path, **ALWAYS},
                    pass_fds=files,
                    start_new_session=True,
                    cwd=root,  # Python imports from the folder it starts in, before all others
                )
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a file does not know its folder
                error.filename = tempfile.gettempdir()
            raise
        self.pid = self.popen.pid
        self.started = time.monotonic()

    def has_ended(self) -> bool:
        """Whether the process has ended; if so, the rest of its process group is killed.

        It is reaped only after that, so that its PID cannot have become another group's.
        """
        if self.popen.returncode is None:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.pid, options) is None:
                return False
            self.kill()
            self.popen.wait()
        return True

    def stop(self) -> None:
        """Ask the process, but not its children, to end (SIGTERM)."""
        self.popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its process group."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
            os.killpg(self.pid, signal.SIGKILL)

    def ending(self) -> Ending:
        """How it ended; only after ``has_ended``."""
        with self.result_file as file:
            file.seek(0)
            try:
                result, error = pickle.load(file)
            except Exception:  # it was killed before, or while, it wrote
                result, error = None, "ended without a result"
        return Ending(self.popen.returncode, result, error)


def make_call(function: Callable[[], Any]) -> Call:
    """Pickle ``function`` for a process that imports from where this one does."""
    return Call(
        cloudpickle.dumps(function), [str(Path(entry).resolve()) for entry in sys.path], sys.argv
    )


def find_root(path: Sequence[str]) -> Path:
    """The folder that ``research`` is imported from: the first of ``path`` that holds it."""
    roots = (Path(entry) for entry in path)
    return next((root for root in roots if (root / "research/launchers").is_dir()), ROOT)


def main(call_file: int, result_file: int) -> NoReturn:
    """Make the call in ``call_file``, write its result, and exit with its status."""
    collect_seldom()
    with open(call_file, "rb") as file:
        header = json.loads(file.readline())
        die_with(header["parent"])
        ignore([signal.SIGUSR2] if header["obeys"] else OF_A_RUN)  # SLURM warns the pool by it
        for number in (signal.SIGTERM, signal.SIGUSR1) if header["obeys"] else ():
            signal.signal(number, interrupt)
        if header["cpus"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, header["cpus"])
        os.chdir(header["folder"])
        sys.path[:], sys.argv[:] = header["path"], header["argv"]
        call = pickle.load(file)
    status, answer = make(call)
    with open(result_file, "wb") as file:
        cloudpickle.dump(answer, file)
    sys.exit(status)


def collect_seldom() -> None:
    """Let Python look for cyclic garbage after 50,000 new objects instead of 700.

    Importing PyTorch makes a million that stay, and takes a fifth longer if the collector looks
    through them again and again.
    """
    gc.set_threshold(50_000, 20, 100)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Interrupt the call, but only once: SLURM repeats SIGTERM, and so does the pool."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def make(call: Callable[[], Any]) -> tuple[int, tuple[Any, str | None]]:
    """Make a call; returns the exit status, and the result with one line on what it raised."""
    try:
        return 0, (call(), None)
    except SystemExit as error:
        return exit_status(error), (None, error_line(error))
    except KeyboardInterrupt:
        return 130, (None, "interrupted")
    except BaseException as error:
        traceback.print_exception(error.with_traceback(skip_launcher(error.__traceback__)))
        return 1, (None, error_line(error))


def exit_status(error: SystemExit) -> int:
    """The exit status that ``sys.exit`` was asked for."""
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def error_line(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, SystemExit):
        said = f": {error.code}" if isinstance(error.code, str) else ""
        return f"exited with status {exit_status(error)}{said}"
    return " ".join(f"{type(error).__name__}: {error}".split())


def skip_launcher(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without its first frames, which are the launcher's in every job."""
    own = (__file__, str(Path(__file__).parent / "launchers"))
    while trace and trace.tb_frame.f_code.co_filename.startswith(own):
        trace = trace.tb_next
    return trace


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent ended before its child began")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
