"""Logs as CSV files, one for each group of metrics."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from research.errors import UserError
from research.files import append, write_whole
from research.training.records.clock import HEADER, Clock


class Table:
    """A log as CSV: it grows by rows and, when a metric is new, by columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        content = path.read_bytes() if path.exists() else b""
        if content and not content.startswith(HEADER):
            raise UserError(f"{path} is in the way: it does not start with {HEADER.decode()}")
        # The machine may have stopped in the middle of the last row.
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            write_whole(path, whole)
        if whole:
            self.columns = whole.splitlines()[0].decode().split(",")

    def add(self, row: Mapping[str, int | float]) -> None:
        """Append ``row``; a column it lacks stays empty, and floats read back exactly."""
        new = [name for name in row if name not in self.columns]
        if new:
            self.widen(new)
        cells = [str(row[name]) if name in row else "" for name in self.columns]
        append(self.path, (",".join(cells) + "\n").encode())

    def widen(self, names: list[str]) -> None:
        """Add columns, empty in the rows there are."""
        columns = self.columns + names
        rows = self.path.read_text().splitlines()[1:] if self.columns else []
        lines = [",".join(columns), *(row + "," * len(names) for row in rows)]
        write_whole(self.path, "".join(f"{line}\n" for line in lines))
        self.columns = columns

    def drop_after(self, step: int) -> None:
        """Remove the rows of later steps, and rows that a power cut damaged."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        form = re.compile(rb"(\d{1,19})(,[\w.+-]*){%d}\r?\n" % (len(self.columns) - 1))
        matches = filter(None, map(form.fullmatch, lines[1:]))
        kept = lines[:1] + [match[0] for match in matches if int(match[1]) <= step]
        if len(kept) < len(lines):
            write_whole(self.path, b"".join(kept))


def find_logs(run_dir: Path) -> list[Path]:
    """The logs in a run directory; other CSV files are left out."""
    paths = sorted(path for path in run_dir.glob("*.csv") if path.is_file())
    return [path for path in paths if path.read_bytes().startswith(HEADER)]


def read_points(run_dir: Path) -> list[tuple[Clock, dict[str, float]]]:
    """All that the logs hold as points ``group/metric``, in the order in which it was logged.

    Rows of several groups with the same clock make one point.
    """
    points: dict[Clock, dict[str, float]] = {}
    for path in find_logs(run_dir):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                numbers = [row.pop(name) for name in Clock._fields]
                clock = Clock(*map(int, numbers[:-1]), seconds=float(numbers[-1]))
                scalars = {f"{path.stem}/{name}": float(row[name]) for name in row if row[name]}
                points.setdefault(clock, {}).update(scalars)
    return sorted(points.items(), key=lambda point: (point[0].step, point[0].seconds))
