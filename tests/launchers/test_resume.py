"""Training jobs that were interrupted end, to the bit, as the same jobs that were not."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from research.launchers.pool.pool import LOG, last_lines
from research.status import BLANK, read_status
from tests.conftest import Load
from tests.launchers.cluster import Cluster, wait_until
from tests.launchers.pool.test_pool import processes_of
from tests.launchers.programs import ROOT
from tests.launchers.slurm.test_slurm import (
    SlurmProgram,
    WaitingProgram,
    clean_up,
    finish,
    run_out_of_time,
)
from tests.test_kill import contents, last_step, logs, weights

STEPS = 1000
INTERRUPTED = (400, 700)
"""Steps soon after which, between two checkpoints and inside an episode, jobs are interrupted."""

SMALL = (
    *("alg=td3", "env=pendulum", "device=cpu", f"trainer.total_steps={STEPS}"),
    "trainer.pace.warmup_steps=100",
    *("trainer.log_every=50", "trainer.checkpoints.every=200"),
    *("trainer.evaluation.every=300", "trainer.evaluation.episodes=1"),
    *("dataset.capacity=1000", "dataset.batch_size=16"),
)
LOCAL = ("gpus=[]", "cpus_per_job=1", "stagger_s=0", "retries=1")
SLURM = ("setup=[]", "timeout_min=10", "cpus_per_task=2", "jobs_per_allocation=2")
SEEDS = ("seed=0", "seed=1")


class LocalSweep(WaitingProgram):
    """``train.py`` with two seeds at once, of one CPU each, in a folder of its own."""

    launcher = ("hydra/launcher=local", *(f"hydra.launcher.{option}" for option in LOCAL))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        where = f"hydra.sweep.dir={self.sweep}"
        command = [str(ROOT / "train.py"), "-m", *SMALL, "seed=0,1", where, *self.launcher]
        return self.open(*command, *arguments)

    def hold(self, step: int, names: Sequence[str] = SEEDS) -> list[int]:
        """Stop each job as it comes to this step, so that it cannot end meanwhile; their pids."""
        pids: dict[str, int] = {}

        def hold_those_there() -> bool:
            for name in names:
                folder = self.sweep / name
                if name not in pids and last_step(folder / "train.csv") >= step:
                    pids[name] = (read_status(folder) or BLANK)["pid"]
                    os.kill(pids[name], signal.SIGSTOP)
            return len(pids) == len(names)

        wait_until(
            hold_those_there,
            timeout_s=120,
            told=lambda: "\n".join(str(last_lines(self.sweep / name)) for name in names),
        )
        return list(pids.values())

    def interruptions(self, name: str) -> tuple[list[int], list[int]]:
        """The steps at which a job stopped in order, and those from which it went on."""
        log = (self.sweep / name / LOG).read_text()
        stopped, resumed = (
            [int(step) for step in re.findall(rf"{verb} at step (\d+) of {STEPS}", log)]
            for verb in ("stopped", "resumed")
        )
        return stopped, resumed

    def attempts(self) -> list[int]:
        """How often each job was started."""
        return [(read_status(self.sweep / name) or BLANK)["attempt"] for name in SEEDS]

    def ends(self, load: Load) -> list[dict[str, Any]]:
        """All that each job left but for the times: logs, weights, replay buffer."""
        folders = [self.sweep / name for name in SEEDS]
        return [
            {**logs(folder), **weights(folder), "buffer": contents(folder, load, SMALL)}
            for folder in folders
        ]


class SlurmSweep(LocalSweep, SlurmProgram):
    """The same in one task of a cluster."""

    launcher = ("hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in SLURM))


def go_on(pids: list[int]) -> None:
    """Let jobs go on as soon as they are told to stop."""
    wait_until(lambda: all(map(is_told_to_stop, pids)))
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def is_told_to_stop(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is stopped."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return bool(int(fields["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, load: Load) -> list[dict[str, Any]]:
    """The ends of the jobs when nothing interrupts them."""
    sweep = LocalSweep(tmp_path_factory.mktemp("whole"), "local", "{}")
    assert sweep.run().status == 0
    assert sweep.attempts() == [1, 1]
    return sweep.ends(load)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalSweep]:
    sweep = LocalSweep(tmp_path, "local", "{}")
    yield sweep
    for pid in processes_of(f"MARKER={tmp_path}"):  # of a test that failed
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def slurm(tmp_path: Path, cluster: Cluster) -> Iterator[SlurmSweep]:
    sweep = SlurmSweep(tmp_path, cluster)
    yield sweep
    clean_up(sweep)


def test_a_command_ended_again_and_again_ends_as_one_that_was_not(
    local: LocalSweep, whole: list[dict[str, Any]], load: Load
) -> None:
    for number, step in zip(("SIGKILL", "SIGTERM"), INTERRUPTED, strict=True):
        command = local.start()
        pids = local.hold(step)
        command.send_signal(signal.Signals[number])
        if number != "SIGKILL":
            go_on(pids)
        assert finish(command).status != 0
    assert local.run().status == 0
    assert local.attempts() == [3, 3]
    for name in SEEDS:
        stopped, resumed = local.interruptions(name)
        assert len(resumed) == 2
        assert 0 < resumed[0] < resumed[1] < STEPS
        assert stopped == resumed[1:]
    assert local.ends(load) == whole


def test_a_job_that_is_killed_ends_the_same_in_its_next_attempt(
    local: LocalSweep, whole: list[dict[str, Any]], load: Load
) -> None:
    command = local.start()
    (pid,) = local.hold(INTERRUPTED[1], ["seed=0"])
    os.kill(pid, signal.SIGKILL)
    assert finish(command).status == 0
    assert local.attempts() == [2, 1]
    stopped, (resumed,) = local.interruptions("seed=0")
    assert stopped == []
    assert 0 < resumed < STEPS
    assert local.ends(load) == whole


def preempt(cluster: Cluster, task: str) -> None:
    cluster.submit("true", "--partition=urgent", "--nodes=2", "--exclusive")


def test_a_task_that_runs_again_and_again_ends_as_one_that_ran_once_elsewhere(
    slurm: SlurmSweep, whole: list[dict[str, Any]], load: Load
) -> None:
    command = slurm.start()
    for event, step in zip((preempt, run_out_of_time), INTERRUPTED, strict=True):
        pids = slurm.hold(step)
        (task,) = slurm.tasks()
        event(slurm.cluster, task)
        go_on(pids)
    assert finish(command).status == 0
    assert slurm.attempts() == [3, 3]
    for name in SEEDS:
        stopped, resumed = slurm.interruptions(name)
        assert len(resumed) == 2
        assert 0 < resumed[0] < resumed[1] < STEPS
        assert stopped == resumed
    assert slurm.ends(load) == whole
