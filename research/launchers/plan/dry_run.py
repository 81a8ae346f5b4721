"""What a sweep would do: every job, its directory, its slot and its memory, all checked."""

import logging
import os
from collections.abc import Sequence

from research.launchers.plan.batch import Batch

log = logging.getLogger(__name__)


def is_dry_run(batch: Batch) -> bool:
    """Whether the sweeper was asked for a dry run."""
    return bool(batch.program.config.hydra.sweeper.get("dry_run", False))


def show_plan(batch: Batch, places: Sequence[str], at_once: int) -> None:
    """Print the jobs that would run.

    Args:
        batch: its unfinished jobs are checked first.
        places: where each of them would start, in their order.
        at_once: how many of them share this machine's memory; 0 if they run elsewhere.

    Raises:
        UserError: for the first job that cannot run.

    """
    jobs = batch.to_do()
    memory = batch.check(jobs, forecast=True, elsewhere=not at_once)
    header = ("job", "directory", "slot", "memory")
    rows = [
        (str(job.number), os.path.relpath(job.folder, batch.plan.folder), place, gigabytes(size))
        for job, place, size in zip(jobs, places, memory, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        log.info("%s", "  ".join(cells).rstrip())
    completed = len(batch.jobs) - len(jobs)
    log.info("%d jobs would run in %s, %d completed", len(jobs), batch.plan.folder, completed)
    known = [size for size in memory if size is not None]
    if at_once and known:
        together = sum(sorted(known)[-at_once:])
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        log.info(
            "%d at once take up to %s of this machine's %s",
            min(at_once, len(jobs)),
            gigabytes(together),
            gigabytes(total),
        )


def gigabytes(size: int | None) -> str:
    """A number of bytes in powers of 1000; ``-`` if it is not known."""
    return "-" if size is None else f"{size / 1e9:.1f} GB"
