"""One run on several nodes of a cluster, which ends as one on a single machine."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.cluster import Cluster, wait_until
from tests.launchers.programs import ROOT
from tests.launchers.slurm.test_slurm import SlurmProgram, clean_up, finish, requeue
from tests.test_kill import last_step, logs, weights

SMALL = (
    *("alg=classification", "dataset=digits", "device=cpu", "network=mlp", "seed=0"),
    *("network.hidden_dims=[32]", "dataset.batch_size=100", "alg.mixup_alpha=0.4"),
    *("trainer.total_epochs=20", "trainer.log_every=10", "trainer.checkpoints.every=60"),
)
OPTIONS = ("nodes=2", "setup=[]", "timeout_min=10", "cpus_per_task=2")
LAUNCHER = ("hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in OPTIONS))
LIMIT_S = 120


class TwoNodes(SlurmProgram):
    """``train.py`` on both nodes of a cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder, cluster)
        self.environ["OMP_NUM_THREADS"] = "1"  # as many everywhere

    @property
    def run_dir(self) -> Path:
        return self.sweep / "run"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        where = (f"hydra.sweep.dir={self.sweep}", "hydra.sweep.subdir=run")
        return self.open(str(ROOT / "train.py"), "-m", *SMALL, *where, *LAUNCHER, *arguments)

    def wait_for_step(self, step: int) -> None:
        wait_until(
            lambda: last_step(self.run_dir / "train.csv") >= step,
            timeout_s=LIMIT_S,
            told=lambda: "\n".join(
                path.read_text()[-2000:] for path in self.sweep.rglob("*log*") if path.is_file()
            ),
        )

    def pid_of_second_rank(self) -> int:
        """The process that prints to the log of rank 1."""
        for path in Path("/proc").glob("[0-9]*/fd/1"):
            try:
                if os.readlink(path) == str(self.run_dir / "rank_1.log"):
                    return int(path.parts[2])
            except OSError:
                continue
        raise AssertionError("rank 1 does not run")


@pytest.fixture
def nodes(tmp_path: Path, cluster: Cluster) -> Iterator[TwoNodes]:
    nodes = TwoNodes(tmp_path, cluster)
    yield nodes
    clean_up(nodes)


def test_interrupted_it_gives_the_weights_of_two_processes_here(
    nodes: TwoNodes, cluster: Cluster
) -> None:
    whole = nodes.folder / "whole"
    here = nodes.open(str(ROOT / "train.py"), *SMALL, "trainer.devices=2", f"hydra.run.dir={whole}")
    assert finish(here).status == 0
    command = nodes.start()
    nodes.wait_for_step(100)
    (task,) = nodes.tasks()
    requeue(cluster, task)
    answer = finish(command)
    assert answer.status == 0, answer
    assert nodes.state("run") == ("completed", "reached its length")
    assert weights(nodes.run_dir) == weights(whole)
    assert logs(nodes.run_dir) == logs(whole)


def test_a_rank_killed_on_the_second_node_fails_the_run(nodes: TwoNodes) -> None:
    command = nodes.start("trainer.total_epochs=1000")
    nodes.wait_for_step(20)
    os.kill(nodes.pid_of_second_rank(), signal.SIGKILL)
    answer = finish(command)
    assert answer.status == 1
    assert nodes.state("run") == ("failed", "rank 1: killed by SIGKILL")


def test_jobs_do_not_share_several_nodes(nodes: TwoNodes) -> None:
    answer = finish(nodes.start("hydra.launcher.jobs_per_allocation=2"))
    assert answer.status == 1
    assert "hydra.launcher.nodes=2 is for a job that is trained on all of them" in answer.err
