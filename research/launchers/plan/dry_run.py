"""What a sweep would do: every job, its directory, its slot and its memory, all checked."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from research.errors import UserError
from research.launchers.plan.batch import Batch, begin_quietly, call_in_process, config_of_task
from research.launchers.plan.job import hydra_state
from research.launchers.plan.ledger import Job

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
    batch.check(jobs, elsewhere=not at_once)
    memory = forecasts(batch, jobs, elsewhere=not at_once)
    header = ("job", "directory", "slot", "memory", "GPU memory")
    rows = [
        (
            *(str(job.number), os.path.relpath(job.folder, batch.plan.folder), place),
            *map(gigabytes, needed or (None, None)),
        )
        for job, place, needed in zip(jobs, places, memory, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        log.info("%s", "  ".join(cells).rstrip())
    completed = len(batch.jobs) - len(jobs)
    log.info("%d jobs would run in %s, %d completed", len(jobs), batch.plan.folder, completed)
    known = [needed[0] for needed in memory if needed is not None]
    if at_once and known:
        together = sum(sorted(known)[-at_once:])
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        log.info(
            "%d at once take up to %s of this machine's %s",
            min(at_once, len(jobs)),
            gigabytes(together),
            gigabytes(total),
        )


@dataclass
class Forecast:
    """Forecasts the memory of one job by a trial; returns bytes of the host and of each GPU."""

    forecast_memory: Callable[[DictConfig, Path], tuple[int, int]]
    config: DictConfig
    state: dict[Any, Any]
    folder: Path

    def __call__(self) -> tuple[int, int]:
        """Try the job."""
        begin_quietly(self.state)
        return self.forecast_memory(config_of_task(self.config), self.folder)


def forecasts(
    batch: Batch, jobs: Sequence[Job], *, elsewhere: bool
) -> list[tuple[int, int] | None]:
    """The bytes that each job needs, of the host and of each GPU; None where that is unknown.

    The task function may have these attributes: ``forecast_memory`` returns them, from a trial;
    ``size`` is equal for configs that need as much, of which one is tried.

    Raises:
        UserError: for the first job that cannot run on this machine, unless it runs ``elsewhere``.

    """
    task_function = batch.program.task_function
    forecast_memory = getattr(task_function, "forecast_memory", None)
    if forecast_memory is None:
        return [None] * len(jobs)
    sizes = [task_function.size(config_of_task(batch.configs[job.number])) for job in jobs]
    known: dict[str, tuple[int, int] | None] = {}
    for job, size in zip(jobs, sizes, strict=True):
        if size in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = batch.configs[job.number]
            forecast = Forecast(forecast_memory, config, hydra_state(), Path(folder))
            try:
                known[size] = call_in_process(forecast)
            except RuntimeError as error:
                if not (elsewhere or batch.is_search):
                    raise UserError(f"job {job.number} ({job.name}) cannot run: {error}") from error
                known[size] = None
    return [known[size] for size in sizes]


def gigabytes(size: int | None) -> str:
    """A number of bytes in powers of 1000; ``-`` for none, or if it is not known."""
    return "-" if not size else f"{size / 1e9:.2f} GB"
