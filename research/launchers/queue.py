"""What SLURM's queue holds of a sweep: which tasks were submitted, and which are still there."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import UserError
from research.files import write_whole

SUBMISSIONS = "submissions.json"
QUEUE_TIMEOUT_S = 60.0
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
}


class Submission(NamedTuple):
    """An array of allocations.

    Attributes:
        mark: in the comment of its tasks, to find them when nobody wrote their numbers down.
        tasks: SLURM's names (``12_0``) of the allocations; none while they are not known.
        jobs: the job numbers of each allocation.

    """

    mark: str
    tasks: Sequence[str]
    jobs: Sequence[Sequence[int]]


class Place(NamedTuple):
    """A task in the queue: its name, SLURM's word for its state, its node, why it waits."""

    task: str
    state: str
    node: str
    reason: str


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
    """Replace the list."""
    content = [submission._asdict() for submission in submissions]
    write_whole(sweep / SUBMISSIONS, json.dumps(content, indent=1) + "\n")


def find_places(submissions: Sequence[Submission]) -> dict[int, Place] | None:
    """The tasks of the sweep's jobs that are waiting or running, by job number.

    Returns:
        None when SLURM does not answer: then nothing is known.

    """
    lines = ask("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%N|%r|%k")
    if lines is None:
        return None
    listed = [line.split("|", 4) for line in lines]
    marks = {comment: task.partition("_")[0] for task, _, _, _, comment in listed}
    places = {task: Place(task, state, node, reason) for task, state, node, reason, _ in listed}
    found: dict[int, Place] = {}
    for submission in submissions:
        for name, numbers in zip(task_names(submission, marks), submission.jobs, strict=True):
            if name in places and places[name].state not in ENDED:
                found |= dict.fromkeys(numbers, places[name])
    return found


def task_names(submission: Submission, arrays: Mapping[str, str]) -> Sequence[str]:
    """SLURM's names of a submission's tasks, by its mark if nobody wrote them down."""
    if submission.tasks:
        return submission.tasks
    array = next((array for text, array in arrays.items() if submission.mark in text), "")
    count = len(submission.jobs)
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
        UserError: SLURM did not take it.

    """
    if names := sorted(set(tasks)):
        done: Any = subprocess.run(["scancel", *names], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"scancel failed: {' '.join(done.stderr.split())}")
