"""The sweeps that meet chaos: a small app here and under SLURM, and ``train.py``."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_checks import STEPS, check_journal, check_training
from benchmarks.measure import ROOT

JOB = "research.process"
HERE = {"job": JOB, "guard": r"launchers/pool/guard\.py"}
UNDER_SLURM = {**HERE, "pool": rf"^{re.escape(sys.executable)} .*submitit\.core\._submit"}
SMALL = (
    *(sys.executable, str(ROOT / "benchmarks/chaos_app.py"), "-m", "hydra/sweeper=grid"),
    *("task=a,b", "seed=0,1", f"steps={STEPS}"),
)


def nothing() -> list[str]:
    """Waits in no queue."""
    return []


@dataclass
class Sweep:
    """A command whose every job must complete exactly once.

    Attributes:
        name: in the table.
        command: without ``hydra.sweep.dir``.
        num_jobs: of its plan.
        targets: what may be killed beside the command: a pattern of the process's command line.
        check: what is wrong with the run directory of a completed job, given the times of kills.
        environ: of the command, besides what this process has.
        queue: what waits or runs elsewhere.
        gone_s: how long processes may live when the command has ended.
        goes_on_s: how long they may when it was killed.
        duration_s: of the command undisturbed.
        changes: that it makes to its files, as ``snapshot`` sees them.

    """

    name: str
    command: Sequence[str]
    num_jobs: int
    targets: Mapping[str, str]
    check: Callable[[Path, Sequence[float]], list[str]]
    environ: Mapping[str, str] = field(default_factory=dict)
    queue: Callable[[], list[str]] = nothing
    gone_s: float = 5.0
    goes_on_s: float = 5.0
    duration_s: float = 0.0
    changes: int = 0


def small_sweep() -> Sweep:
    """Four short jobs, two at once."""
    options = ("hydra/launcher=local", "hydra.launcher.max_jobs=2", "hydra.launcher.stagger_s=0")
    return Sweep("app.py", [*SMALL, *options], 4, HERE, check_journal)


def training_sweep() -> Sweep:
    """Two tiny runs of TD3."""
    overrides = (
        *("env=pendulum", "device=cpu", "seed=0,1", "network.hidden_dims=[16]"),
        *("trainer.total_steps=600", "trainer.pace.warmup_steps=100", "trainer.log_every=50"),
        *(
            "trainer.checkpoints.every=100",
            "trainer.evaluation.every=600",
            "trainer.evaluation.episodes=1",
        ),
    )
    command = [sys.executable, str(ROOT / "train.py"), "-m", *overrides]
    return Sweep("train.py", command, 2, HERE, check_training)


def slurm_sweep(environ: Mapping[str, str]) -> Sweep:
    """Four short jobs, two to an allocation.

    Args:
        environ: by which SLURM's commands find a cluster that nothing else uses.

    """

    def queue() -> list[str]:
        command = ("squeue", "--noheader", "--array", "--format=%i %T %r")
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.splitlines()

    options = (
        *("hydra/launcher=slurm", "hydra.launcher.jobs_per_allocation=2"),
        *("hydra.launcher.setup=[]", "hydra.launcher.timeout_min=10"),
    )
    return Sweep(
        *("slurm", [*SMALL, *options], 4, UNDER_SLURM, check_journal),
        environ=environ,
        queue=queue,
        gone_s=20.0,
        goes_on_s=90.0,  # a task whose submission was cut short waits 60 s for its work
    )


@contextmanager
def private_cluster() -> Iterator[Mapping[str, str]]:
    """A SLURM cluster on this machine, by its environment.

    Raises:
        SystemExit: none can run here.

    """
    from tests.launchers.cluster import Cluster, unavailable

    if reason := unavailable():
        sys.exit(f"chaos.py: --slurm: {reason}; --slurm 0 leaves these rounds out")
    with Cluster() as cluster:
        yield cluster.environ
