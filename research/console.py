"""Standard streams that nobody reads: a run goes on without them."""

import os
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """Let what is printed go nowhere once a stream is closed, or where it was from the start."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: the stream's
            os.set_inheritable(null, null == number)
            setattr(sys, name, os.fdopen(null, "w" if number else "r"))
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Printed):
            setattr(sys, name, Printed(getattr(sys, name)))


class Printed:
    """A stream, all that it is, whose writing never fails.

    When its reader is gone, what is written goes nowhere; what a full disk does not take is lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, if that is possible."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self.give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, if that is possible."""
        try:
            self.stream.flush()
        except OSError as error:
            self.give_up(error)

    def give_up(self, error: OSError) -> None:
        """Point a pipe that nobody reads at nothing, so that Python's end finds nothing amiss."""
        if isinstance(error, BrokenPipeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)
