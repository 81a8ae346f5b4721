"""The state of a run as one small file, which launchers, sweeps and people read."""

import fcntl
import json
import math
import os
import reprlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal, get_args

from research.errors import UserError, did_you_mean
from research.files import read_json, write_whole

State = Literal["pending", "running", "completed", "failed", "preempted"]

BLANK: Mapping[str, Any] = {
    "state": "pending",
    "attempt": 0,
    "step": 0,
    "total_steps": None,
    "host": None,
    "pid": None,
    "started": None,
    "updated": None,
    "ended": None,
    "exit_reason": None,
    "score": None,
    "speed": None,
}

MAX_BYTES = 2**20
"""A longer file is no status."""

RESERVE_BYTES = 4096
"""Disk space that a running process reserves for the last status that it writes."""


class Status:
    """``status.json`` of a run directory, always whole, one writer at a time.

    Raises:
        UserError: the file exists and is not a run's status.

    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "status.json"
        self.reserve = run_dir / ".reserve"
        self.written_s = -math.inf
        self.read()

    def read(self) -> None:
        """Read the file again, which another process may have replaced."""
        self.fields = dict(read_status(self.path.parent) or BLANK)

    def submit(self) -> None:
        """Set the state to ``pending``: the run waits to be started."""
        self.fields.update(
            state="pending", host=None, pid=None, started=None, ended=None, exit_reason=None
        )
        self.write()

    def start(self, *, total_steps: int | None = None) -> None:
        """Begin the next attempt, by this process; step and score stay until updated."""
        self.fields.update(
            state="running",
            attempt=self.fields["attempt"] + 1,
            total_steps=total_steps if total_steps is not None else self.fields["total_steps"],
            host=socket.gethostname(),
            pid=os.getpid(),
            started=utc_now(),
            ended=None,
            exit_reason=None,
        )
        self.reserve.write_bytes(b" " * RESERVE_BYTES)
        self.write()

    def expect(self, total_steps: int) -> None:
        """Set the number of steps that the run will have."""
        self.fields.update(total_steps=total_steps)
        self.write()

    def update(self, *, step: int, score: float | None = None, speed: float | None = None) -> None:
        """Update the progress; the file is written at most once a second.

        Args:
            step: the steps done.
            score: the latest; None keeps the previous one, NaN and infinity become null.
            speed: in steps per second; None keeps the previous one.

        """
        self.fields.update(step=step)
        if score is not None:
            self.fields.update(score=score if math.isfinite(score) else None)
        if speed is not None:
            self.fields.update(speed=speed if math.isfinite(speed) else None)
        if time.monotonic() - self.written_s >= 1.0:
            self.write()

    def end(self, state: Literal["completed", "failed", "preempted"], exit_reason: str) -> None:
        """Set the final state of this attempt, and why it ended."""
        self.fields.update(state=state, ended=utc_now(), exit_reason=exit_reason)
        try:
            self.write()
            self.reserve.unlink(missing_ok=True)
        except OSError:  # the disk is full
            if not self.reserve.exists():
                raise
            self.write_into_reserve()

    def write_into_reserve(self) -> None:
        """Replace the file by the reserved one, which needs no more disk space."""
        self.fields["exit_reason"] = self.fields["exit_reason"][: RESERVE_BYTES // 8]
        with self.reserve.open("r+b") as file:
            file.write(json.dumps(self.fields, indent=2).encode())  # blanks follow
            os.fsync(file.fileno())
        os.replace(self.reserve, self.path)

    def write(self) -> None:
        """Replace the file."""
        self.fields["updated"] = utc_now()
        write_whole(self.path, json.dumps(self.fields, indent=2) + "\n")
        self.written_s = time.monotonic()


def read_status(run_dir: Path) -> Mapping[str, Any] | None:
    """The fields of ``status.json``, missing ones from ``BLANK``; None if there is no such file.

    Raises:
        UserError: the file is not a run's status.

    """
    path = run_dir / "status.json"
    try:
        fields = read_json(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a run's status: {error}") from error
    if not isinstance(fields, dict) or not is_count(fields.get("attempt")):
        raise UserError(f"{path} is not a run's status: it has no attempt number")
    state, states = fields.get("state"), get_args(State)
    if state not in states:
        hint = did_you_mean(str(state)[:20], states)
        raise UserError(
            f"{path}: state is {reprlib.repr(state)}, not one of {', '.join(states)}{hint}"
        )
    status = {name: fields.get(name, blank) for name, blank in BLANK.items()}
    for name, value in status.items():
        if (form := missed_form(name, value)) is not None:
            raise UserError(
                f"{path} is not a run's status: {name} must be {form}, got {reprlib.repr(value)}"
            )
    return status


def missed_form(name: str, value: object) -> str | None:
    """The form that the field ``name`` must have, if ``value`` lacks it, else None."""
    if name in ("attempt", "step"):
        return None if is_count(value) else "a whole number"
    if name in ("total_steps", "pid"):
        return None if value is None or is_count(value) else "a whole number or null"
    if name in ("score", "speed"):
        return None if value is None or is_number(value) else "a number or null"
    return None if value is None or isinstance(value, str) else "text or null"


def is_count(value: object) -> bool:
    """Whether this is an integer from 0 that fits in 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: object) -> bool:
    """Whether this is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


@contextmanager
def sole_process(folder: Path, *, patience_s: float = 3.0) -> Iterator[None]:
    """Keep other processes out of a run or sweep directory, until the block or this process ends.

    Args:
        folder: an existing directory.
        patience_s: how long to wait for a process that is about to end.

    Raises:
        UserError: another process has locked the directory.

    """
    deadline = time.monotonic() + patience_s
    with (folder / ".lock").open("a+") as lock:
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise UserError(f"{folder} is in use by another process{owner(lock)}")
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a process has locked a run or sweep directory by ``sole_process``."""
    try:
        with (folder / ".lock").open("r+") as lock:
            return not try_lock(lock)
    except FileNotFoundError:
        return False


def lock_owner(folder: Path) -> tuple[int, str] | None:
    """PID and host of the process that locked a directory last; None if they were not written."""
    words = (folder / ".lock").read_text().split()
    return (int(words[1]), words[3]) if len(words) == 4 else None


def try_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed, unless another process has; never waits."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def owner(lock: IO[str]) -> str:
    """The content of a lock file in brackets; empty if it has none."""
    lock.seek(0)
    text = lock.read().strip()
    return f" ({text})" if text else ""


def utc_now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
