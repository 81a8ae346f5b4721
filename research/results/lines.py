"""The curves of a group of runs as one line with an interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from research.results.groups import Entry, Results, grid_of, on_grid
from research.results.logs import Curve
from research.results.statistics import Statistic, mean, stratified_bootstrap


class Line(NamedTuple):
    """A statistic of the runs of a group over the course of training.

    Attributes:
        task: the panel.
        group: whose runs these are.
        x: (T,).
        low: lower bound of the interval (T,); NaN where a run has no value, and for a single seed.
        estimate: the statistic (T,), of the runs that have a value there.
        high: upper bound of the interval, as ``low``.
        is_whole: whether every run has a value there (T,).
        num_envs: environments in the panel.
        num_runs: the smallest number of any environment.
        is_interpolated: whether some run has other points than ``x``.

    """

    task: str
    group: str
    x: np.ndarray
    low: np.ndarray
    estimate: np.ndarray
    high: np.ndarray
    is_whole: np.ndarray
    num_envs: int
    num_runs: int
    is_interpolated: bool


def lines_of(
    results: Results,
    *,
    statistic: Statistic = mean,
    every: float | None = None,
    smooth: float | None = None,
    confidence: float = 0.95,
) -> list[Line]:
    """A line for each group of each task that has a curve.

    If a panel holds several environments, the statistic is over all of them, and the bootstrap is
    stratified by environment.

    Args:
        results: of ``gather``.
        statistic: such as ``iqm``.
        every: distance between two points of a line; None: as ``grid_of`` chooses.
        smooth: width of a centred moving average, in the unit of x; None: none.
        confidence: of the interval.

    """
    lines = []
    for task in results.tasks:
        for group in results.groups:
            entries = results.select(task, group)
            if entries:
                lines.append(line_of(entries, statistic, every, smooth, confidence))
    return lines


def line_of(
    entries: Sequence[Entry],
    statistic: Statistic,
    every: float | None,
    smooth: float | None,
    confidence: float,
) -> Line:
    """The line of the runs of one group; see ``lines_of``."""
    strata: dict[str, list[Curve]] = {}
    for entry in entries:
        assert entry.curve is not None
        curve = smoothed(entry.curve, smooth) if smooth else entry.curve
        strata.setdefault(str(entry.values.get("env")), []).append(curve)
    curves = [curve for stratum in strata.values() for curve in stratum]
    grid = grid_of(curves, every)
    values = [on_grid(stratum, grid).T for stratum in strata.values()]
    is_whole = np.asarray(np.isfinite(np.concatenate(values, axis=1)).all(axis=1))
    low, estimate, high = np.full((3, len(grid)), np.nan)
    if is_whole.any():
        whole = [stratum[is_whole] for stratum in values]
        interval = stratified_bootstrap(whole, statistic, confidence=confidence)
        low[is_whole], estimate[is_whole], high[is_whole] = interval
    if len(values) == 1:  # of several environments, some would be left out
        for index in np.flatnonzero(~is_whole):
            there = values[0][index][np.isfinite(values[0][index])]
            estimate[index] = statistic([there]) if there.size else np.nan
    return Line(
        task=entries[0].task,
        group=entries[0].group,
        x=grid,
        low=low,
        estimate=estimate,
        high=high,
        is_whole=is_whole,
        num_envs=len(strata),
        num_runs=min(map(len, strata.values())),
        is_interpolated=any(is_between(curve, grid) for curve in curves),
    )


def is_between(curve: Curve, grid: np.ndarray) -> bool:
    """Whether some of the grid's points lie between points of the curve."""
    inside = grid[(grid >= curve.x[0]) & (grid <= curve.x[-1])]
    return not np.isin(inside, curve.x).all()


def smoothed(curve: Curve, width: float) -> Curve:
    """The mean of the points within half of ``width`` around each point."""
    first = np.searchsorted(curve.x, curve.x - width / 2, side="left")
    last = np.searchsorted(curve.x, curve.x + width / 2, side="right")
    sums = np.concatenate([[0.0], curve.y.cumsum()])
    return Curve(curve.x, (sums[last] - sums[first]) / (last - first))
