"""A few of the rounds of ``benchmarks/chaos.py``, which has the long version."""

from pathlib import Path

import pytest

from benchmarks.chaos import Blow, Round, small_sweep

LINUX = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)


def blow(target: str, after_changes: int) -> Blow:
    return Blow(target, 0.0, after_changes, waits=False, choice=0.0)


@LINUX
def test_every_job_completes_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    round_ = Round(small_sweep(tmp_path), tmp_path / "sweep")
    round_.run([blow("command", 14), blow("job", 8), blow("guard", 6)])
    assert round_.problems == []
    assert round_.blows == ["command", "job", "guard"]


@LINUX
def test_a_command_typed_twice_at_once_runs_no_job_twice(tmp_path: Path) -> None:
    round_ = Round(small_sweep(tmp_path), tmp_path / "sweep")
    round_.run([blow("twin", 1)])
    assert round_.problems == []
    assert round_.blows == ["twin"]
