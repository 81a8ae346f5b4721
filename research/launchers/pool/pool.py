"""Runs jobs as processes on this machine, in slots that are free again as soon as a job ends."""

import logging
import os
import select
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

from research.errors import PREEMPTED, UserError
from research.launchers.plan.ledger import Job
from research.launchers.pool.guard import Guard
from research.machine.gpus import slot_environment
from research.machine.slots import Slot
from research.process import Call, Ending, Process, error_line
from research.signals import OF_A_LAUNCHER, handling
from research.status import BLANK, Status, read_status

log = logging.getLogger(__name__)

TERMINATION_S = 30.0
"""How long a job that ran past its time may take to save its work and end."""

TICK_S = 0.2
WATCH_S = 0.5
LOG = "output.log"


class Task(NamedTuple):
    """A job and the call that its process makes."""

    job: Job
    call: Call


class Outcome(NamedTuple):
    """How a job ended.

    Attributes:
        state: ``pending`` if it was never started.
        result: the result of its call; None if it did not return.
        reason: one line on how it ended.

    """

    state: Literal["completed", "failed", "preempted", "pending"]
    result: Any
    reason: str


NOT_STARTED = Outcome("pending", None, "not started")


class Watcher(Protocol):
    """A function that shows where the jobs run; it is called about twice a second."""

    def __call__(self, running: Mapping[int, Slot]) -> None:
        """Show the running jobs, given by their numbers, and their slots."""
        ...


@dataclass
class Run:
    """A job's process in its slot."""

    task: Task
    slot: Slot
    process: Process
    deadline: float
    limit: str = ""
    """The limit for which the pool stopped it; empty if it did not."""


