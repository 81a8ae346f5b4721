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
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.status import BLANK, Status, is_in_use, lock_owner, read_status, sole_process


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
        ('{"state": "running", "attempt": true}', "no attempt number"),
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


REFUSED = {
    "state": [None, 3, ["running"], "a\nb" * 999],
    "attempt": [None, -1, 1.0, "1", 2**63],
    "step": [None, True, -1, 1.0, "1", [], 2**63],
    "total_steps": [False, -1, 0.5, "1", {}],
    "pid": [True, -1, 1.0, "1"],
    "score": [True, "1", [1], 10**400],
    "speed": [False, "fast", {"a": "\n" * 99}],
    "host": [1, ["a"], False],
    "started": [1.5],
    "updated": [{}],
    "ended": [0],
    "exit_reason": [["line", "line"]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_field_of_another_form_is_refused(tmp_path: Path, name: str, value: object) -> None:
    fields = {"state": "running", "attempt": 1, name: value}
    (tmp_path / "status.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=name) as caught:
        read_status(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_every_field_of_a_status_is_checked() -> None:
    assert set(REFUSED) == set(BLANK)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.mkdir()
    with pytest.raises(UserError, match="it is no regular file"):
        read_status(tmp_path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(UserError, match=r"status\.json is not a run's status"):
        read_status(tmp_path)
    path.unlink()
    path.write_bytes(b'{"state": "running", "attempt": 1}' + b" " * 2**20)
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        read_status(tmp_path)


def test_field_that_is_not_known_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "running", "attempt": 1, "colour": [[]]}')
    assert read_status(tmp_path) == {**BLANK, "state": "running", "attempt": 1}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*BLANK]), inner),
    max_leaves=8,
)
likely = {
    "state": st.sampled_from(["running", "failed"]) | values,
    "attempt": st.integers(0, 9) | values,
}
statuses = st.fixed_dictionaries(likely, optional=dict.fromkeys([*BLANK][2:], values))


@settings(max_examples=100, deadline=None)
@given(content=st.binary() | (values | statuses).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_status_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    path = run_dir / "status.json"
    path.write_bytes(content)
    try:
        status = Status(run_dir)
    except UserError as error:
        lines = str(error).splitlines()
        assert [str(path) in line for line in lines] == [True]
        return
    assert set(status.fields) == set(BLANK)
    status.start()
    assert read_status(run_dir) == status.fields


def test_reader_finds_every_field_in_a_file_that_lacks_some(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "completed", "attempt": 3}')
    status = read_status(tmp_path)
    assert status is not None
    assert (status["attempt"], status["score"], status["step"]) == (3, None, 0)


def test_sweeps_parent_reads_status_and_provenance_without_torch() -> None:
    code = (
        "import sys, research.status, research.training.saving.provenance\n"
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
