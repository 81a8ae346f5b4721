"""A task of a SLURM array: a pool in its allocation, whose jobs share the GPUs and the CPUs."""

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
    """The call that submitit makes in each task.

    SIGUSR2 says that the time is nearly up: the jobs save their work and end, and the task is
    requeued. SIGTERM comes with preemption, ``scontrol requeue`` and ``scancel``: the jobs save
    their work and end, too, but SLURM decides whether the task runs again.

    With several nodes, each runs this for its ranks of the only job; the first decides for all.

    Args:
        tasks: the jobs of the allocation.
        num_slots: the number of jobs in the largest allocation of the array, so that a job gets
            the same number of threads in each.
        max_requeues: how often the task may be requeued because its time was up.
        sweep: the sweep directory.
        mark: the mark of its submission.
        launched_in: the folder the command was run in; lines in ``setup`` may change it.

    """

    tasks: Sequence[Task]
    num_slots: int
    max_requeues: int
    sweep: Path
    mark: str
    launched_in: str

    def __call__(self) -> None:
        """Run the jobs that have neither completed nor failed; exit with status 0 if all completed.

        A job that failed before the task was requeued is not run again, and neither is one that
        has been submitted again since.
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
        ignore(OF_A_SLURM_TASK)  # they are repeated, and submitit also handles SIGUSR2
        progress.close()
        unfinished = [job for job in jobs if state(job) not in ("completed", "failed")]
        if unfinished and signal.SIGUSR2 in pool.received and signal.SIGTERM not in pool.received:
            self.requeue(len(unfinished))
        sys.exit(log_unfinished(jobs, outcomes))

    def place(self) -> dict[str, str]:
        """The environment variable that identifies this node, for a run on several nodes."""
        count = int(os.environ.get("SLURM_NNODES", 1))
        if count == 1:
            return {}
        host = os.environ["SLURM_LAUNCH_NODE_IPADDR"]  # the first node: sbatch's script runs there
        port = os.environ.get("MASTER_PORT") or 10_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
        return {NODE: f"{os.environ['SLURM_NODEID']}/{count}:{host}:{port}"}

    def requeue(self, num_unfinished: int) -> None:
        """Requeue this task, if ``max_requeues`` allows it."""
        name = task_name(os.environ)
        path = self.sweep / SUBMITIT / f"{name}_requeues"
        count = int(path.read_text()) if path.exists() else 0
        if count >= self.max_requeues:
            log.error("out of time; hydra.launcher.max_requeues=%d reached", self.max_requeues)
            return
        write_whole(path, str(count + 1))
        log.info("out of time; %d jobs continue when %s runs again", num_unfinished, name)
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
        if done.returncode:
            log.error("SLURM does not requeue it: %s", " ".join(done.stderr.split()))


def run_beside(tasks: Sequence[Task], slot: Slot, place: Mapping[str, str]) -> int:
    """Run this node's ranks of jobs that another node leads; returns the exit status.

    Only the first node handles the signals that ask a run to end, and it reports failures. The
    status is 1 if a process returned no result; SLURM then ends all nodes.
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
    """Slots for ``count`` jobs that run at once, from SLURM's variables for the allocation.

    The jobs share its GPUs; if there are more GPUs than jobs, each job gets the same number of
    adjacent ones. If SLURM does not bind its tasks to CPUs, the jobs are not pinned: each
    allocation would choose the same CPUs of the node.
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
    """Log the jobs that did not complete; returns the exit status of the task."""
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
