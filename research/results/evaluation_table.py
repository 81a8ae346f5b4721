"""Evaluations of runs as tables."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.launchers.show.table import Column, aligned, written
from research.results.history import Evaluated

MAX_CLASSES = 20
"""A confusion matrix with more is not printed; ``evaluation.json`` has it."""


def evaluation_table(evaluated: Mapping[Path, Evaluated], width: int) -> list[str]:
    """A line for each run, under a line of titles; empty without runs."""
    if not evaluated:
        return []
    rows = list(evaluated.values())
    columns = [
        Column("run", short_names(list(evaluated)), right=False, is_name=True),
        Column("step", [str(row.settings["step"]) for row in rows]),
        *amounts(rows),
        *return_columns([row.results.get("return") for row in rows]),
        *metric_columns([metrics_of(row) for row in rows]),
    ]
    return aligned(columns, width)


def amounts(rows: Sequence[Evaluated]) -> list[Column]:
    """The columns for the number of episodes or examples, as far as there are any."""
    episodes = [row.settings.get("episodes") for row in rows]
    examples = [row.results.get("examples") for row in rows]
    columns = {"episodes": episodes, "examples": examples}
    return [
        Column(title, ["-" if cell is None else str(cell) for cell in cells])
        for title, cells in columns.items()
        if any(cells)
    ]


def return_columns(returns: Sequence[Mapping[str, Any] | None]) -> list[Column]:
    """The columns for mean, median and interquartile mean of the returns, if there are any."""
    if not any(returns):
        return []
    names = ("mean", "median", "iqm", "iqm_low", "iqm_high")
    texts = {name: numbers(returns, lambda row, name=name: row[name]) for name in names}
    pairs = zip(texts["iqm_low"], texts["iqm_high"], strict=True)
    return [
        Column("return", texts["mean"]),
        Column("median", texts["median"]),
        Column("IQM", texts["iqm"]),
        Column(
            "95 % of IQM", ["-" if "-" in pair else f"{pair[0]} to {pair[1]}" for pair in pairs]
        ),
    ]


def metrics_of(row: Evaluated) -> dict[str, float]:
    """All other numbers of a row."""
    found = {name: row.results[name] for name in ("rmse", "mae", "r2") if name in row.results}
    return {name: v for name, v in (row.results["metrics"] | found).items() if name != "return"}


def metric_columns(metrics: Sequence[Mapping[str, float | None]]) -> list[Column]:
    """A column for each number that a run has."""
    names = dict.fromkeys(name for row in metrics for name in row)
    return [Column(name, numbers(metrics, lambda row, name=name: row.get(name))) for name in names]


def numbers(rows: Sequence[Any], number: Callable[[Any], float | None]) -> list[str]:
    """A number of each row as text; ``-`` where there is none."""
    found = [None if row is None else number(row) for row in rows]
    return written([x if x is not None and math.isfinite(x) else None for x in found])


def short_names(folders: Sequence[Path]) -> list[str]:
    """The names of directories without what they have in common."""
    if len(folders) == 1:
        return [str(folders[0])]
    common = os.path.commonpath([folder.absolute() for folder in folders])
    return [os.path.relpath(folder.absolute(), common) for folder in folders]


def confusion_table(evaluated: Mapping[Path, Evaluated], width: int) -> list[str]:
    """The confusion matrix of a single run with few classes; empty otherwise."""
    matrices = [row.results.get("confusion", []) for row in evaluated.values()]
    if len(matrices) != 1 or not 0 < len(matrices[0]) <= MAX_CLASSES:
        return []
    (matrix,) = matrices
    classes = [str(index) for index in range(len(matrix))]
    columns = [
        Column(title, [str(row[index]) for row in matrix]) for index, title in enumerate(classes)
    ]
    return ["", "target \\ predicted", *aligned([Column("", classes), *columns], width)]
