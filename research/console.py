"""Standard streams whose reader is gone: a run continues without them."""

import os
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """Discard what is printed to a stream without a reader, or one closed from the start."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: the stream's
            os.set_inheritable(null, null == number)
            setattr(sys, name, os.fdopen(null, "w" if number else "r"))
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Printed):
            setattr(sys, name, Printed(getattr(sys, name)))


class Printed:
    """Wraps a stream so that writing to it never fails.

    Text is lost when the reader of the stream is gone or the disk is full.
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
        """Redirect a pipe without a reader to the null device, so that Python can flush at exit."""
        if isinstance(error, BrokenPipeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)
