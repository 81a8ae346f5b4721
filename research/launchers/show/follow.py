"""Follows a sweep from any shell: by its status files first, and by SLURM's queue rarely."""

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
"""Least and most seconds between looks at the status files; they grow while nothing changes."""

ASK_S = (3.0, 60.0)
"""Least and most seconds between questions to SLURM; they grow while nothing changes."""

LIVING = ("running", "pending", "preempted")


class Follower:
    """What is known of jobs that run elsewhere, as of the last ``look``.

    Args:
        sweep: the sweep directory.
        jobs: of it.

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
        """Read the status files, ask SLURM if it is time to; the jobs as they stand."""
        before = {number: status["state"] for number, status in self.statuses.items()}
        self.read()
        after = {number: status["state"] for number, status in self.statuses.items()}
        self.look_s = min(1.5 * self.look_s, LOOK_S[1])
        if before and after != before:
            self.look_s, self.pause_s = LOOK_S[0], ASK_S[0]
            self.next_ask = min(self.next_ask, time.monotonic() + self.pause_s)
        if self.open() and time.monotonic() >= self.next_ask:
            self.ask()
            self.read()  # again: what has left the queue meanwhile is not lost
        return [self.row(job) for job in self.jobs]

    def read(self) -> None:
        """Read the status files."""
        self.statuses = {job.number: read_status(job.folder) or BLANK for job in self.jobs}

    def ask(self) -> None:
        """Ask SLURM for the tasks in its queue; without an answer what was known stays."""
        places = find_places(self.submissions)
        self.is_answered = places is not None
        self.places = self.places if places is None else places
        self.next_ask = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, ASK_S[1])

    def open(self) -> list[Job]:
        """The jobs whose status files say that they may still change."""
        return [job for job in self.jobs if self.statuses[job.number]["state"] in LIVING]

    def alive(self) -> list[Job]:
        """Those of them that wait in the queue or have a process, or may."""
        if not self.is_answered or is_in_use(self.sweep):
            return self.open()
        return [job for job in self.open() if job.number in self.places or is_in_use(job.folder)]

    def row(self, job: Job) -> Row:
        """A job as the table shows it; one whose process is gone is not said to run."""
        status, place = self.statuses[job.number], self.places.get(job.number)
        where = f"{place.task} {place.node or waits_for(place)}".strip() if place else ""
        is_known = self.is_answered and place is None
        if status["state"] == "running" and is_known and not is_in_use(job.folder):
            status = {**status, "state": "failed", "exit_reason": death(job)}
        return Row(job.number, job.varies, status, where, job.folder)

    def close(self) -> None:
        """Put into the status files of jobs that were lost that they are."""
        for job in self.jobs:
            state = (read_status(job.folder) or BLANK)["state"]
            if state == "running" and not is_in_use(job.folder):
                Status(job.folder).end("failed", death(job))


def waits_for(place: QueuedTask) -> str:
    """Why a task waits, as far as SLURM has thought of a reason."""
    return "" if place.reason == "None" else place.reason


def death(job: Job) -> str:
    """Why a job whose process is gone has ended, as far as it could tell."""
    name = fatal_signal(job.folder)
    return f"killed by {name}" if name else LOST


LOST = "its process is gone without a word; killed with its node or its allocation"
SILENT = "SLURM does not answer; only what the status files say is known"


def wait(sweep: Path, jobs: Sequence[Job], screen: Screen) -> None:
    """Return when none of the jobs waits in the queue or runs any more."""
    follower = Follower(sweep, jobs)
    was_answered = True
    while True:
        screen.show(follower.look())
        if follower.is_answered != was_answered:
            was_answered = follower.is_answered
            screen.note("SLURM answers again" if was_answered else SILENT)
        if not follower.open():
            return
        if not follower.alive():  # by what was known; make sure
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
