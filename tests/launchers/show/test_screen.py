"""A sweep shown live: in place on a terminal (here a real pseudo-terminal), elsewhere in lines."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from research.launchers.show import screen as screen_module
from research.launchers.show.screen import Screen
from research.launchers.show.table import Row
from research.status import BLANK

VARIES = {"env": "cheetah", "seed": "1"}
STEPS: dict[str, Any] = {"step": 120_000, "total_steps": 10**6, "speed": 118.0}


def row(number: int, state: str = "pending", device: str = "", **status: Any) -> Row:
    attempt = status.pop("attempt", int(state != "pending"))
    return Row(number, VARIES, {**BLANK, "state": state, "attempt": attempt, **status}, device)


class Window:
    """A terminal window on a pseudo-terminal, as far as Screen's control sequences go."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self.lines, self.line, self.place = [""], 0, 0
        self.resize(100, 30)
        self.text = self.all_text = ""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def resize(self, width: int, height: int) -> None:
        """Change the size, folding lines that are too long, as most terminals do."""
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, size)
        self.width = width
        folded = [re.findall(f".{{1,{max(width, 1)}}}", line) or [""] for line in self.lines]
        self.lines = [part for parts in folded for part in parts]
        self.line = len(self.lines) - 1

    def read(self) -> None:
        while data := self.read_some():
            self.text += data
            self.all_text += data

    def read_some(self) -> str:
        try:
            return os.read(self.master, 65536).decode()
        except OSError:
            return ""

    def shown(self) -> list[str]:
        """What the window shows after all that was written so far, down to the last text."""
        self.stream.write("\x00")
        self.stream.flush()
        while not self.text.endswith("\x00"):
            time.sleep(0.001)
        text, self.text = self.text.replace("\x00", ""), ""
        for token in re.findall(r"\x1b\[\??\d*[A-Za-z]|.|\n|\r", text):
            self.obey(token)
        return [line.rstrip() for line in "\n".join(self.lines).rstrip().split("\n")]

    def obey(self, token: str) -> None:
        """Do what one character or control sequence says."""
        if token == "\r":
            self.place = 0
        elif token == "\n":
            self.line += 1
            self.lines += [""] * (self.line + 1 - len(self.lines))
        elif token.endswith("A") and len(token) > 1:
            self.line = max(0, self.line - int(token[2:-1] or 1))
        elif token == "\x1b[2K":
            self.lines[self.line] = ""
        elif len(token) == 1:
            assert self.place < self.width, "the terminal would fold this line"
            line = self.lines[self.line].ljust(self.place)
            self.lines[self.line] = line[: self.place] + token + line[self.place + 1 :]
            self.place += 1

    def close(self) -> None:
        self.stream.close()
        self.reader.join(5)
        os.close(self.master)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    window = Window()
    yield window
    window.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(screen_module, "time", clock)
    return clock


def test_a_terminal_shows_one_table_that_stays_in_place(window: Window, clock: Clock) -> None:
    screen = Screen(window.stream)
    for step in range(3):
        screen.show([row(0, "running", step=step), row(1)])
        clock.now += 1
    assert window.shown() == [
        "job  env      seed  state     step    ETA    speed  score  device  attempt",
        "  0  cheetah     1  running      2      -        -      -  -             1",
        "  1  cheetah     1  pending      -      -        -      -  -             -",
        "2 jobs: 1 running, 1 pending",
    ]


def test_a_table_that_gets_shorter_leaves_nothing_behind(window: Window, clock: Clock) -> None:
    screen = Screen(window.stream)
    screen.show([row(number) for number in range(5)])
    clock.now += 1
    screen.show([row(0)])
    assert len(window.shown()) == 3


