"""Statistics over all tasks and seeds, as Agarwal et al. 2021 (https://arxiv.org/abs/2108.13264)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from research.launchers.show.table import written
from research.results.report.document import Cell, Figure, Gallery, Section, Series, Table, joined
from research.results.report.drawing import draw_lines, in_style, new_axes, shortened
from research.results.statistics import (
    Interval,
    Statistic,
    bootstrap_improvement,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    stratified_bootstrap,
)

NUM_THRESHOLDS = 101


class Group(NamedTuple):
    """The scores of a group.

    Attributes:
        label: its name.
        colour: of its lines.
        scores: those of its runs (R_t,) for each task.

    """

    label: str
    colour: str
    scores: Mapping[str, np.ndarray]


def aggregate_section(
    groups: Sequence[Group],
    *,
    metric: str,
    mode: str,
    normalisation: str | None,
    baseline: str | None,
) -> Section:
    """The section over all tasks.

    Args:
        groups: their scores, normalised if ``normalisation`` says how.
        metric: name of the score.
        mode: ``max`` if a larger score is better, ``min`` if a smaller one is.
        normalisation: in words; None: scores of different tasks cannot be compared.
        baseline: label of the group that the others are compared with.

    """
    tasks = sorted({task for group in groups for task in group.scores})
    whole = [group for group in groups if len(group.scores) == len(tasks)]
    parts = [group.label for group in groups if len(group.scores) < len(tasks)]
    blocks: list[str | Table | Gallery] = [*limits(groups, tasks, metric, normalisation)]
    if parts:
        blocks.append(f"Without a score on some task, and so not in this section: {joined(parts)}.")
    is_comparable = len(tasks) == 1 or normalisation is not None
    if whole and is_comparable:
        found = statistics(whole, is_normalised=normalisation is not None)
        blocks += [
            statistics_table(whole, found),
            Gallery(statistics_figures(whole, found, metric)),
        ]
    figures = []
    if whole and is_comparable and mode == "max":
        figures.append(profile_figure(whole, metric, is_normalised=normalisation is not None))
    others = [group for group in whole if group.label != baseline]
    if baseline in parts:
        blocks.append(f"Nothing is compared with {baseline}, which lacks a score on some task.")
    elif baseline is not None and others:
        table, figure = improvement(whole, baseline, mode=mode)
        blocks.append(table)
        figures.append(figure)
    elif len(whole) > 1:
        names = joined([group.label for group in whole[:5]])
        blocks.append(f"baseline=... adds the probability of improvement over a group ({names}).")
    if figures:
        blocks.append(Gallery(figures, legend_of(whole)))
    return Section("Over all tasks" if len(tasks) > 1 else "Over all seeds", blocks)


def limits(
    groups: Sequence[Group], tasks: Sequence[str], metric: str, normalisation: str | None
) -> list[str]:
    """What these numbers mean, and what cannot be said from so few runs."""
    fewest = min((len(known) for group in groups for known in group.scores.values()), default=0)
    lines = []
    if len(tasks) == 1:
        lines.append(
            f"There is one task, {tasks[0]}: nothing is said about others, and the statistics "
            "are over its seeds alone."
        )
    if normalisation is not None:
        lines.append(f"Score: {metric}, {normalisation}.")
        known = np.concatenate([values for group in groups for values in group.scores.values()])
        if known.min() < 0 or known.max() > 1:
            lines.append(
                f"Some normalised scores lie outside 0 to 1 ({known.min():.3g} to "
                f"{known.max():.3g}): see whether this normalisation fits the tasks."
            )
    elif len(tasks) > 1:
        lines.append(
            f"{metric} is not normalised, so its values on different tasks cannot be averaged; "
            "normalise=... gives the statistics over all tasks. The table of each task is above."
        )
    if fewest == 1:
        lines.append(
            "A group with one seed on each task has no interval, and one with a single seed on "
            "some of them has one that is too narrow: a difference between groups may be chance."
        )
    elif fewest < 5:
        lines.append(
            f"With {fewest} seeds on a task, a bootstrap interval is narrower than it should be; "
            "five or more are better."
        )
    lines.append(
        "Intervals are 95 % percentile intervals of 2,000 bootstrap samples, in which the runs "
        "are drawn again within each task. They are not corrected for the number of comparisons."
    )
    return lines


def statistics(groups: Sequence[Group], *, is_normalised: bool) -> dict[str, list[Interval]]:
    """An interval for each group, by the name of the statistic."""
    chosen: dict[str, Statistic] = {"IQM": iqm, "median": median, "mean": mean}
    if is_normalised:
        chosen["optimality gap"] = optimality_gap
    return {
        name: [stratified_bootstrap(list(group.scores.values()), statistic) for group in groups]
        for name, statistic in chosen.items()
    }


def statistics_table(groups: Sequence[Group], found: Mapping[str, Sequence[Interval]]) -> Table:
    """A row for each group, a column for each statistic."""
    rows = []
    for index, group in enumerate(groups):
        runs = sum(map(len, group.scores.values()))
        cells = [interval_cell(intervals[index]) for intervals in found.values()]
        rows.append([Cell(group.label), Cell(str(runs), runs), *cells])
    return Table("Statistics with 95 % intervals", ("group", "runs", *found), rows)


def interval_cell(interval: Interval) -> Cell:
    """``0.81 (0.75 to 0.86)``, sorted by the estimate."""
    low, value, high = map(float, interval)
    if np.isnan(low):
        return Cell(written([value])[0], value)
    texts = written([value, low, high])
    return Cell(f"{texts[0]} ({texts[1]} to {texts[2]})", value)


def statistics_figures(
    groups: Sequence[Group], found: Mapping[str, Sequence[Interval]], metric: str
) -> list[Figure]:
    """A figure of intervals for each statistic."""
    notes = {
        "IQM": "mean of the middle half of all runs",
        "median": "median over tasks of the mean over runs",
        "mean": "mean over tasks and runs",
        "optimality gap": "mean shortfall from 1; less is better",
    }
    return [
        interval_figure(
            f"statistic_{name.replace(' ', '_')}",
            f"{name}: {notes[name]}",
            groups,
            intervals,
            f"{name} of {metric}",
        )
        for name, intervals in found.items()
    ]


@in_style
def interval_figure(
    name: str,
    title: str,
    groups: Sequence[Group],
    intervals: Sequence[Interval],
    x_label: str,
    *,
    is_probability: bool = False,
) -> Figure:
    """An interval for each group, below each other, a probability with a line at 0.5."""
    drawing, axes = new_axes(4.6, 0.9 + 0.28 * len(groups))
    for place, (group, interval) in enumerate(zip(groups, intervals, strict=True)):
        low, estimate, high = map(float, interval)
        axes.plot(
            [low, high], [place, place], lw=7, alpha=0.35, color=group.colour, solid_capstyle="butt"
        )
        axes.plot([estimate], [place], "|", markersize=13, markeredgewidth=2, color=group.colour)
    if is_probability:
        axes.axvline(0.5, color="#7f7f7f", lw=1, linestyle=":")
        axes.set_xlim(0, 1)
    axes.set_yticks(range(len(groups)), [shortened(group.label, 30) for group in groups])
    axes.set(xlabel=x_label, ylim=(len(groups) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    return Figure(name, title, drawing)


def profile_figure(groups: Sequence[Group], metric: str, *, is_normalised: bool) -> Figure:
    """The share of runs above each score."""
    known = [values for group in groups for values in group.scores.values()]
    seen = np.concatenate([*known, [0.0, 1.0] if is_normalised else []])
    low, high = seen.min(), seen.max()
    margin = 0.02 * (high - low) or 1.0
    thresholds = np.linspace(low - margin, high + margin, NUM_THRESHOLDS)
    lines = []
    for number, group in enumerate(groups):
        statistic = partial(performance_profile, thresholds=thresholds)
        share = stratified_bootstrap(list(group.scores.values()), statistic)
        lines.append(
            Series(number, group.label, thresholds, share.estimate, *bounds(share), group.colour)
        )
    return draw_lines(
        "performance_profile",
        "The share of runs, each task of equal weight, whose score is above the one on the axis",
        lines,
        heading="Performance profile",
        x_label=f"{metric}, normalised" if is_normalised else metric,
        y_label="share of runs above it",
    )


def bounds(interval: Interval) -> tuple[Sequence[float], Sequence[float]]:
    """The bounds of an interval; empty if it has none."""
    if np.isnan(interval.low).all():
        return (), ()
    return interval.low.tolist(), interval.high.tolist()


def improvement(groups: Sequence[Group], baseline: str, *, mode: str) -> tuple[Table, Figure]:
    """The probability that a run of each group is better than one of the baseline."""
    others = [group for group in groups if group.label != baseline]
    base = next(group for group in groups if group.label == baseline)
    sign = 1 if mode == "max" else -1
    tasks = sorted(base.scores)
    intervals = [
        bootstrap_improvement(
            [sign * group.scores[task] for task in tasks],
            [sign * base.scores[task] for task in tasks],
        )
        for group in others
    ]
    rows = [
        [Cell(group.label), interval_cell(interval)]
        for group, interval in zip(others, intervals, strict=True)
    ]
    title = (
        f"Probability that a run is better than one of {baseline} on the same task, each task of "
        "equal weight; 0.5 is no difference"
    )
    x_label = f"P(better than {shortened(baseline, 24)})"
    figure = interval_figure("improvement", title, others, intervals, x_label, is_probability=True)
    return Table(title, ("group", "probability"), rows), figure


def legend_of(groups: Sequence[Group]) -> list[tuple[int, str, str]]:
    """Number, label and colour of each group."""
    return [(number, group.label, group.colour) for number, group in enumerate(groups)]
