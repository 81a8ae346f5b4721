"""A bar on a terminal that log lines do not break, plain lines elsewhere, at no cost."""

import fcntl
import logging
import pty
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from research.training.records.progress import Progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@contextmanager
def console() -> Iterator[logging.StreamHandler]:
    """A console handler of the root logger, with a format and a level of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)


def visible_lines(text: str) -> list[str]:
    """What a terminal shows: a carriage return starts a line over."""
    return [line.split("\r")[-1].rstrip() for line in text.split("\n")]


def test_line_has_steps_speed_time_left_and_metrics(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(50_000, 10_000, terminal=False)
    progress.update(12_000)
    seconds[0] += 10.0
    progress.report({"return": 412.34, "length": 1000.0})
    assert caplog.messages == [
        "step 12,000/50,000  200 steps/s  ETA 03:10  return 412.3  length 1000"
    ]


def test_speed_is_that_since_the_line_before(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(1000, 0, terminal=False)
    for step, now in ((100, 101.0), (150, 102.0), (150, 109.0)):
        seconds[0] = now
        progress.update(step)
        progress.report({})
    assert caplog.messages == [
        "step 100/1,000  100 steps/s  ETA 00:09",
        "step 150/1,000  50 steps/s  ETA 00:17",
        "step 150/1,000  50 steps/s  ETA 00:17",
    ]


def test_line_before_the_first_step_promises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Progress(100, 0, terminal=False).report({"return": 1.0})
    assert caplog.messages == ["step 0/100  return 1"]


def test_bar_shows_steps_and_the_last_value_of_each_metric(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(50_000, 10_000, terminal=True)
    assert "10.0k/50.0k" in capsys.readouterr().err
    progress.update(25_000)
    progress.report({"return": 1.0, "score": 7.0})
    progress.report({"return": 412.34})
    progress.close()
    last = visible_lines(capsys.readouterr().err)[0]
    assert "50%" in last
    assert "25.0k/50.0k" in last
    assert "steps/s" in last
    assert "return 412.3  score 7" in last


def test_log_lines_stand_alone_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with console():
        progress = Progress(100, 0, terminal=True)
        logging.getLogger("anyone").info("too quiet")
        logging.getLogger("anyone").warning("careful")
        progress.update(50)
        progress.close()
    first, second, *_ = visible_lines(capsys.readouterr().err)
    assert first == "[WARNING] careful"
    assert "50%" in second


def test_console_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    with console() as handler:
        progress = Progress(100, 0, terminal=True)
        assert handler.stream is not sys.stderr
        progress.close()
        progress.close()
        assert handler.stream is sys.stderr


def test_file_of_a_logger_is_left_alone(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(handler)
    stream = handler.stream
    progress = Progress(100, 0, terminal=True)
    assert handler.stream is stream
    progress.close()
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_stderr_that_is_no_terminal_has_no_bar(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(100, 0)
    progress.update(1)
    progress.report({"return": 1.0})
    progress.close()
    assert capsys.readouterr().err == ""
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("rows", "has_bar"), [(24, True), (0, False)])
def test_terminal_has_a_bar_if_it_has_a_size(
    monkeypatch: pytest.MonkeyPatch, rows: int, has_bar: bool
) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
    with open(slave, "w") as terminal, open(master, "rb", buffering=0):
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = Progress(100, 0)
        progress.close()
        assert (progress.bar is not None) == has_bar


def test_bar_starts_no_thread() -> None:
    code = (
        "import threading; from research.training.records.progress import Progress\n"
        "Progress(100, 0, terminal=True).update(1)\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("terminal", "most"), [(True, 3), (False, 1)])
def test_update_is_a_few_calls(terminal: bool, most: int) -> None:
    progress = Progress(10**9, 0, terminal=terminal)
    counts = []
    for step in range(1000):
        calls: list[str] = []
        sys.setprofile(lambda _frame, event, _, calls=calls: calls.append(event))
        progress.update(step)
        sys.setprofile(None)  # is a call itself
        counts.append(sum(event in ("call", "c_call") for event in calls) - 1)
    progress.close()
    assert statistics.median(counts) == most  # the bar is redrawn at a few steps alone
