"""A sweep as text: the table to watch, the summary at the end, and ``sweep.csv``."""

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from research.files import write_whole
from research.launchers.plan.names import labels
from research.launchers.show.rows import (
    Row,
    counts,
    keys_of,
    number,
    printable,
    progress,
    seconds_between,
    speed,
    time_left,
)

URGENCY = ("running", "failed", "preempted", "pending", "completed")
NUMBER = re.compile(r"-|[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)
SHORT = 8
"""Minimum width of names while other columns can be left out."""


class Column(NamedTuple):
    """The cells under a title; a table that is too wide loses its extra columns, the last first."""

    title: str
    cells: Sequence[str]
    right: bool = True
    is_name: bool = False
    is_extra: bool = False


def aligned(columns: Sequence[Column], width: int) -> list[str]:
    """A line of titles and a line for each row, none wider than ``width``.

    If that is too narrow, columns move together, names are shortened, then columns are left out.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def total(gap: int, longest: int) -> int:
        sizes = [(max(map(cell_len, c.cells)), longest if c.is_name else width) for c in kept]
        return sum(gap + min(size, most) for size, most in sizes) - gap

    kept = [c._replace(cells=[*map(printable, (c.title, *c.cells))]) for c in columns]
    for column in [column for column in reversed(kept) if column.is_extra]:
        if total(1, SHORT) > width:
            kept.remove(column)
    grid = Table.grid(padding=(0, 2 if total(2, width) <= width else 1, 0, 0), pad_edge=False)
    for column in kept:
        # rich narrows the columns that may wrap; no_wrap of their cells then cuts them instead.
        justify = "right" if column.right else "left"
        grid.add_column(justify=justify, no_wrap=not column.is_name)
    # One cell for each column: a cell for each of its lines would take four times as long.
    grid.add_row(*(Text("\n".join(c.cells), no_wrap=True, overflow="ellipsis") for c in kept))
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(grid)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def table(rows: Sequence[Row], *, width: int, height: int | None = None) -> list[str]:
    """A line for each job under a line of titles, then a line that counts their states.

    Args:
        rows: the jobs.
        width: no line is wider; names are shortened, then columns left out.
        height: no more lines than this; when there are more jobs, the running come first.

    """
    shown, last = rows, counts(rows, width=width)
    if height is not None and len(rows) + 1 + len(last) > height:
        num_shown = max(0, height - 1 - len(counts(rows, width=width, num_shown=0)))
        shown = sorted(rows, key=lambda row: URGENCY.index(row.status["state"]))[:num_shown]
        last = counts(rows, width=width, num_shown=num_shown)[:height]
    return [*(aligned(live_columns(shown), width) if shown else []), *last]


def summary(rows: Sequence[Row], *, mode: Literal["max", "min"] | None = None) -> list[str]:
    """A table of what varies and the score, over seeds if there are several, then the counts.

    Args:
        rows: the jobs.
        mode: whether a high or a low score is best; the best line is then marked.

    """
    seeds = {row.varies["seed"] for row in rows if "seed" in row.varies}
    columns, scores = seed_columns(rows) if len(seeds) > 1 else job_columns(rows)
    known = [score for score in scores if score is not None]
    if mode and known:
        best = max(known) if mode == "max" else min(known)
        marks = ["best" if score == best else "" for score in scores]
        columns.append(Column("", marks, right=False))
    return [*(aligned(columns, width=200) if rows else []), *counts(rows)]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Replace ``path`` by a table of all jobs; unknown values are empty."""
    keys = keys_of(rows)
    fields = ("state", "score", "step", "attempt", "seconds", "exit_reason", "folder")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *keys, *fields])
    for row in rows:
        ended = row.status["ended"] or row.status["updated"]
        seconds = seconds_between(row.status["started"], ended)
        folder = os.path.relpath(row.folder, path.parent) if row.folder else None
        known = {**row.status, "seconds": seconds, "folder": folder}
        varies = [row.varies.get(key) for key in keys]
        writer.writerow([row.number, *varies, *(known[field] for field in fields)])
    write_whole(path, text.getvalue())


