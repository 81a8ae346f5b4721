"""A sweep as text: the table to watch, the summary at the end, and ``sweep.csv``."""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from research.files import write_whole
from research.launchers.plan.names import labels
from research.launchers.show.columns import Column, aligned, fits, painted
from research.launchers.show.rows import (
    Row,
    counts,
    keys_of,
    number,
    progress,
    seconds_between,
    speed,
    time_left,
)

URGENCY = ("running", "failed", "preempted", "pending", "completed")


def table(
    rows: Sequence[Row], *, width: int, height: int | None = None, colour: bool = False
) -> list[str]:
    """A line for each job under a line of titles, then a line that counts their states.

    Args:
        rows: the jobs.
        width: no line is wider; names are shortened, then columns left out.
        height: no more lines than this; when there are more jobs, the running come first.
        colour: paint what failed and completed, for a terminal.

    """

    def counted(num_shown: int) -> list[str]:
        return counts(rows, width=width, num_shown=num_shown)

    shown = list(rows)
    if height is not None and len(rows) + 1 + len(counted(len(rows))) > height:
        shown = sorted(rows, key=lambda row: URGENCY.index(row.status["state"]))[:height]
        while shown and len(shown) + 1 + len(counted(len(shown))) > height:
            shown.pop()
    lines = aligned(live_columns(shown, width), width=width, colour=colour) if shown else []
    last = counted(len(shown))
    return [*lines, *(painted(line) if colour else line for line in last)][:height]


def summary(
    rows: Sequence[Row], *, mode: Literal["max", "min"] | None = None, width: int = 200
) -> list[str]:
    """What varies against the score, over seeds if there are several, then the counts.

    Args:
        rows: the jobs.
        mode: whether a high or a low score is best; the best line is then marked.
        width: no line is wider.

    """
    columns, scores = seed_columns(rows) if has_seeds(rows) else job_columns(rows)
    known = [score for score in scores if score is not None]
    if mode and known:
        best = max(known) if mode == "max" else min(known)
        marks = ["best" if score == best else "" for score in scores]
        columns.append(Column("", marks, right=False))
    return [*(aligned(columns, width=width) if rows else []), *counts(rows, width=width)]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Replace ``path`` by a table of all jobs; what is not known is empty."""
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


def live_columns(rows: Sequence[Row], width: int) -> list[Column]:
    """What the table of a running sweep shows, devices in short where ``width`` is short."""
    statuses = [row.status for row in rows]
    attempts = [str(status["attempt"] or "-") for status in statuses]
    total_size = max(len(progress({**status, "step": 0})) for status in statuses)
    columns = [
        *name_columns(rows),
        Column("state", [status["state"] for status in statuses], right=False),
        Column("step", [progress(status) for status in statuses], rank=5, least=4 + total_size),
        Column("ETA", [time_left(status) for status in statuses], rank=4, least=5),
        Column("speed", [speed(status) for status in statuses], rank=2, least=7),
        Column("score", written([number(status["score"]) for status in statuses])),
        Column("device", [row.device or "-" for row in rows], right=False, is_name=True, rank=1),
        Column("attempt", attempts, rank=3),
    ]
    if not fits(columns, width):
        devices = [" ".join(row.device.split()[:2]) or "-" for row in rows]
        columns[-2] = columns[-2]._replace(cells=devices)
        if {*attempts} <= {"-", "1"}:
            del columns[-1]
    return columns


def name_columns(rows: Sequence[Row]) -> list[Column]:
    """The job's number and what varies."""
    columns = [Column("job", [str(row.number) for row in rows])]
    keys = keys_of(rows)
    for place, (key, label) in enumerate(labels(keys).items()):
        cells = [row.varies.get(key, "-") for row in rows]
        right = all(is_number(cell) or cell == "-" for cell in cells)
        # The seed stays longest, then the first key.
        rank = 6 + len(keys) - (0 if key == "seed" else place + 1)
        columns.append(Column(label, cells, right, is_name=True, rank=rank))
    return columns


def job_columns(rows: Sequence[Row]) -> tuple[list[Column], list[float | None]]:
    """Each job's state and score; and the scores that are final."""
    columns = name_columns(rows)
    columns.append(Column("state", [row.status["state"] for row in rows], right=False))
    columns.append(Column("score", written([number(row.status["score"]) for row in rows])))
    return columns, [next(iter(final_scores([row])), None) for row in rows]


def seed_columns(rows: Sequence[Row]) -> tuple[list[Column], list[float | None]]:
    """The scores of completed jobs over seeds, failures counted; and their means."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        rest = tuple((key, value) for key, value in row.varies.items() if key != "seed")
        groups.setdefault(rest, []).append(row)
    names = [group[0]._replace(varies=dict(rest)) for rest, group in groups.items()]
    states = [Counter(row.status["state"] for row in group) for group in groups.values()]
    scores = [final_scores(group) for group in groups.values()]
    columns = name_columns(names)[1:]
    columns.append(Column("seeds", [f"{s['completed']}/{s.total()}" for s in states]))
    columns.append(Column("failed", [str(s["failed"]) for s in states]))
    # A score that is no number (a run that diverged) must not pass unseen in a mean.
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


def has_seeds(rows: Sequence[Row]) -> bool:
    """Whether jobs differ in their seed."""
    return len({row.varies["seed"] for row in rows if "seed" in row.varies}) > 1


def written(scores: Sequence[float | None]) -> list[str]:
    """Four digits of the largest score, and as many decimals for the others; ``-`` for None."""
    largest = max((abs(score) for score in scores if score is not None), default=0.0)
    style = ".1f"
    if largest:
        power = math.floor(math.log10(largest))
        style = f".{max(3 - power, 0)}f" if -4 <= power < 7 else ".3e"
    return [format(score, style) if score is not None else "-" for score in scores]


def is_number(text: str) -> bool:
    """Whether ``text`` reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
