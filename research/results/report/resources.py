"""The time and memory that every run took, as far as it logged them."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from research.launchers.show.rows import progress, seconds_between, span
from research.results.logs import columns_of
from research.results.report.document import Cell, Section, Table
from research.results.runs import StoredRun
from research.training.records.clock import Clock

TAIL_BYTES = 2**14
"""The end of a log that is read, however long it is."""

NO_PHASES = {*Clock._fields, "steps_per_s"}


def resources_section(runs: Mapping[str, StoredRun]) -> Section:
    """Time and memory of each run, by its name."""
    tails = {name: last_rows(run.folder / "time.csv") for name, run in runs.items()}
    columns = list(dict.fromkeys(key for tail in tails.values() for row in tail for key in row))
    phases = [key for key in columns if key not in NO_PHASES and not key.endswith("_gb")]
    phases.sort(key=lambda phase: phase == "other")
    memory = [key for key in columns if key.endswith("_gb")]
    rows = [
        [
            Cell(name),
            Cell(run.status["state"], state=run.status["state"]),
            Cell(progress(run.status), run.status["step"]),
            *durations(run, tails[name]),
            *(share(tails[name], phase) for phase in phases),
            *(peak(tails[name], key) for key in memory),
        ]
        for name, run in runs.items()
    ]
    titles = ["run", "state", "steps", "training time", "steps per second", "last attempt"]
    peaks = [f"{key.removesuffix('_gb')} (GB)" for key in memory]
    note = (
        "Training time is that of all attempts, as the run logged it; the last attempt also holds "
        "its start and its end. The shares are of the wall clock, over the last rows of time.csv."
    )
    if not memory:
        note += " These runs did not log their memory."
    return Section("Time and memory", [note, Table("Each run", [*titles, *phases, *peaks], rows)])


def durations(run: StoredRun, tail: list[dict[str, float]]) -> list[Cell]:
    """Training time, mean speed, and the time from start to end of the last attempt."""
    seconds, step = (tail[-1].get("seconds"), tail[-1].get("step")) if tail else (None, None)
    speed = step / seconds if seconds and step is not None else None
    ended = run.status["ended"] or run.status["updated"]
    attempt = seconds_between(run.status["started"], ended)
    return [
        Cell("-" if seconds is None else span(seconds), seconds),
        Cell("-" if speed is None else f"{speed:.3g}", speed),
        Cell("-" if attempt is None else span(attempt), attempt),
    ]


def share(tail: list[dict[str, float]], phase: str) -> Cell:
    """The share of the time that a phase took."""
    if not tail:
        return Cell("-")
    mean = sum(row.get(phase, 0.0) for row in tail) / len(tail)
    return Cell(f"{mean:.1%}", mean)


def peak(tail: list[dict[str, float]], key: str) -> Cell:
    """The largest value of a column."""
    largest = max((row[key] for row in tail if key in row), default=None)
    return Cell("-" if largest is None else f"{largest:.2f}", largest)


def last_rows(path: Path) -> list[dict[str, float]]:
    """The last rows of a log, its empty cells left out; none if there is no such log."""
    columns = columns_of(path)
    if not columns:
        return []
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines(keepends=True)
    # The first is the header, or cut; the last may be in writing.
    whole = [line for line in lines[1:] if line.endswith("\n")]
    return [as_numbers(columns, row) for row in csv.reader(whole) if len(row) == len(columns)]


def as_numbers(columns: list[str], row: list[str]) -> dict[str, float]:
    """A row by column, without the cells that are no numbers."""
    found = {}
    for key, text in zip(columns, row, strict=True):
        try:
            found[key] = float(text)
        except ValueError:
            continue
    return found