@pytest.mark.parametrize(("width", "titles"), [(60, 8), (70, 9), (120, 10)])
def test_the_table_fits_the_window_as_it_is_then(
    window: Window, clock: Clock, width: int, titles: int
) -> None:
    screen = Screen(window.stream)
    rows = [row(n, "running", "gpu 0 cpu 0-3", **STEPS, score=-1234.5) for n in range(3)]
    screen.show(rows)
    assert max(map(len, window.shown())) > 80
    window.resize(width, 30)
    clock.now += 1
    screen.show(rows)
    lines = window.shown()
    assert [line.split()[0] for line in lines] == ["job", "0", "1", "2", "3"]
    assert len(lines[0].split()) == titles
    assert max(map(len, lines)) < width


def test_a_terminal_that_does_not_know_its_size_gets_eighty_columns(window: Window) -> None:
    window.resize(0, 0)
    window.width = 80
    Screen(window.stream).show([row(n, "running", "gpu 0 cpu 0-3", **STEPS) for n in range(3)])
    lines = window.shown()
    assert [line.split()[0] for line in lines] == ["job", "0", "1", "2", "3"]
    assert lines[1].endswith("gpu 0 cpu 0-3       1")


def test_a_low_window_shows_the_running_jobs(window: Window) -> None:
    window.resize(100, 6)
    Screen(window.stream).show([row(n, "running" if n == 40 else "pending") for n in range(50)])
    lines = window.shown()
    assert len(lines) <= 6
    assert lines[1].split()[0] == "40"
    assert lines[-1].endswith("(47 not shown)")


def test_a_note_stays_above_the_table(window: Window, clock: Clock) -> None:
    screen = Screen(window.stream)
    screen.note("before")
    screen.show([row(0)])
    screen.note("\x1b[31mjob 0\x1b[0m [failed]\rbecause\x07")
    clock.now += 1
    screen.show([row(0)])
    lines = window.shown()
    assert lines[:3] == ["before", "job 0 [failed]", "because?"]
    assert [line.split()[0] for line in lines[3:]] == ["job", "0", "1"]


def test_a_terminal_is_redrawn_twice_a_second_at_most(window: Window, clock: Clock) -> None:
    screen = Screen(window.stream)
    for _ in range(1000):
        screen.show([row(0)])
        clock.now += 0.01
    window.shown()
    assert 15 <= window.all_text.count("1 job: ") <= 21


def test_close_leaves_the_last_state_on_the_terminal(window: Window) -> None:
    screen = Screen(window.stream)
    screen.show([row(0, "running")])
    screen.show([row(0, "completed")])
    screen.close()
    screen.close()
    screen.note("after")
    lines = window.shown()
    assert "completed" in lines[1]
    assert lines[2:4] == ["1 job: 1 completed", "after"]


def test_colours_are_for_terminals_that_want_them(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(0, "failed"), row(1, "completed"), row(2, "running")]
    screen = Screen(window.stream)
    screen.show(rows)
    screen.close()
    window.shown()
    assert not re.search(r"\x1b\[\d+m", window.all_text)
    monkeypatch.delenv("NO_COLOR")
    Screen(window.stream).show(rows)
    window.shown()
    painted = re.findall(r"\x1b\[(\d+)m(\w+)\x1b\[0m", window.all_text)
    assert sorted(painted) == [("31", "failed")] * 2 + [("32", "completed")] * 2


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    Screen(window.stream).show([row(0, "running")])
    assert window.shown() == ["1 job: 1 running", "job 0 (env=cheetah,seed=1) running"]
    assert "\x1b" not in window.all_text


def test_what_is_logged_to_the_terminal_stays_above_the_table(
    window: Window, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stderr", window.stream)
    late = logging.FileHandler(tmp_path / "log", delay=True)  # has no stream yet
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(), late])
    screen = Screen(window.stream)
    screen.show([row(0)])
    window.width = 200  # to see what the terminal would fold in one line
    root.warning("[red]a long line%s", 100 * "-")
    lines = window.shown()
    assert lines[0] == "[red]a long line" + 100 * "-"
    assert lines[1].startswith("job")
    screen.close()
    root.warning("after")
    assert window.shown()[-2:] == ["1 job: 1 pending", "after"]
    late.close()


