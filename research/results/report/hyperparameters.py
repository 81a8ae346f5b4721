"""What the hyperparameters of a sweep do to its score."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from research.launchers.plan.names import labels, safe
from research.launchers.show.table import written
from research.results.figure import label_of
from research.results.keys import to_number
from research.results.report.aggregate import interval_cell
from research.results.report.document import Cell, Figure, Gallery, Section, Series, Table
from research.results.report.drawing import add_legend, colours, draw_lines, in_style, new_axes
from research.results.report.parallel import (
    MOST_NAMES,
    are_numbers,
    ordered,
    parallel_figure,
    spans_decades,
)
from research.results.statistics import Interval, mean, stratified_bootstrap

MOST_ROWS = 20
"""Combinations that the table of the best shows."""


class Trial(NamedTuple):
    """A run with a score: its task, its values of the keys that vary, and the score."""

    task: str
    varies: Mapping[str, str]
    score: float


def hyperparameters_section(trials: Sequence[Trial], *, metric: str, mode: str) -> Section | None:
    """The section for the keys that vary besides seed and task; None if there are none.

    Args:
        trials: the runs that have a score.
        metric: name of the score.
        mode: ``max`` if a larger score is better, ``min`` if a smaller one is.

    """
    keys = [key for key in varied(trials) if key != "seed"]
    if not keys:
        return None
    tasks = sorted({trial.task for trial in trials})
    names = labels(keys)
    blocks: list[str | Table | Gallery] = [
        f"Score: {metric} at the end, of which {'more' if mode == 'max' else 'less'} is better. A "
        "marginal mean is over all runs with that value, whatever their other values; where a "
        "sweep is no full grid, it mixes the effects of several keys.",
        best_table(trials, keys, names, mode=mode),
    ]
    for key in keys:
        if len(values_of(trials, key)) <= MOST_NAMES:
            blocks.append(marginal_table(trials, key, tasks, mode=mode))
    figures = [
        marginal_figure(f"hyperparameter_{number}_{safe(names[key])}", trials, key, tasks, metric)
        for number, key in enumerate(keys)
    ]
    tints = colours(len(tasks))
    groups = [(number, task, tints[number]) for number, task in enumerate(tasks)]
    blocks.append(Gallery(figures, groups if len(tasks) > 1 else ()))
    if len(keys) > 1:
        parallel = [
            parallel_figure(
                f"parallel_{number}_{safe(task)}", task, runs_of(trials, task, keys), metric
            )
            for number, task in enumerate(tasks)
        ]
        blocks.append(Gallery(parallel, is_wide=True))
    return Section("Hyperparameters", blocks)


def varied(trials: Sequence[Trial]) -> list[str]:
    """The keys with several values, in their order."""
    keys = dict.fromkeys(key for trial in trials for key in trial.varies)
    return [key for key in keys if len({trial.varies.get(key) for trial in trials}) > 1]


def runs_of(
    trials: Sequence[Trial], task: str, keys: Sequence[str]
) -> list[tuple[dict[str, str], float]]:
    """The values of the keys, and the score, of each run of a task."""
    own = [trial for trial in trials if trial.task == task]
    return [({key: trial.varies.get(key, "-") for key in keys}, trial.score) for trial in own]


def values_of(trials: Sequence[Trial], key: str) -> list[str]:
    """The values of a key, in their order."""
    return ordered(trial.varies.get(key, "-") for trial in trials)


def scores_at(trials: Sequence[Trial], task: str, key: str, value: str) -> list[float]:
    """The scores of a task's runs that have this value of a key."""
    own = [trial for trial in trials if trial.task == task]
    return [trial.score for trial in own if trial.varies.get(key, "-") == value]