def live_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns for the table of a running sweep."""
    statuses = [row.status for row in rows]
    total_size = max(len(progress({**status, "step": 0})) for status in statuses)
    attempts = [str(status["attempt"] or "-") for status in statuses]
    devices = [row.device or "-" for row in rows]
    return [
        *name_columns(rows),
        Column("state", [status["state"] for status in statuses], right=False),
        # Wide enough from the start, so that a number that changes moves nothing.
        Column("step".rjust(4 + total_size), [*map(progress, statuses)], is_extra=True),
        Column("ETA".rjust(5), [*map(time_left, statuses)], is_extra=True),
        Column("speed".rjust(7), [*map(speed, statuses)], is_extra=True),
        Column("score", written([number(status["score"]) for status in statuses])),
        Column("device", devices, right=False, is_name=True, is_extra=True),
        Column("attempt", attempts, is_extra={*attempts} <= {"-", "1"}),
    ]


def name_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns for the job's number and what varies."""
    columns = [Column("job", [str(row.number) for row in rows])]
    for key, label in labels(keys_of(rows)).items():
        cells = [row.varies.get(key, "-") for row in rows]
        columns.append(Column(label, cells, all(map(NUMBER.fullmatch, cells)), is_name=True))
    return columns


def job_columns(rows: Sequence[Row]) -> tuple[list[Column], list[float | None]]:
    """The columns for each job, with state and score; and the scores of completed jobs."""
    columns = name_columns(rows)
    columns.append(Column("state", [row.status["state"] for row in rows], right=False))
    columns.append(Column("score", written([number(row.status["score"]) for row in rows])))
    return columns, [next(iter(final_scores([row])), None) for row in rows]


def seed_columns(rows: Sequence[Row]) -> tuple[list[Column], list[float | None]]:
    """The columns for all seeds of the same values, with failures and scores; and the means."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        rest = tuple((key, value) for key, value in row.varies.items() if key != "seed")
        groups.setdefault(rest, []).append(row)
    names = [group[0]._replace(varies=dict(rest)) for rest, group in groups.items()]
    states = [Counter(row.status["state"] for row in group) for group in groups.values()]
    scores = [final_scores(group) for group in groups.values()]
    columns = name_columns(names)[1:]
    have_lists = any(row.varies.get("seed", "").startswith("[") for row in rows)
    title = "jobs" if have_lists else "seeds"
    columns.append(Column(title, [f"{s['completed']}/{s.total()}" for s in states]))
    columns.append(Column("failed", [str(s["failed"]) for s in states]))
    # A score that is no number (a run that diverged) must not be hidden in a mean.
    unknown = [s["completed"] - len(known) for s, known in zip(states, scores, strict=True)]
    if any(unknown):
        columns.append(Column("no score", [str(count) for count in unknown]))
    means = [math.fsum(known) / len(known) if known else None for known in scores]
    lows = [min(known, default=None) for known in scores]
    highs = [max(known, default=None) for known in scores]
    cells = iter(written([*means, *lows, *highs]))
    for title in ("mean", "min", "max"):
        columns.append(Column(title, [*islice(cells, len(groups))]))
    return columns, means


def final_scores(rows: Iterable[Row]) -> list[float]:
    """The known scores of the jobs that completed."""
    scores = [number(row.status["score"]) for row in rows if row.status["state"] == "completed"]
    return [score for score in scores if score is not None]


def written(scores: Sequence[float | None]) -> list[str]:
    """The scores as text: four digits of the largest, as many decimals for all; ``-`` for None."""
    largest = max((abs(score) for score in scores if score is not None), default=0.0)
    style = ".1f"
    if largest:
        power = math.floor(math.log10(largest))
        style = f".{max(3 - power, 0)}f" if -4 <= power < 7 else ".3e"
    return [format(score, style) if score is not None else "-" for score in scores]
