"""A task of a SLURM array: a pool in its allocation, whose members share the GPUs and the CPUs."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from research.files import write_whole
from research.launchers.plan.ledger import Job
from research.launchers.pool.pool import Outcome, Pool, Task
from research.launchers.show.progress import Progress
from research.launchers.show.screen import Screen
from research.launchers.slurm.queue import SUBMITIT, latest, read_submissions
from research.machine.cpus import usable_cpus
from research.machine.gpus import slot_environment, usable_gpus
from research.machine.slots import Slot, make_slots
from research.parallel.ranks import NODE, TICK_S
from research.process import Process
from research.signals import OF_A_SLURM_TASK, ignore
from research.status import BLANK, read_status

log = logging.getLogger(__name__)


@dataclass
class Allocation:
    """What submitit calls in each task.

    SIGUSR2 says that the time is nearly up: the jobs save their work and end, and the task is
    queued again. SIGTERM comes with preemption, ``scontrol requeue`` and ``scancel``: the jobs end
    likewise, and what becomes of the task is SLURM's decision.

    With several nodes, each runs this for its ranks of the only member; the first decides for all.

    Args:
        tasks: its members.
        num_slots: members of the largest allocation of the array, so that the same job has as many
            threads in each.
        max_requeues: how often it may be queued again because its time was up.
        sweep: the sweep directory.
        mark: of its submission.
        launched_in: the folder the command was typed in; lines in ``setup`` may have left it.

    """

    tasks: Sequence[Task]
    num_slots: int
    max_requeues: int
    sweep: Path
    mark: str
    launched_in: str

    def __call__(self) -> None:
        """Run the members that are neither completed nor failed; exits with status 1 if one is not.

        A member that failed in an earlier life of the task is not run again, and neither is one
        that was submitted once more since.
        """
        os.chdir(self.launched_in)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s")
        holders = latest(read_submissions(self.sweep))
        tasks = [task for task in self.tasks if holders[task.job.number][0].mark == self.mark]
        jobs = [task.job for task in tasks]
        to_do = [task for task in tasks if state(task.job) not in ("completed", "failed")]
        slots = allocation_slots(self.num_slots, os.environ)
        if int(os.environ.get("SLURM_NODEID", 0)) > 0:
            sys.exit(run_beside(to_do, slots[0], self.place()))
        progress = Progress(jobs, Screen(sys.stderr))
        pool = Pool(
            slots,
            stagger_s=0.0,
            retries=0,
            fail_fast=False,
            timeout_s=None,
            environ=self.place(),
            watch=progress,
            stop_signals=OF_A_SLURM_TASK,
            second_kills=False,
        )
        outcomes = pool.run(to_do)
        ignore(OF_A_SLURM_TASK)  # they are repeated, and submitit has its own idea of SIGUSR2
        progress.close()
        unfinished = [job for job in jobs if state(job) not in ("completed", "failed")]
        if unfinished and signal.SIGUSR2 in pool.received and signal.SIGTERM not in pool.received:
            self.requeue(len(unfinished))
        sys.exit(log_unfinished(jobs, outcomes))

    def place(self) -> dict[str, str]:
        """The variable that tells a run of several nodes which of them this is."""
        count = int(os.environ.get("SLURM_NNODES", 1))
        if count == 1:
            return {}
        host = os.environ["SLURM_LAUNCH_NODE_IPADDR"]  # the first node: sbatch's script runs there
        port = os.environ.get("MASTER_PORT") or 10_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
        return {NODE: f"{os.environ['SLURM_NODEID']}/{count}:{host}:{port}"}

    def requeue(self, num_unfinished: int) -> None:
        """Queue this task again, if that is still allowed."""
        name = task_name(os.environ)
        path = self.sweep / SUBMITIT / f"{name}_requeues"
        count = int(path.read_text()) if path.exists() else 0
        if count >= self.max_requeues:
            log.error("out of time; hydra.launcher.max_requeues=%d reached", self.max_requeues)
            return
        write_whole(path, str(count + 1))
        log.info("out of time; %d jobs go on when %s runs again", num_unfinished, name)
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
        if done.returncode:
            log.error("SLURM does not queue it again: %s", " ".join(done.stderr.split()))


def run_beside(tasks: Sequence[Task], slot: Slot, place: Mapping[str, str]) -> int:
    """Run this node's ranks of a run whose first node is another; the exit status.

    What asks for an end is heard by the first alone. A reason to fail is told by it too, so the
    status is 0 unless there is none: SLURM ends all nodes at another.
    """
    ignore(OF_A_SLURM_TASK)
    for task in tasks:
        environ = {**os.environ, **slot_environment(slot, os.environ), **place}
        process = Process(
            task.call, log=sys.stderr.fileno(), environ=environ, cpus=slot.cpus, obeys=False
        )
        while not process.has_ended():
            time.sleep(TICK_S)
        if process.ending().result is None:
            return 1
    return 0


def allocation_slots(count: int, environ: Mapping[str, str]) -> list[Slot]:
    """Slots for ``count`` members that run at once, by what SLURM says of the allocation.

    They share its GPUs; where there are more GPUs than members, each has equally many neighbours.
    Where SLURM does not bind its tasks to CPUs, the members are not pinned: each allocation would
    choose the same CPUs of the node.
    """
    here = usable_cpus("auto")
    num_cpus = int(environ.get("SLURM_CPUS_ON_NODE", len(here)))
    cpus = here if len(here) == num_cpus else list(range(num_cpus))
    gpus = usable_gpus("auto")
    slots = make_slots(
        cpus=list(islice(cycle(cpus), max(count, len(cpus)))),
        gpus=gpus,
        gpus_per_job=max(1, len(gpus or ()) // count),
        jobs_per_gpu=-(-count // len(gpus)) if gpus else 1,
        cpus_per_job=None,
        max_jobs=count,
    )
    return [slot._replace(cpus=slot.cpus if cpus is here else ()) for slot in slots]


def task_name(environ: Mapping[str, str]) -> str:
    """SLURM's name of the task that this process runs in: ``12_0``, or ``12`` if it is no array."""
    array = environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ["SLURM_JOB_ID"]


def log_unfinished(jobs: Sequence[Job], outcomes: Mapping[int, Outcome]) -> int:
    """Name the jobs that did not complete; the exit status of the task."""
    status = 0
    for job in jobs:
        if (state_now := state(job)) != "completed":
            status = 1
            outcome = outcomes.get(job.number)
            reason = outcome.reason if outcome else "in an earlier attempt"
            log.error("job %d (%s) %s: %s", job.number, job.name, state_now, reason)
    return status


def state(job: Job) -> str:
    """The state in a job's status file."""
    return (read_status(job.folder) or BLANK)["state"]
