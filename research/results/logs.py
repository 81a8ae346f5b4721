"""The numbers that a run has logged, read without loading a long log as a whole."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from research.errors import DamagedFile, UserError, did_you_mean
from research.training.records.clock import HEADER, Clock

LONG_BYTES = 2**20
"""A longer log is not read as a whole."""

MAX_BLANKS = 20
"""Rows in a row without the metric after which the search for one ends."""


class Curve(NamedTuple):
    """A metric over the course of a run.

    Attributes:
        x: one of the clock's columns, increasing, float64 (T,).
        y: the metric, finite, float64 (T,).

    """

    x: np.ndarray
    y: np.ndarray


def read_curve(folder: Path, metric: str, x: str = "step", max_rows: int = 2000) -> Curve:
    """A metric of a run, as far as it is logged.

    Rows without a value for the metric are left out, and so is a row that is being written. Of a
    log with more rows than ``max_rows``, as many are read, evenly spaced, with the first and last.
    Of rows with the same x the last counts.

    Args:
        folder: the run directory.
        metric: such as ``eval/return``, which is the column ``return`` of ``eval.csv``.
        x: ``step``, ``frames``, ``updates``, ``epoch`` or ``seconds``.
        max_rows: at least 2.

    Raises:
        UserError: the run has not logged the metric, or a value is not finite.
        DamagedFile: a row is damaged.

    """
    check_clock(x)
    group, _, name = metric.partition("/")
    path = folder / f"{group}.csv"
    columns = columns_of(path)
    if name not in columns or name in Clock._fields:
        known = metrics_of(folder)
        there = f"it has {', '.join(known)}" if known else "it has logged nothing yet"
        raise UserError(f"{folder} has not logged {metric}; {there}{did_you_mean(metric, known)}")
    rows = read_rows(path, columns, columns.index(name), max_rows)
    places = [columns.index(each) for each in (x, name)]
    points = np.array([[to_float(row[place], row, path) for place in places] for row in rows])
    points = points.reshape(-1, 2)
    if (bad := np.flatnonzero(~np.isfinite(points[:, 1]))).size:
        step = rows[bad[0]][0].decode()
        raise UserError(f"{folder}: {metric} is {points[bad[0], 1]} at step {step}")
    points = points[np.argsort(points[:, 0], kind="stable")]
    is_last = np.append(np.diff(points[:, 0]) > 0, True)[: len(points)]
    return Curve(points[is_last, 0], points[is_last, 1])


def metrics_of(folder: Path) -> list[str]:
    """The metrics that a run has logged, such as ``eval/return``."""
    paths = sorted(path for path in folder.glob("*.csv") if path.is_file())
    return [
        f"{path.stem}/{name}"
        for path in paths
        for name in columns_of(path)
        if name not in Clock._fields
    ]


def check_clock(x: str) -> None:
    """Raise ``UserError`` unless ``x`` is a column that every log has."""
    if x not in Clock._fields:
        allowed = ", ".join(Clock._fields)
        raise UserError(f"x={x}; allowed: {allowed}{did_you_mean(x, Clock._fields)}")


def columns_of(path: Path) -> list[str]:
    """The columns of a log; none if there is no such log."""
    try:
        with path.open("rb") as file:
            line = file.readline(LONG_BYTES)
    except FileNotFoundError:
        return []
    is_log = line.startswith(HEADER) and line.endswith(b"\n")
    return line.decode(errors="replace").strip().split(",") if is_log else []


def read_rows(path: Path, columns: list[str], place: int, max_rows: int) -> list[list[bytes]]:
    """At most ``max_rows`` rows of a log that have a value in the column ``place``."""
    with path.open("rb", buffering=4096) as file:
        file.readline()
        begin, end = file.tell(), os.fstat(file.fileno()).st_size
        if end - begin <= LONG_BYTES:
            lines: Iterable[bytes] = file.read(end - begin).splitlines(keepends=True)
        else:
            lines = spaced_lines(file, place, np.linspace(begin, last_line(file, end), max_rows))
        rows = [split(line, columns, path) for line in lines if line.endswith(b"\n")]
    rows = [row for row in rows if row[place]]
    if len(rows) <= max_rows:
        return rows
    return [rows[index] for index in np.linspace(0, len(rows) - 1, max_rows).round().astype(int)]


def spaced_lines(file: IO[bytes], place: int, offsets: np.ndarray) -> Iterator[bytes]:
    """The lines at these offsets or, if they have no value in ``place``, after them; each once."""
    done = -1
    for offset in offsets.astype(int).tolist():
        file.seek(max(offset - 1, 0))
        file.readline()  # to the start of a line
        for _ in range(MAX_BLANKS):
            start, line = file.tell(), file.readline()
            if start <= done or not line:
                continue
            done = start
            cells = line.split(b",")
            if len(cells) > place and cells[place].strip():
                yield line
                break


def last_line(file: IO[bytes], end: int) -> int:
    """The offset of the last whole line of a long file that has ``end`` bytes."""
    start = end - LONG_BYTES // 16
    file.seek(start)
    whole = file.read(end - start).rpartition(b"\n")[0]
    return start + whole.rfind(b"\n") + 1


def split(line: bytes, columns: list[str], path: Path) -> list[bytes]:
    """The cells of a row.

    Raises:
        DamagedFile: there are too few or too many.

    """
    cells = line.strip().split(b",")
    if len(cells) != len(columns):
        raise DamagedFile(
            f"{path}: a row has {len(cells)} cells, not {len(columns)}: {shown(line)}"
        )
    return cells


def to_float(cell: bytes, row: list[bytes], path: Path) -> float:
    """The number in a cell."""
    try:
        return float(cell)
    except ValueError as error:
        raise DamagedFile(f"{path}: a row is damaged: {shown(b','.join(row))}") from error


def shown(line: bytes) -> str:
    """The start of a damaged line, printable."""
    return repr(line[:60].decode(errors="replace"))
