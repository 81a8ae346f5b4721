"""Ends a run between two steps when it is told to, with its work saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from research.errors import Preempted


class StopRequest:
    """While it is entered, signals that ask for an end are noted; a second SIGINT ends at once.

    SIGTERM, SIGUSR1 and SIGUSR2 are what batch systems send before they kill. A signal that whoever
    started this process had it ignore stays ignored.

    Attributes:
        made: the name of the first one that came, or None.

    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.made: str | None = None
        self.is_waiting = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in self.NUMBERS if signal.getsignal(n) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self.note) for number in heard}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.made and number == signal.SIGINT:  # batch systems repeat the others
            raise KeyboardInterrupt
        self.made = self.made or signal.Signals(number).name
        if self.is_waiting:
            self.check()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it is entered, nothing is lost if a signal raises ``Preempted``, and it does."""
        self.is_waiting = True
        try:
            self.check()
            yield
        finally:
            self.is_waiting = False

    def check(self) -> None:
        """Raise ``Preempted`` if a signal came."""
        if self.made:
            raise Preempted(self.made)
