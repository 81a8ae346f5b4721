"""What came of a sweep: its table, ``sweep.csv``, and why some jobs failed."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from research.launchers.ledger import Job
from research.launchers.pool import LOG, last_lines
from research.launchers.progress import read_row
from research.launchers.table import summary, write_csv

log = logging.getLogger(__name__)


def report(
    sweep: Path,
    jobs: Sequence[Job],
    *,
    mode: Literal["max", "min"] | None,
) -> bool:
    """Write ``sweep.csv``, and say what came of the jobs and why some failed.

    Args:
        sweep: the directory.
        jobs: of the sweep.
        mode: whether a high or a low score is better, if that is known.

    Returns:
        whether all of them completed.

    """
    rows = [read_row(job, None) for job in jobs]
    write_csv(rows, sweep / "sweep.csv")
    is_one_task = all("env" not in job.varies for job in jobs)  # scores of several do not compare
    for line in summary(rows, mode=mode if is_one_task else None):
        log.info("%s", line)
    for job, row in zip(jobs, rows, strict=True):
        if row.status["state"] == "failed":
            log.error("job %d (%s) failed: %s", job.number, job.name, row.status["exit_reason"])
            for line in last_lines(job.folder):
                log.error("    %s", line)
            log.error("    all of it: %s", shown(job.folder / LOG))
    is_complete = all(row.status["state"] == "completed" for row in rows)
    if not is_complete:
        log.info("to run what did not complete: python -m research.sweep retry %s", shown(sweep))
    return is_complete


def shown(path: Path) -> str:
    """A path as it is typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
