"""Who hears which signal.

A terminal sends SIGINT (Ctrl-C) to every process of a command, a batch system SIGTERM or what it is
told to, often to every process of a job. So one process of each run decides, and the others wait:

| process | SIGINT, SIGTERM | SIGUSR1 | SIGUSR2 | SIGHUP |
| --- | --- | --- | --- | --- |
| ``train.py``, until it trains | KeyboardInterrupt | the same | the same | kills it |
| the same, while it trains | ends after the step, saved | the same | the same | kills it |
| local launcher | jobs save and end; a second one kills them | the same | the same | the same |
| SLURM launcher, in its task | jobs save and end | kills it | and are requeued | kills it |
| a job or rank 0, until it trains | KeyboardInterrupt | the same | ignored | kills it |
| the same, while it trains | ends after the step, saved | the same | the same | kills it |
| other ranks, environments | ignored | ignored | ignored | kills it |
| readers of examples | SIGINT ignored, SIGTERM of the run heard | kills it | kills it | kills it |
| guard of a launcher's jobs | ignored | kills it | ignored | ignored |

A second SIGINT ends a training at once. What was ignored when the command began (nohup) stays so.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from research.errors import Preempted

Handler = Callable[[int, FrameType | None], Any]

OF_A_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Those that end a run, its work saved."""

OF_A_LAUNCHER = (*OF_A_RUN, signal.SIGHUP)
"""Those that end a sweep on this machine."""

OF_A_SLURM_TASK = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Those that end a sweep's jobs in their allocation; SIGUSR2 says that its time is nearly up."""


def ignore(numbers: Sequence[int]) -> None:
    """Ignore signals from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def hear(numbers: Sequence[int], handler: Handler) -> dict[int, Any]:
    """Take signals, but for those that are ignored; returns what took them before."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


@contextmanager
def hearing(numbers: Sequence[int], handler: Handler) -> Iterator[None]:
    """Take signals meanwhile, but for those that are ignored; in the main thread alone."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = hear(numbers, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class StopRequest:
    """While it is entered, signals that end a run are noted; a second SIGINT ends it at once.

    Attributes:
        made: the name of the first one that came, or None.

    """

    def __init__(self) -> None:
        self.made: str | None = None
        self.is_heard_at_once = False

    def __enter__(self) -> "StopRequest":
        self.hearing = hearing(OF_A_RUN, self.note)
        self.hearing.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hearing.__exit__(None, None, None)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.made and number == signal.SIGINT:  # batch systems repeat the others
            raise KeyboardInterrupt
        self.made = self.made or signal.Signals(number).name
        if self.is_heard_at_once:
            self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Do not wait for the end of what is done meanwhile: ``Preempted`` is raised within it."""
        self.is_heard_at_once = True
        try:
            self.check()
            yield
        finally:
            self.is_heard_at_once = False

    def check(self) -> None:
        """Raise ``Preempted`` if a signal came."""
        if self.made:
            raise Preempted(self.made)
