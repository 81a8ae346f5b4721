"""Writes the Python stack of a process that a signal kills to stderr and to its log."""

import faulthandler
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOG = "train.log"
CRASH = ".crash"
"""In a run directory: the stack of the last attempt; empty or missing if no signal ended it."""

SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
}
"""The signals, by the words with which faulthandler begins."""


@contextmanager
def crash_told(run_dir: Path) -> Iterator[None]:
    """In this context, a fatal signal writes the stack of every thread to stderr and the log.

    faulthandler writes to one file; ``tee`` copies that to three. It ends shortly after this
    process, and ignores the signals that a batch system sends to all processes of a job.
    """
    files = [run_dir / LOG, run_dir / CRASH]
    files[1].unlink(missing_ok=True)
    tee = subprocess.Popen(
        ["sh", "-c", 'trap "" INT TERM HUP USR1 USR2; exec tee -a "$@"', "tee", *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=2 if sys.__stderr__ is not None else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert tee.stdin is not None
    faulthandler.enable(tee.stdin)
    try:
        yield
    finally:
        enable_on_stderr()
        tee.kill()  # by itself it would wait for forked children, which have its pipe as well
        tee.wait()
        tee.stdin.close()
        files[1].unlink(missing_ok=True)


def enable_on_stderr() -> None:
    """Have a fatal signal write the stack of every thread to stderr, if there is one."""
    faulthandler.disable()
    if sys.__stderr__ is not None:
        with suppress(OSError, ValueError):  # it is closed
            faulthandler.enable(sys.__stderr__)


def fatal_signal(run_dir: Path) -> str | None:
    """The name of the signal that ended the last attempt, as far as its process could tell."""
    try:
        with (run_dir / CRASH).open(errors="replace") as file:
            first = file.read(1000)
    except OSError:
        return None
    match = re.search(r"Fatal Python error: ([^\n]*)", first)
    return SIGNALS.get(match[1], match[1]) if match else None