@dataclass
class Pool:
    """Runs jobs in slots.

    Args:
        slots: one job at a time runs in each.
        stagger_s: minimum seconds between two starts.
        retries: further attempts for a job that does not complete.
        fail_fast: whether to stop all jobs when one has failed for good.
        timeout_s: seconds that an attempt may take; None for no limit.
        environ: environment variables for every job, which override this process's own.
        watch: shows the running jobs.
        stop_signals: signals at which the jobs save their work and end.
        second_kills: whether a second signal kills the jobs; SLURM repeats the same signal.

    """

    slots: Sequence[Slot]
    stagger_s: float
    retries: int
    fail_fast: bool
    timeout_s: float | None
    environ: Mapping[str, str]
    watch: Watcher
    stop_signals: Sequence[signal.Signals] = OF_A_LAUNCHER
    second_kills: bool = True
    stop_reason: str = ""
    """Why no more jobs are started; empty while they are."""

    received: list[int] = field(default_factory=list)
    """The signals received so far."""

    running: dict[int, Run] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> dict[int, Outcome]:
        """Run every task to its end; returns the outcomes by job number.

        Jobs that a signal stopped are ``preempted``, or ``pending`` if they had not started.
        """
        self.waiting = deque(tasks)
        self.free = deque(self.slots)
        self.next_start = self.next_watch = -float("inf")
        with ExitStack() as stack:
            stack.enter_context(handling(self.stop_signals, self.note))
            self.guard = Guard()
            stack.callback(self.guard.close)
            stack.callback(self.kill_all)
            while self.running or (self.waiting and not self.stop_reason):
                self.start_jobs()
                self.wait()
                self.guard.revive()
                self.end_jobs()
                self.enforce_limits()
                self.show()
        return {task.job.number: self.outcomes.get(task.job.number, NOT_STARTED) for task in tasks}

    def start_jobs(self) -> None:
        """Start the jobs that may start now."""
        while self.waiting and self.free and not self.stop_reason:
            if time.monotonic() < self.next_start:
                return
            task, slot = self.waiting.popleft(), self.free.popleft()
            try:
                self.start(task, slot)
            except OSError as error:  # for example, its directory cannot be made
                self.free.appendleft(slot)
                self.outcomes[task.job.number] = Outcome("failed", None, error_line(error))
            self.next_start = time.monotonic() + self.stagger_s

    def start(self, task: Task, slot: Slot) -> None:
        """Start one job."""
        number, folder = task.job.number, task.job.folder
        environ = {**os.environ, **self.environ}
        environ |= slot_environment(slot, environ)
        folder.mkdir(parents=True, exist_ok=True)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = Process(task.call, log=log, environ=environ, cpus=slot.cpus)
        finally:
            os.close(log)
        self.guard.add(process.pid)
        self.attempts[number] = self.attempts.get(number, 0) + 1
        deadline = process.started + (self.timeout_s or float("inf"))
        self.running[number] = Run(task, slot, process, deadline)

    def wait(self) -> None:
        """Sleep until a job ends or something else is due."""
        pause = min(TICK_S, max(0.0, self.next_start - time.monotonic()) or TICK_S)
        if not hasattr(os, "pidfd_open"):
            time.sleep(min(pause, 0.05))
            return
        with ExitStack() as stack:
            descriptors = []
            for run in self.running.values():
                descriptors.append(os.pidfd_open(run.process.pid))
                stack.callback(os.close, descriptors[-1])
            select.select(descriptors, [], [], pause)

    def end_jobs(self) -> None:
        """Free the slots of the jobs that ended, and record their outcomes or retry them."""
        for number, run in list(self.running.items()):
            if not run.process.has_ended():
                continue
            self.guard.remove(run.process.pid)
            del self.running[number]
            self.free.append(run.slot)
            outcome = outcome_of(run, run.process.ending(), stopping=bool(self.stop_reason))
            record(run.task.job.folder, outcome)
            retries = self.attempts[number] <= self.retries and not self.stop_reason
            if outcome.state != "completed" and retries:
                self.waiting.appendleft(run.task)
                continue
            self.outcomes[number] = outcome
            if outcome.state == "failed" and self.fail_fast:
                self.stop(f"stopped because job {number} failed (hydra.launcher.fail_fast)")

    def enforce_limits(self) -> None:
        """Stop all jobs after a signal; stop, and later kill, jobs that ran past their time."""
        if self.received and not self.stop_reason:
            self.stop("interrupted")
        if len(self.received) > 1 and self.second_kills:
            self.kill_all()
        now = time.monotonic()
        for run in self.running.values():
            if now <= run.deadline:
                continue
            if run.limit:
                run.process.kill()
            else:
                run.limit = f"ran past hydra.launcher.timeout_s={self.timeout_s:g}"
                run.deadline = now + TERMINATION_S
                run.process.stop()

    def stop(self, reason: str) -> None:
        """Start no more jobs, and tell the running ones to save their work and end."""
        self.stop_reason = self.stop_reason or reason
        for run in self.running.values():
            run.process.stop()

    def kill_all(self) -> None:
        """Kill every running job."""
        for run in self.running.values():
            run.process.kill()

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal that asks the jobs to end."""
        self.received.append(number)

    def show(self) -> None:
        """Show the running jobs if that is due or none is left."""
        now = time.monotonic()
        if now >= self.next_watch or not self.running:
            self.next_watch = now + WATCH_S
            self.watch({number: run.slot for number, run in self.running.items()})


def outcome_of(run: Run, ending: Ending, *, stopping: bool) -> Outcome:
    """The outcome of an attempt, from how its process ended and from its status file."""
    status = known_status(run.task.job.folder)
    own = status if status["pid"] == run.process.pid else BLANK
    if own["state"] == "completed" or (ending.status == 0 and ending.error is None):
        return Outcome("completed", ending.result, "completed")
    if run.limit:
        return Outcome("failed", None, run.limit)
    if ending.status < 0:
        name = signal.Signals(-ending.status).name
        hint = "; out of memory?" if name == "SIGKILL" and not stopping else ""
        stopped = stopping or -ending.status in OF_A_LAUNCHER  # before it handles them
        return Outcome("preempted" if stopped else "failed", None, f"killed by {name}{hint}")
    reason = own["exit_reason"] or ending.error or f"exit status {ending.status}"
    if ending.status in (PREEMPTED, 130):
        return Outcome("preempted", None, reason)
    return Outcome("failed", None, reason)


def record(folder: Path, outcome: Outcome) -> None:
    """Write the outcome to the status file of a job whose process could not do so."""
    try:
        status = Status(folder)
        if outcome.state in ("failed", "preempted") and status.fields["state"] != outcome.state:
            status.end(outcome.state, outcome.reason)
    except (UserError, OSError) as error:  # not a status file, a full disk: others continue
        log.error("%s: %s", folder, error)


def known_status(folder: Path) -> Mapping[str, Any]:
    """A job's status; that of a failed job if its file is not a status file."""
    try:
        return read_status(folder) or BLANK
    except UserError as error:
        return {**BLANK, "state": "failed", "exit_reason": str(error)}


def last_lines(folder: Path, count: int = 8) -> list[str]:
    """The last lines of a job's log."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
