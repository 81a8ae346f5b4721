"""What the tests of training share."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def signals_are_heard() -> Iterator[None]:
    """As in a terminal; a shell's background jobs ignore SIGINT."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
