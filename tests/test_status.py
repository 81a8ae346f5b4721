"""The status of a run is always readable, and true for the attempt it names."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import pytest

from research.errors import UserError
from research.status import Status, is_in_use, lock_owner, read_status, sole_process


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_run_without_a_file_has_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None


def test_start_says_who_runs_what_since_when(tmp_path: Path) -> None:
    Status(tmp_path).start(total_steps=50)
    status = read_status(tmp_path)
    assert status is not None
    assert (status["state"], status["attempt"], status["step"]) == ("running", 1, 0)
    assert status["total_steps"] == 50
    assert (status["host"], status["pid"]) == (socket.gethostname(), os.getpid())
    age = datetime.now(timezone.utc) - datetime.fromisoformat(status["started"])
    assert abs(age.total_seconds()) < 60
    assert status["ended"] is None


def test_each_start_is_the_next_attempt_and_keeps_step_and_score(tmp_path: Path) -> None:
    first = Status(tmp_path)
    first.start(total_steps=50)
    first.update(step=20, score=1.5)
    first.end("failed", "disk full")
    Status(tmp_path).start()
    status = read_status(tmp_path)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("running", 2)
    assert (status["step"], status["score"], status["total_steps"]) == (20, 1.5, 50)
    assert status["ended"] is None
    assert status["exit_reason"] is None


@pytest.mark.parametrize("state", ["completed", "failed", "preempted"])
def test_end_says_why_and_has_the_last_progress(
    tmp_path: Path, seconds: list[float], state: Literal["completed", "failed", "preempted"]
) -> None:
    status = Status(tmp_path)
    status.start()
    status.update(step=7, score=3.0, speed=120.5)
    status.end(state, "because")
    read = read_status(tmp_path)
    assert read is not None
    assert (read["state"], read["exit_reason"]) == (state, "because")
    assert (read["step"], read["score"], read["speed"]) == (7, 3.0, 120.5)
    assert read["ended"] == read["updated"] or read["ended"] < read["updated"]


def test_waiting_run_is_pending_and_has_no_process(tmp_path: Path) -> None:
    status = Status(tmp_path)
    status.start()
    status.end("preempted", "SIGTERM")
    status.submit()
    read = read_status(tmp_path)
    assert read is not None
    assert (read["state"], read["attempt"], read["pid"]) == ("pending", 1, None)
    assert read["ended"] is None


def test_progress_is_written_at_most_once_a_second(tmp_path: Path, seconds: list[float]) -> None:
    status = Status(tmp_path)
    status.start()
    written = []
    for now in (100.4, 100.9, 101.0, 101.9, 102.1):
        seconds[0] = now
        status.update(step=int(now * 10))
        written.append((read_status(tmp_path) or {})["step"])
    assert written == [0, 0, 1010, 1010, 1021]


def test_score_stays_until_there_is_a_new_one(tmp_path: Path, seconds: list[float]) -> None:
    status = Status(tmp_path)
    status.start()
    status.update(step=1, score=5.0)
    status.update(step=2)
    status.end("completed", "all steps done")
    assert (read_status(tmp_path) or {})["score"] == 5.0


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_score_that_is_no_number_is_null_as_json_demands(tmp_path: Path, score: float) -> None:
    status = Status(tmp_path)
    status.start()
    status.update(step=1, score=1.0)
    status.update(step=1, score=score)
    status.end("failed", "loss is nan")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "status.json").read_text()
    assert json.loads(text, parse_constant=refuse)["score"] is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"state": "running"', "Expecting"),
        ("[]", "no attempt number"),
        ('{"state": "running"}', "no attempt number"),
        ('{"state": "runing", "attempt": 1}', "did you mean 'running'"),
    ],
)
def test_malformed_file_is_refused_by_its_path(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_status(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        Status(tmp_path)
    assert path.read_text() == text


def test_reader_finds_every_field_in_a_file_that_lacks_some(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "completed", "attempt": 3}')
    status = read_status(tmp_path)
    assert status is not None
    assert (status["attempt"], status["score"], status["step"]) == (3, None, 0)


def test_sweeps_parent_reads_status_and_provenance_without_torch() -> None:
    code = (
        "import sys, research.status, research.training.provenance\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_directory_is_in_use_as_long_as_its_process_holds_it(tmp_path: Path) -> None:
    assert not is_in_use(tmp_path)
    with sole_process(tmp_path):
        assert is_in_use(tmp_path)
        owner = lock_owner(tmp_path)
        said = f"in use by another process .pid {os.getpid()} on"
        with pytest.raises(UserError, match=said), sole_process(tmp_path, patience_s=0.0):
            pass
    assert owner is not None
    assert owner[0] == os.getpid()
    assert not is_in_use(tmp_path)
