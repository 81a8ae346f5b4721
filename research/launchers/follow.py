"""Follows a sweep from any shell: by its status files first, and by SLURM's queue rarely."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.launchers.ledger import Job
from research.launchers.queue import Place, find_places, read_submissions
from research.launchers.rows import Row
from research.launchers.screen import Screen
from research.status import BLANK, Status, is_in_use, read_status

LOOK_S = 1.0
"""Seconds between looks at the status files."""

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
        self.places: Mapping[int, Place] = {}
        self.statuses: dict[int, Mapping[str, Any]] = {}
        self.pause_s = ASK_S[0]
        self.next_ask = -float("inf")

    def look(self) -> list[Row]:
        """Read the status files, ask SLURM if it is time to; the jobs as they stand."""
        before = {number: status["state"] for number, status in self.statuses.items()}
        self.statuses = {job.number: read_status(job.folder) or BLANK for job in self.jobs}
        after = {number: status["state"] for number, status in self.statuses.items()}
        if before and after != before:
            self.pause_s = ASK_S[0]
            self.next_ask = min(self.next_ask, time.monotonic() + self.pause_s)
        if self.open() and time.monotonic() >= self.next_ask:
            self.ask()
        return [self.row(job) for job in self.jobs]

    def ask(self) -> None:
        """Ask SLURM for the tasks in its queue; without an answer what was known stays."""
        if self.submissions:
            places = find_places(self.submissions)
            self.places = self.places if places is None else places
        self.next_ask = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, ASK_S[1])

    def open(self) -> list[Job]:
        """The jobs whose status files say that they may still change."""
        return [job for job in self.jobs if self.statuses[job.number]["state"] in LIVING]

    def alive(self) -> list[Job]:
        """Those of them that wait in the queue or have a process."""
        return [job for job in self.open() if job.number in self.places or is_in_use(job.folder)]

    def row(self, job: Job) -> Row:
        """A job as the table shows it; one whose process is gone is not said to run."""
        status, place = self.statuses[job.number], self.places.get(job.number)
        where = f"{place.task} {place.node or place.reason}".strip() if place else ""
        if status["state"] == "running" and place is None and not is_in_use(job.folder):
            status = {**status, "state": "failed", "exit_reason": LOST}
        return Row(job.number, job.varies, status, where, job.folder)

    def close(self) -> None:
        """Put into the status files of jobs that were lost that they are."""
        for job in self.jobs:
            state = (read_status(job.folder) or BLANK)["state"]
            if state == "running" and not is_in_use(job.folder):
                Status(job.folder).end("failed", LOST)


LOST = "its process is gone without a word; killed with its node or its allocation"


def wait(sweep: Path, jobs: Sequence[Job], *, show: Callable[[Iterable[Row]], object]) -> None:
    """Return when none of the jobs waits in the queue or runs any more."""
    follower = Follower(sweep, jobs)
    while True:
        show(follower.look())
        if not follower.open():
            return
        if not follower.alive():  # by what was known; make sure
            follower.ask()
            if not follower.alive():
                follower.close()
                return
        time.sleep(LOOK_S)


def wait_showing(sweep: Path, jobs: Sequence[Job]) -> None:
    """Wait, with the live table on stderr."""
    screen = Screen(sys.stderr)
    try:
        wait(sweep, jobs, show=lambda rows: screen.show(list(rows)))
    finally:
        screen.close()
