"""A few of the rounds of ``benchmarks/chaos.py``, which has the long version."""

from pathlib import Path

import pytest

from benchmarks.chaos_round import Blow, Round
from benchmarks.chaos_sweeps import slurm_sweep, small_sweep
from tests.launchers.cluster import Cluster

LINUX = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)


def blow(target: str, after_changes: int) -> Blow:
    return Blow(target, 0.0, after_changes, waits=False, choice=0.0)


@LINUX
def test_every_job_completes_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    round_ = Round(small_sweep(), tmp_path / "sweep")
    round_.run([blow("command", 14), blow("job", 8), blow("guard", 6)])
    assert round_.problems == []
    assert round_.blows == ["command", "job", "guard"]


@LINUX
def test_a_command_typed_twice_at_once_runs_no_job_twice(tmp_path: Path) -> None:
    round_ = Round(small_sweep(), tmp_path / "sweep")
    round_.run([blow("twin", 1)])
    assert round_.problems == []
    assert round_.blows == ["twin"]


def test_under_slurm_too_when_the_launcher_or_an_allocation_is_killed(
    tmp_path: Path, cluster: Cluster
) -> None:
    round_ = Round(slurm_sweep(cluster.environ), tmp_path / "sweep")
    round_.run([blow("command", 9), blow("pool", 8)])
    assert round_.problems == []
    assert round_.blows == ["command", "pool"]
    assert round_.statuses[-2:] == [0, 0]


def test_under_slurm_too_when_a_job_is_killed_or_the_command_typed_twice(
    tmp_path: Path, cluster: Cluster
) -> None:
    round_ = Round(slurm_sweep(cluster.environ), tmp_path / "sweep")
    round_.run([blow("job", 16), blow("twin", 1)])  # one job is left to be done again
    assert round_.problems == []
    assert round_.blows == ["job", "twin"]
