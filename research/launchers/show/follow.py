"""Follows a sweep from any shell, by its status files and, less often, by SLURM's queue."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.crash import fatal_signal
from research.launchers.plan.ledger import Job
from research.launchers.show.rows import Row
from research.launchers.show.screen import Screen
from research.launchers.slurm.queue import QueuedTask, find_places, read_submissions
from research.status import BLANK, Status, is_in_use, read_status

LOOK_S = (0.2, 2.0)
"""Minimum and maximum seconds between reads of the status files; more while nothing changes."""

ASK_S = (3.0, 60.0)
"""Minimum and maximum seconds between queries to SLURM; more while nothing changes."""

LIVING = ("running", "pending", "preempted")


class Follower:
    """The state of jobs that run elsewhere, as of the last ``look``.

    Args:
        sweep: the sweep directory.
        jobs: the jobs of it to follow.

    """

    def __init__(self, sweep: Path, jobs: Sequence[Job]) -> None:
        self.sweep = sweep
        self.jobs = jobs
        self.submissions = read_submissions(sweep)
        self.places: Mapping[int, QueuedTask] = {}
        self.statuses: dict[int, Mapping[str, Any]] = {}
        self.is_answered = True
        self.look_s = LOOK_S[0]
        self.pause_s = ASK_S[0]
        self.next_ask = -float("inf")

    def look(self) -> list[Row]:
        """Read the status files, query SLURM if that is due, and return a row for each job."""
        before = {number: status["state"] for number, status in self.statuses.items()}
        self.read()
        after = {number: status["state"] for number, status in self.statuses.items()}
        self.look_s = min(1.5 * self.look_s, LOOK_S[1])
        if before and after != before:
            self.look_s, self.pause_s = LOOK_S[0], ASK_S[0]
            self.next_ask = min(self.next_ask, time.monotonic() + self.pause_s)
        if self.open() and time.monotonic() >= self.next_ask:
            self.ask()
            self.read()  # again: a job that has left the queue may have completed
        return [self.row(job) for job in self.jobs]

    def read(self) -> None:
        """Read the status files."""
        self.statuses = {job.number: read_status(job.folder) or BLANK for job in self.jobs}

    def ask(self) -> None:
        """Query SLURM for the tasks in its queue; if it does not answer, keep the last ones."""
        places = find_places(self.submissions)
        self.is_answered = places is not None
        self.places = self.places if places is None else places
        self.next_ask = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, ASK_S[1])

    def open(self) -> list[Job]:
        """The jobs whose status files say that they may still change."""
        return [job for job in self.jobs if self.statuses[job.number]["state"] in LIVING]

    def alive(self) -> list[Job]:
        """The open jobs that wait in the queue or have a process, or may do so."""
        if not self.is_answered or is_in_use(self.sweep):
            return self.open()
        return [job for job in self.open() if job.number in self.places or is_in_use(job.folder)]

    def row(self, job: Job) -> Row:
        """A job's row of the table; a running job whose process is gone is shown as failed."""
        status, place = self.statuses[job.number], self.places.get(job.number)
        where = f"{place.task} {place.node or waits_for(place)}".strip() if place else ""
        is_known = self.is_answered and place is None
        if status["state"] == "running" and is_known and not is_in_use(job.folder):
            status = {**status, "state": "failed", "exit_reason": death(job)}
        return Row(job.number, job.varies, status, where, job.folder)

    def close(self) -> None:
        """Write to the status files of running jobs whose process is gone that they failed."""
        for job in self.jobs:
            state = (read_status(job.folder) or BLANK)["state"]
            if state == "running" and not is_in_use(job.folder):
                Status(job.folder).end("failed", death(job))


def waits_for(place: QueuedTask) -> str:
    """Why a task waits; empty if SLURM gives no reason."""
    return "" if place.reason == "None" else place.reason


def death(job: Job) -> str:
    """Why a job whose process is gone has ended, as far as that is known."""
    name = fatal_signal(job.folder)
    return f"killed by {name}" if name else LOST


LOST = "its process is gone without a word; killed with its node or its allocation"
SILENT = "SLURM does not answer; only what the status files say is known"


def wait(sweep: Path, jobs: Sequence[Job], screen: Screen) -> None:
    """Show the jobs until none of them waits in the queue or runs any more."""
    follower = Follower(sweep, jobs)
    was_answered = True
    while True:
        screen.show(follower.look())
        if follower.is_answered != was_answered:
            was_answered = follower.is_answered
            screen.note("SLURM answers again" if was_answered else SILENT)
        if not follower.open():
            return
        if not follower.alive():  # as of the last query; make sure
            follower.ask()
            if not follower.alive():
                follower.close()
                return
        time.sleep(follower.look_s)


def wait_showing(sweep: Path, jobs: Sequence[Job]) -> None:
    """Wait, with the live table on stderr."""
    screen = Screen(sys.stderr)
    try:
        wait(sweep, jobs, screen)
    finally:
        screen.close()
