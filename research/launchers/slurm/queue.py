"""A sweep's tasks in SLURM's queue: those that were submitted, and those that are still there."""

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import UserError
from research.files import write_whole

SUBMISSIONS = "submissions.json"
SUBMITIT = ".submitit"
"""The folder in a sweep directory for the files that SLURM's tasks write."""

QUEUE_TIMEOUT_S = 60.0
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
}


class Submission(NamedTuple):
    """An array of allocations.

    Attributes:
        mark: part of the comment of its tasks, to find them if their names were not recorded.
        folder: the folder of submitit's files, where ``%j`` stands for a task's name.
        tasks: SLURM's names (``12_0``) of the allocations; empty while they are not known.
        jobs: the job numbers of each allocation.

    """

    mark: str
    folder: str
    tasks: Sequence[str]
    jobs: Sequence[Sequence[int]]

    def file(self, task: str, name: str) -> Path:
        """A file of submitit's: ``submitted.pkl``, ``0_log.err``."""
        array, _, index = task.partition("_")
        folder = self.folder.replace("%j", task).replace("%A", array).replace("%a", index)
        return Path(folder.replace("%t", "0")) / f"{task}_{name}"


class QueuedTask(NamedTuple):
    """A task in the queue: name, SLURM's word for its state, node, why it waits, comment."""

    task: str
    state: str
    node: str
    reason: str
    comment: str


def read_submissions(sweep: Path) -> list[Submission]:
    """The submissions of a sweep, oldest first.

    Raises:
        UserError: the file is damaged.

    """
    path = sweep / SUBMISSIONS
    try:
        return [Submission(**entry) for entry in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} does not hold submissions: {error}") from error


def write_submissions(sweep: Path, submissions: Iterable[Submission]) -> None:
    """Replace the list of submissions."""
    content = [submission._asdict() for submission in submissions]
    write_whole(sweep / SUBMISSIONS, json.dumps(content, indent=1) + "\n")


def latest(submissions: Sequence[Submission]) -> dict[int, tuple[Submission, int]]:
    """For each job, the last submission that holds it, and the index of its allocation there.

    An allocation of an earlier submission does not run the job any more, even if it is alive.
    """
    return {
        number: (submission, index)
        for submission in submissions
        for index, numbers in enumerate(submission.jobs)
        for number in numbers
    }


def find_places(submissions: Sequence[Submission]) -> dict[int, QueuedTask] | None:
    """The tasks of the sweep's jobs that are waiting or running, by job number.

    Returns:
        the tasks, or None when SLURM does not answer.

    """
    queue = read_queue() if submissions else []
    if queue is None:
        return None
    places = {place.task: place for place in queue}
    found: dict[int, QueuedTask] = {}
    for number, (submission, index) in latest(submissions).items():
        names = submission.tasks or find_tasks(submission, queue)
        if names and names[index] in places:
            found[number] = places[names[index]]
    return found


def settle(sweep: Path) -> None:
    """Record the tasks of a launcher that was killed before it recorded them.

    Tasks for which it had not written ``submitted.pkl`` have nothing to run, and are cancelled.

    Raises:
        UserError: there may be such tasks, and SLURM does not answer.

    """
    submissions = read_submissions(sweep)
    if all(submission.tasks for submission in submissions):
        return
    if (queue := read_queue()) is None:
        raise UserError(f"SLURM does not answer, so the jobs of {sweep} may be running; try later")
    for index, submission in enumerate(submissions):
        if submission.tasks or not (names := find_tasks(submission, queue)):
            continue
        empty = [name for name in names if not submission.file(name, "submitted.pkl").exists()]
        cancel(empty)
        pairs = zip(names, submission.jobs, strict=True)
        jobs = [[] if name in empty else numbers for name, numbers in pairs]
        submissions[index] = submission._replace(tasks=names, jobs=jobs)
    write_submissions(sweep, submissions)


def read_queue() -> list[QueuedTask] | None:
    """The user's tasks that wait or run; None when SLURM does not answer."""
    options = ("--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r|%k")
    lines = ask("squeue", *options)
    if lines is None:
        return None
    places = [QueuedTask(*line.split("|", 4)) for line in lines]
    return [place for place in places if place.state not in ENDED]


def find_tasks(submission: Submission, queue: Sequence[QueuedTask]) -> list[str]:
    """SLURM's names of a submission's tasks, by its mark; none if they are not in the queue."""
    marked = [place.task for place in queue if submission.mark in place.comment]
    array, count = (marked[0].partition("_")[0], len(submission.jobs)) if marked else ("", 0)
    return [array] if count == 1 else [f"{array}_{index}" for index in range(count)]


def ask(*command: str) -> list[str] | None:
    """The lines that a SLURM command prints; None when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=QUEUE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()


def cancel(tasks: Iterable[str]) -> None:
    """Cancel tasks.

    Raises:
        UserError: SLURM refuses.

    """
    if names := sorted(set(tasks)):
        done: Any = subprocess.run(["scancel", *names], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"scancel failed: {' '.join(done.stderr.split())}")
