"""Which process handles which signal.

A terminal sends SIGINT (Ctrl-C) to every process of a command; a batch system sends SIGTERM or the
signal it is asked for, often to every process of a job. So one process of each run decides when to
end, and the others follow it:

| process | SIGINT, SIGTERM | SIGUSR1 | SIGUSR2 | SIGHUP |
| --- | --- | --- | --- | --- |
| ``train.py``, until it trains | KeyboardInterrupt | the same | the same | kills it |
| the same, while it trains | ends after the step, saved | the same | the same | kills it |
| local launcher | jobs save and end; a second one kills them | the same | the same | the same |
| SLURM launcher, in its task | jobs save and end | kills it | and are requeued | kills it |
| a job or rank 0, until it trains | KeyboardInterrupt | the same | ignored | kills it |
| the same, while it trains | ends after the step, saved | the same | the same | kills it |
| other ranks, environments | ignored | ignored | ignored | kills it |
| readers of examples | SIGINT ignored, the run's SIGTERM ends it | kills it | kills it | kills it |
| guard of a launcher's jobs | ignored | kills it | ignored | ignored |

A second SIGINT ends training at once. Signals that are ignored when the command begins (nohup) stay
ignored.
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
"""Signals that end a run, which saves its work first."""

OF_A_LAUNCHER = (*OF_A_RUN, signal.SIGHUP)
"""Signals that end a sweep on this machine."""

OF_A_SLURM_TASK = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that end the jobs of an allocation; SIGUSR2 says that its time is nearly up."""


def ignore(numbers: Sequence[int]) -> None:
    """Ignore signals from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def handle(numbers: Sequence[int], handler: Handler) -> dict[int, Any]:
    """Set the handler of the signals that are not ignored; returns their previous handlers."""
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


@contextmanager
def handling(numbers: Sequence[int], handler: Handler) -> Iterator[None]:
    """In this context, ``handler`` gets the signals that are not ignored; main thread only."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = handle(numbers, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class StopRequest:
    """In this context, signals that end a run are noted; a second SIGINT ends the run at once.

    Attributes:
        made: the name of the first signal that came, or None.

    """

    def __init__(self) -> None:
        self.made: str | None = None
        self.is_immediate = False

    def __enter__(self) -> "StopRequest":
        self.handling = handling(OF_A_RUN, self.note)
        self.handling.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.handling.__exit__(None, None, None)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.made and number == signal.SIGINT:  # batch systems repeat the others
            raise KeyboardInterrupt
        self.made = self.made or signal.Signals(number).name
        if self.is_immediate:
            self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In this context, raise ``Preempted`` as soon as a signal comes, not at the next check."""
        self.is_immediate = True
        try:
            self.check()
            yield
        finally:
            self.is_immediate = False

    def check(self) -> None:
        """Raise ``Preempted`` if a signal came."""
        if self.made:
            raise Preempted(self.made)
