"""What a sweep would do: every job, its directory, its slot and its memory, all checked."""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from research.errors import UserError
from research.launchers.plan.batch import (
    Batch,
    begin_quietly,
    call_in_process,
    config_of_task,
    state,
)
from research.launchers.plan.job import hydra_state
from research.launchers.plan.ledger import Job
from research.machine.gpus import slot_environment
from research.machine.slots import Slot

LIMIT_S = 300.0
"""Seconds for the trial of a job; an episode may never end."""

log = logging.getLogger(__name__)


def is_dry_run(batch: Batch) -> bool:
    """Whether the sweeper was asked for a dry run."""
    return bool(batch.program.config.hydra.sweeper.get("dry_run", False))


def show_plan(
    batch: Batch, jobs: Sequence[Job], places: Sequence[str], slots: Sequence[Slot]
) -> None:
    """Print the jobs that would run.

    Args:
        batch: has the jobs.
        jobs: those that would run; they are checked first.
        places: where each of them would start.
        slots: of this machine, for so many jobs at once; none if they run elsewhere.

    Raises:
        UserError: for the first job that cannot run.

    """
    batch.check(jobs, elsewhere=not slots)
    memory = forecasts(batch, jobs, slots)
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
    numbers = {job.number for job in jobs}
    others = [job for job in batch.unique_jobs() if job.number not in numbers]
    completed = sum(state(job) == "completed" for job in others)
    queued = f", {len(others) - completed} in the queue" if completed < len(others) else ""
    told = "%d jobs would run in %s, %d completed%s"
    log.info(told, len(jobs), batch.plan.folder, completed, queued)
    known = [needed[0] for needed in memory if needed is not None]
    if slots and known:
        together = sum(sorted(known)[-len(slots) :])
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        log.info(
            "%d at once take up to %s of this machine's %s",
            min(len(slots), len(jobs)),
            gigabytes(together),
            gigabytes(total),
        )
    elif known:
        log.info("the memory is what jobs take on this machine's device, not on a node's")


@dataclass
class Forecast:
    """Forecasts the memory of one job by a trial.

    Returns bytes of the host and of each GPU, or one line if the job cannot run.
    """

    forecast_memory: Callable[..., tuple[int, int]]
    config: DictConfig
    state: dict[Any, Any]
    folder: Path
    elsewhere: bool

    def __call__(self) -> tuple[int, int] | str:
        """Try the job."""
        begin_quietly(self.state)
        try:
            with config_of_task(self.config) as config:
                return self.forecast_memory(config, self.folder, elsewhere=self.elsewhere)
        except UserError as error:
            return str(error)


def forecasts(
    batch: Batch, jobs: Sequence[Job], slots: Sequence[Slot]
) -> list[tuple[int, int] | None]:
    """The bytes that each job needs, of the host and of each GPU; None where that is unknown.

    The task function may have these attributes: ``forecast_memory`` returns them, from a trial;
    ``size`` is equal for configs that need as much, of which one is tried, in the first slot.

    Raises:
        UserError: for the first job that cannot run in a slot of this machine.

    """
    task_function = batch.program.task_function
    forecast_memory = getattr(task_function, "forecast_memory", None)
    if forecast_memory is None or not jobs:
        return [None] * len(jobs)
    sizes = []
    for job in jobs:
        with config_of_task(batch.configs[job.number]) as config:
            sizes.append(task_function.size(config))
    log.info("trying %d of %d jobs, for their memory", len(set(sizes)), len(jobs))
    known: dict[str, tuple[int, int] | None] = {}
    for job, size in zip(jobs, sizes, strict=True):
        if size not in known:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                forecast = Forecast(
                    forecast_memory,
                    batch.configs[job.number],
                    hydra_state(),
                    Path(folder),
                    elsewhere=not slots,
                )
                known[size] = try_job(forecast, job, slots)
    return [known[size] for size in sizes]


def try_job(forecast: Forecast, job: Job, slots: Sequence[Slot]) -> tuple[int, int] | None:
    """The answer of a forecast; None if it takes too long, or fails for jobs that run elsewhere.

    Raises:
        UserError: it fails in a slot of this machine; a bug's traceback is on stderr.

    """
    place: dict[str, Any] = {}
    if slots:
        environ = {**os.environ, **slot_environment(slots[0], os.environ)}
        place = {"environ": environ, "cpus": slots[0].cpus}
    with tempfile.TemporaryFile() as printed:
        try:
            answer = call_in_process(forecast, log=printed.fileno(), within_s=LIMIT_S, **place)
        except TimeoutError:
            return None
        except RuntimeError as error:
            answer = str(error)
            if slots:
                printed.seek(0)
                sys.stderr.write(printed.read().decode(errors="replace"))
    if not isinstance(answer, str):
        return answer
    if slots:
        raise UserError(f"job {job.number} ({job.name}) cannot run: {answer}")
    return None


def gigabytes(size: int | None) -> str:
    """A number of bytes in powers of 1000; ``-`` for none, or if it is not known."""
    return "-" if not size else f"{size / 1e9:.2f} GB"