def test_the_cursor_is_in_sight_all_the_time(window: Window) -> None:
    Screen(window.stream).show([row(0)])
    window.shown()
    assert "\x1b[?25l" not in window.all_text.rpartition("\x1b[?25h")[2]
    assert window.all_text.index("\x1b[?25h") < window.all_text.index("job")


def test_values_are_shown_as_they_are(window: Window) -> None:
    value = "[red]:smile: \x1b[5A\r[/]"
    Screen(window.stream).show([Row(0, {"x": value}, {**BLANK, "state": "running"}, "")])
    assert window.shown()[1].split()[1:3] == ["[red]:smile:", "?[/]"]


def lines_of(stream: io.StringIO) -> list[str]:
    lines = stream.getvalue().splitlines()
    stream.truncate(0)
    stream.seek(0)
    return lines


def test_elsewhere_each_change_of_state_is_a_line() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.show([row(0), row(1, "completed")])
    assert lines_of(stream) == ["2 jobs: 1 completed, 1 pending"]
    for changed in (
        row(0, device="gpu 0"),
        row(0, "running", "gpu 0"),
        row(0, "running", "gpu 0"),
        row(0, "failed", exit_reason="killed by SIGKILL"),
        row(0, attempt=1),
        row(0, "running", "gpu 1", attempt=2),
        row(0, "completed", attempt=2, score=812.43),
    ):
        screen.show([changed, row(1, "completed")])
    screen.note("done")
    screen.close()
    assert lines_of(stream) == [
        "job 0 (env=cheetah,seed=1) running on gpu 0",
        "job 0 (env=cheetah,seed=1) failed: killed by SIGKILL",
        "job 0 (env=cheetah,seed=1) pending",
        "job 0 (env=cheetah,seed=1) running on gpu 1, attempt 2",
        "job 0 (env=cheetah,seed=1) completed, score 812.4, attempt 2",
        "done",
    ]


def test_elsewhere_a_long_value_loses_its_middle() -> None:
    stream = io.StringIO()
    Screen(stream).show([Row(0, {"x": "quadruped_" + 40 * "-"}, row(0, "running").status, "")])
    assert lines_of(stream)[1] == f"job 0 (x=quadruped_{9 * '-'}..{19 * '-'}) running"


def test_elsewhere_progress_is_a_line_once_a_minute_if_there_is_any(clock: Clock) -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    for second in range(150):
        clock.now = 1000.0 + second
        screen.show([row(0, "running", **{**STEPS, "step": 120_000 + second}), row(1, "running")])
    assert (
        lines_of(stream)[3:]
        == [
            "job 0 (env=cheetah,seed=1) step 120k/1M, 118/s, 2h04m left",
        ]
        * 2
    )


def test_an_old_encoding_does_not_end_the_sweep() -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding="ascii")
    Screen(stream).show([Row(0, {"env": "\u00e9t\u00e9"}, {**BLANK, "state": "running"}, "")])
    assert b"job 0 (env=?t?) running" in bytes_.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_reader_that_went_away_does_not_end_the_sweep(is_terminal: bool) -> None:
    reading, writing = pty.openpty() if is_terminal else os.pipe()
    screen = Screen(os.fdopen(writing, "w"))
    os.close(reading)
    for state in ("running", "completed"):
        screen.show([row(0, state)])
        screen.note("x")
    screen.close()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_reader_that_is_too_slow_does_not_stop_the_sweep(is_terminal: bool) -> None:
    reading, writing = pty.openpty() if is_terminal else os.pipe()
    os.set_blocking(writing, False)
    stream = os.fdopen(writing, "w")
    screen = Screen(stream)
    for _ in range(2000):
        screen.note(100 * "x")
    screen.show([row(0)])
    screen.close()
    os.close(reading)
    with suppress(OSError):
        stream.close()
