"""A report of runs, sweeps and published curves."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.errors import UserError, did_you_mean
from research.results.groups import Results, gather
from research.results.keys import group_keys, show
from research.results.lines import lines_of
from research.results.report.aggregate import Group, aggregate_section
from research.results.report.curves import curves_section
from research.results.report.document import Report, Section, count, joined
from research.results.report.drawing import colours
from research.results.report.hyperparameters import Trial, hyperparameters_section
from research.results.report.overview import is_good, overview_section, scores_of
from research.results.report.provenance import provenance_section
from research.results.report.resources import resources_section

MAX_ROWS = 500
"""Rows that are read of a log: more than a curve on a screen can show."""


class Scale(NamedTuple):
    """How the scores of all tasks are made comparable.

    Attributes:
        low: the score that becomes 0.
        high: the score that becomes 1.

    """

    low: float
    high: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The normalised scores."""
        return (scores - self.low) / (self.high - self.low)

    def describe(self) -> str:
        """In words, for a reader."""
        return f"normalised so that {self.low:g} is 0 and {self.high:g} is 1 on every task"


SCALES = {"dmc": Scale(0.0, 1000.0)}


def find_scale(text: str) -> Scale:
    """``dmc`` or ``LOW,HIGH``, as it was typed.

    Raises:
        UserError: it is neither.

    """
    if text in SCALES:
        return SCALES[text]
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise UserError(
            f"normalise={text} must be dmc (returns of the DeepMind Control Suite, 0 to 1000) or "
            f"two numbers LOW,HIGH{did_you_mean(text, SCALES)}"
        ) from error
    if not np.isfinite([low, high]).all() or low == high:
        raise UserError(f"normalise={text}: LOW and HIGH must be finite and differ")
    return Scale(low, high)


def make_report(
    paths: Sequence[str | os.PathLike[str]],
    *,
    made: str,
    metric: str | None = None,
    x: str | None = None,
    by: Sequence[str] = (),
    task: str = "env",
    filter: Sequence[str] = (),
    grid: float | None = None,
    smooth: float | None = None,
    baseline: str | None = None,
    normalise: str | None = None,
) -> Report:
    """The report of everything at ``paths``.

    Args:
        paths: as of ``gather``.
        made: when and how the report is made, for its first lines.
        metric: as of ``gather``.
        x: as of ``gather``.
        by: as of ``gather``.
        task: key of the config that makes a task.
        filter: as ``filters`` of ``gather``.
        grid: distance of the points of a curve; None: as ``grid_of`` chooses.
        smooth: width of a moving average of the curves, in the unit of x; None: none.
        baseline: the group that the others are compared with; None: none.
        normalise: see ``find_scale``; None: scores of different tasks are not averaged.

    Raises:
        UserError: a path holds neither, a name is unknown, or no run has logged the metric.

    """
    scale = find_scale(normalise) if normalise is not None else None
    results = gather(paths, metric=metric, x=x, by=by, col=task, filters=filter, max_rows=MAX_ROWS)
    if baseline is not None and baseline not in results.groups:
        known = ", ".join(results.groups)
        hint = did_you_mean(baseline, results.groups)
        raise UserError(f"baseline={baseline} is no group; there are {known}{hint}")
    lines = lines_of(results, every=grid, smooth=smooth)
    names = names_of([entry.folder for entry in results.entries])
    runs = {n: e.run for n, e in zip(names, results.entries, strict=True) if e.run is not None}
    labels = [*results.groups, *dict.fromkeys(each.group for each in results.published)]
    tints = dict(zip(labels, colours(len(labels)), strict=True))
    sections: list[Section | None] = [
        overview_section(results, names),
        curves_section(results, lines, tints, smooth),
        over_all(results, tints, scale, baseline),
        hyperparameters_of(results),
        resources_section(runs) if runs else None,
        provenance_section(runs) if runs else None,
    ]
    return Report(title_of(results), made, [section for section in sections if section])


def title_of(results: Results) -> str:
    """``12 runs of sac and td3 on 3 tasks``."""
    algs = sorted({str(e.values["alg"]) for e in results.entries if e.values.get("alg")})
    tasks = joined(results.tasks) if len(results.tasks) < 3 else count(len(results.tasks), "task")
    of = f" of {joined(algs)}" if algs else ""
    what = count(len(results.entries), "run") if results.entries else "Published curves"
    return f"{what}{of} on {tasks}"


def names_of(folders: Sequence[Path]) -> list[str]:
    """The part of each path that they do not all share."""
    if not folders:
        return []
    absolute = [os.path.abspath(folder) for folder in folders]
    shared = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, shared) for path in absolute]


def over_all(
    results: Results, tints: Mapping[str, str], scale: Scale | None, baseline: str | None
) -> Section | None:
    """The section of statistics over tasks; None without runs."""
    groups = []
    for label in results.groups:
        scores = {task: scores_of(results, task, label) for task in results.tasks}
        if scale:
            scores = {task: scale(values) for task, values in scores.items()}
        known = {task: values for task, values in scores.items() if len(values)}
        if known:
            groups.append(Group(label, tints[label], known))
    if not groups:
        return None
    return aggregate_section(
        groups,
        metric=results.metric,
        mode=results.mode,
        normalisation=scale.describe() if scale else None,
        baseline=baseline,
    )


def hyperparameters_of(results: Results) -> Section | None:
    """The section of hyperparameters; None if none varies within an algorithm."""
    good = [entry for entry in results.entries if is_good(entry) and entry.values]
    keys = group_keys([entry.values for entry in good])
    if not good or keys == ["alg"]:
        return None
    trials = [
        Trial(
            e.task, {key: show(e.values[key]) if key in e.values else "-" for key in keys}, e.score
        )
        for e in good
        if e.score is not None
    ]
    return hyperparameters_section(trials, metric=results.metric, mode=results.mode)
