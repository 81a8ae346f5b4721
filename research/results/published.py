"""Curves that others have published, in CSV files."""

import csv
import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.errors import UserError

COLUMNS = ("task", "env_steps", "mean_return", "std_return", "n_seeds")


class Published(NamedTuple):
    """The mean return over seeds of one task.

    Attributes:
        group: who published it; the name of the file.
        task: such as ``cheetah_run``.
        frames: environment steps, those that an action repeat adds included, (T,).
        mean: (T,).
        error: standard error of the mean, (T,); NaN if one seed, or no deviation, was published.
        num_seeds: the smallest number.

    """

    group: str
    task: str
    frames: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    num_seeds: int


def read_published(path: Path) -> list[Published]:
    """The curves in a file with the columns ``task,env_steps,mean_return,std_return,n_seeds``.

    Raises:
        UserError: it is no such file, or a number in it is missing or not finite.

    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise UserError(
            f"{path} holds no published curves: its columns must be {','.join(COLUMNS)}"
        )
    points: dict[str, list[list[float]]] = {}
    for number, row in enumerate(rows, 2):
        points.setdefault(row["task"], []).append(to_point(row, f"{path}, line {number}"))
    return [as_curve(path.stem, task, np.array(sorted(rows))) for task, rows in points.items()]


def to_point(row: dict[str, str], place: str) -> list[float]:
    """The numbers of a row; a deviation that is left out is NaN."""
    point = []
    for name in COLUMNS[1:]:
        text = row[name] or ""
        try:
            value = math.nan if name == "std_return" and not text else float(text)
        except ValueError as error:
            raise UserError(f"{place}: {name} must be a number, got {text!r}") from error
        if not math.isfinite(value) and text:
            raise UserError(f"{place}: {name} must be finite, got {text}")
        point.append(value)
    if point[-1] < 1:
        raise UserError(f"{place}: n_seeds must be at least 1, got {row['n_seeds']}")
    return point


def as_curve(group: str, task: str, points: np.ndarray) -> Published:
    """The curve of a task from its points (T, 4)."""
    frames, mean, std, num_seeds = points.T
    error = np.where(num_seeds > 1, std / np.sqrt(num_seeds), np.nan)
    return Published(group, task, frames, mean, error, int(num_seeds.min()))


def check_comparable(
    published: Sequence[Published], metric: str, x: str, *, is_repeated: bool
) -> None:
    """Check that published curves may stand beside those of runs.

    Args:
        published: the curves.
        metric: of the runs.
        x: of the runs.
        is_repeated: whether a step of some run is several frames.

    Raises:
        UserError: they may not, or two files of one name hold the same task.

    """
    if not published:
        return
    if x != "frames" and (x != "step" or is_repeated):
        raise UserError(f"published curves are over frames; x={x} is something else")
    if metric.partition("/")[2] != "return":
        raise UserError(f"published curves are of returns, not of {metric}")
    ((curve, count),) = Counter((each.group, each.task) for each in published).most_common(1)
    if count > 1:
        raise UserError(f"two files named {curve[0]}.csv hold a curve of {curve[1]}; rename one")


def named_apart(published: Sequence[Published], groups: Collection[str]) -> list[Published]:
    """The curves, under other names where a group of runs has the same."""
    return [
        curve._replace(group=f"{curve.group}.csv") if curve.group in groups else curve
        for curve in published
    ]