def best_table(
    trials: Sequence[Trial], keys: Sequence[str], names: Mapping[str, str], *, mode: str
) -> Table:
    """The best combinations of each task, by the mean over their seeds."""
    rows = []
    for task in sorted({trial.task for trial in trials}):
        found: dict[tuple[str, ...], list[float]] = {}
        for values, score in runs_of(trials, task, keys):
            found.setdefault(tuple(values.values()), []).append(score)
        ranked = sorted(found.items(), key=lambda each: fmean(each[1]), reverse=mode == "max")
        for rank, (combination, scores) in enumerate(ranked[:MOST_ROWS], 1):
            cells = map(value_cell, (str(rank), *combination, str(len(scores))))
            rows.append([Cell(task), *cells, *spread(scores)])
    title = f"The best combinations of each task, at most {MOST_ROWS}, by the mean over seeds"
    columns = ("task", "rank", *(names[key] for key in keys), "seeds", "mean", "min", "max")
    return Table(title, columns, rows)


def value_cell(text: str) -> Cell:
    """A value, sorted as a number if it is one."""
    return Cell(text, to_number(text))


def spread(known: Sequence[float]) -> list[Cell]:
    """Mean, smallest and largest."""
    values = [fmean(known), min(known), max(known)]
    return list(map(Cell, written(values), values))


def marginal_table(trials: Sequence[Trial], key: str, tasks: Sequence[str], *, mode: str) -> Table:
    """The mean score for each value of a key, for each task, the best marked."""
    values = values_of(trials, key)
    columns = ["value"]
    cells: list[list[Cell]] = [[value_cell(value)] for value in values]
    for task in tasks:
        groups = [scores_at(trials, task, key, value) for value in values]
        best = (max if mode == "max" else min)(fmean(group) for group in groups if group)
        columns += [f"{task}: runs", f"{task}: mean (95 % interval)"]
        for row, group in zip(cells, groups, strict=True):
            cell = interval_cell(interval_of(group)) if group else Cell("-")
            mark = ", best" if group and fmean(group) == best else ""
            row += [value_cell(str(len(group))), cell._replace(text=cell.text + mark)]
    return Table(f"{key}: mean over all runs with that value", columns, cells)


def interval_of(scores: Sequence[float]) -> Interval:
    """The mean of some scores, and its interval."""
    return stratified_bootstrap([np.array(scores)], mean)


def marginal_figure(
    name: str, trials: Sequence[Trial], key: str, tasks: Sequence[str], metric: str
) -> Figure:
    """The score over the values of a key, a line for each task; points if it has many values."""
    values = values_of(trials, key)
    if are_numbers(values):
        return scatter_figure(name, trials, key, tasks, metric)
    tints, lines = colours(len(tasks)), []
    for index, task in enumerate(tasks):
        groups = [scores_at(trials, task, key, value) for value in values]
        kept = [(place, group) for place, group in enumerate(groups) if group]
        low, middle, high = np.array([interval_of(group) for _, group in kept]).T
        places = [place for place, _ in kept]
        lines.append(Series(index, task, places, middle, low, high, tints[index]))
    title = f"{key}: mean and 95 % interval over all runs with that value"
    return draw_lines(
        name, title, lines, heading=key, x_label=key, y_label=label_of(metric), ticks=values
    )


@in_style
def scatter_figure(
    name: str, trials: Sequence[Trial], key: str, tasks: Sequence[str], metric: str
) -> Figure:
    """A point for each run."""
    drawing, axes = new_axes()
    numbers = [to_number(trial.varies.get(key, "")) or 0.0 for trial in trials]
    for index, (task, tint) in enumerate(zip(tasks, colours(len(tasks)), strict=True)):
        points = [
            (x, trial.score) for x, trial in zip(numbers, trials, strict=True) if trial.task == task
        ]
        axes.plot(
            *zip(*points, strict=True),
            "o",
            markersize=4,
            color=tint,
            label=task,
            gid=f"group-{index}",
        )
    if spans_decades(numbers):
        axes.set_xscale("log")
    axes.set(title=key, xlabel=key, ylabel=label_of(metric))
    if len(tasks) > 1:
        add_legend(axes)
    return Figure(name, f"{key}: each run", drawing)
