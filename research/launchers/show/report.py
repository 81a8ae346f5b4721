"""The results of a sweep: its table, ``sweep.csv``, and why some jobs failed."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from research.launchers.plan.ledger import Job
from research.launchers.pool.pool import LOG, last_lines
from research.launchers.show.progress import read_row
from research.launchers.show.table import summary, write_csv
from research.launchers.slurm.queue import Submission, latest, read_submissions

log = logging.getLogger(__name__)
NEVER_BEGAN = "its allocation ended before it began"


def report(
    sweep: Path,
    jobs: Sequence[Job],
    *,
    mode: Literal["max", "min"] | None,
) -> bool:
    """Write ``sweep.csv``, and log the results of the jobs and why some failed.

    Args:
        sweep: the sweep directory.
        jobs: the jobs to report.
        mode: whether a high or a low score is better, if that is known.

    Returns:
        whether all of them completed.

    """
    rows = [read_row(job, None) for job in jobs]
    write_csv(rows, sweep / "sweep.csv")
    is_one_task = all("env" not in job.varies for job in jobs)  # scores of several do not compare
    for line in summary(rows, mode=mode if is_one_task else None):
        log.info("%s", line)
    places = latest(read_submissions(sweep))
    for job, row in zip(jobs, rows, strict=True):
        log_unfinished(job, row.status, places.get(job.number))
    is_complete = all(row.status["state"] == "completed" for row in rows)
    if not is_complete:
        log.info("to run what did not complete: python -m research.sweep retry %s", shown(sweep))
    return is_complete


def log_unfinished(
    job: Job, status: Mapping[str, Any], place: tuple[Submission, int] | None
) -> None:
    """Log why a job did not complete, and where to read more."""
    state, reason = status["state"], status["exit_reason"]
    if state == "completed" or not (place or reason):
        return
    log.error("job %d (%s) %s: %s", job.number, job.name, state, reason or NEVER_BEGAN)
    lines = last_lines(job.folder) if state == "failed" else []
    for line in lines:
        log.error("    %s", line)
    if lines:
        log.error("    all of it: %s", shown(job.folder / LOG))
    if place and (path := find_slurm_log(*place)):
        for line in path.read_text(errors="replace").splitlines()[-8:] if not reason else ():
            log.error("    %s", line)
        log.error("    SLURM's log: %s", shown(path))


def find_slurm_log(submission: Submission, index: int) -> Path | None:
    """The file that holds an allocation's output; None if it has none yet."""
    tasks = submission.tasks[index : index + 1]
    paths = [submission.file(task, name) for task in tasks for name in ("0_log.err", "0_log.out")]
    return next((path for path in paths if path.exists()), None)


def shown(path: Path) -> str:
    """A path, relative if it is below the current folder, quoted for a shell."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
