"""The runs of an experiment in groups: one group per task and method, one run per seed."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from research.errors import UserError, did_you_mean
from research.results.find import Found, choose, find
from research.results.keys import find_key, group_keys, in_order, label, show, varying
from research.results.logs import Curve, check_clock, metrics_of, read_curve
from research.results.published import Published, check_comparable, named_apart, read_published
from research.results.runs import StoredRun

MAX_POINTS = 200
"""Points of a grid that is chosen for curves with different ones."""

MAX_GRID = 5000
"""Points of a grid that is asked for."""


class Entry(NamedTuple):
    """A run among others, or a job of a sweep that never began.

    Attributes:
        folder: the run directory.
        run: None if the directory holds none.
        task: the panel that it belongs to, usually a task.
        group: the line that it belongs to, usually a method; runs of a group differ in their seeds.
        seed: None if its config has none.
        state: ``pending``, ``running``, ``completed``, ``failed`` or ``preempted``.
        curve: of the metric; None if there is none, and ``problem`` says why.
        score: the last value of the curve; a run's own score may be that of its best evaluation.
        varies: the values of the hyperparameters that differ between these runs, as text.
        problem: why there is no curve, or None.
        values: all keys of its config and their values; empty if unknown.

    """

    folder: Path
    run: StoredRun | None
    task: str
    group: str
    seed: int | None
    state: str
    curve: Curve | None
    score: float | None
    varies: dict[str, str]
    problem: str | None
    values: dict[str, Any]


class Results(NamedTuple):
    """What was found in some directories and files.

    Attributes:
        metric: of the curves.
        x: what they are over, a column of the clock.
        by: the keys that make a group.
        mode: whether a high (``max``) or a low (``min``) metric is better.
        entries: in the order of tasks, groups and seeds.
        published: curves of others.

    """

    metric: str
    x: str
    by: list[str]
    mode: Literal["max", "min"]
    entries: list[Entry]
    published: list[Published]

    @property
    def tasks(self) -> list[str]:
        """The tasks of the runs or, if there are no runs, of the published curves."""
        return list(dict.fromkeys(each.task for each in self.entries or self.published))

    @property
    def groups(self) -> list[str]:
        """The groups of the runs, in their order."""
        ordered = sorted(self.entries, key=lambda entry: in_order(entry.values, self.by))
        return list(dict.fromkeys(entry.group for entry in ordered))

    def select(self, task: str, group: str) -> list[Entry]:
        """The runs of a group on a task that have a curve."""
        return [
            entry
            for entry in self.entries
            if (entry.task, entry.group) == (task, group) and entry.curve is not None
        ]


def gather(
    paths: Iterable[str | os.PathLike[str]],
    *,
    metric: str | None = None,
    x: str | None = None,
    by: Sequence[str] = (),
    col: str | None = "env",
    filters: Sequence[str] = (),
    max_rows: int = 2000,
) -> Results:
    """The runs, sweeps and published curves at ``paths``, in groups.

    Args:
        paths: directories of runs, of sweeps, or that hold such, and CSV files of published curves.
        metric: such as ``eval/return``; None: ``trainer.score.metric``.
        x: ``step``, ``frames``, ``updates``, ``epoch`` or ``seconds``; None: ``frames`` beside
            published curves, else ``step``.
        by: keys of the config, or ``alg``, that make a group; empty: ``alg``, and every key that
            differs between runs of one algorithm on one task.
        col: the key that makes a task; None: all runs make one.
        filters: conditions such as ``alg=td3``, all of which must hold.
        max_rows: that are read of a log.

    Raises:
        UserError: a path holds neither, a name is unknown, or no run has logged the metric.

    """
    paths = [Path(path) for path in paths]
    files = [path for path in paths if path.suffix == ".csv" and not path.is_dir()]
    published = [curve for path in dict.fromkeys(files) for curve in read_published(path)]
    found = choose(find(path for path in paths if path not in files), filters)
    known = [each.values for each in found if each.values]
    metric = metric or common_metric(found)
    x = x or ("frames" if published else "step")
    check_clock(x)
    col = find_key(col, known) if known and col else col
    own = [find_key(key, known) for key in by] if known else []
    by = own or [key for key in group_keys(known) if key != col] or ["alg"]
    names = varying(known)
    entries = [
        as_entry(each, try_curve(each, metric, x, max_rows), col, by, names) for each in found
    ]
    entries.sort(key=lambda entry: in_order(entry.values, [*([col] if col else []), *by, "seed"]))
    check_logged(entries, metric)
    repeats = {entry.values.get("env.action_repeat", 1) for entry in entries}
    check_comparable(published, metric, x, is_repeated=repeats != {1})
    published = named_apart(published, {entry.group for entry in entries})
    return Results(metric, x, by, common_mode(found, metric), entries, published)


def as_entry(
    found: Found,
    curve: Curve | str,
    col: str | None,
    by: Sequence[str],
    names: Sequence[str],
) -> Entry:
    """A run among others.

    Args:
        found: the run.
        curve: of the metric, or why there is none.
        col: the key that makes its task.
        by: the keys that make its group.
        names: the keys that differ between the runs.

    """
    values = found.values
    return Entry(
        folder=found.folder,
        run=found.run,
        task=show(values.get(col, "")) if col else "",
        group=label(values, by) if values else "",
        seed=values.get("seed"),
        state=found.run.status["state"] if found.run else "pending",
        curve=curve if isinstance(curve, Curve) else None,
        score=float(curve.y[-1]) if isinstance(curve, Curve) else None,
        varies={key: show(values.get(key)) for key in names},
        problem=None if isinstance(curve, Curve) else curve,
        values=values,
    )


def try_curve(found: Found, metric: str, x: str, max_rows: int) -> Curve | str:
    """The curve of a run, or why there is none."""
    if found.run is None:
        return found.problem or "it is no run"
    try:
        curve = read_curve(found.folder, metric, x, max_rows)
    except (UserError, OSError) as error:
        return str(error)
    return curve if curve.x.size else f"{metric} has no value yet"


def common_metric(found: Sequence[Found]) -> str:
    """The metric by which all runs choose their best checkpoint.

    Raises:
        UserError: they choose it by several.

    """
    runs = [each.run for each in found if each.run]
    names = Counter(OmegaConf.select(run.config, "trainer.score.metric") for run in runs)
    names = Counter({str(name): count for name, count in names.items() if name})
    if len(names) > 1:
        raise UserError(
            "the runs have different trainer.score.metric: "
            + ", ".join(f"{name} ({count})" for name, count in names.items())
            + "; name the metric"
        )
    return next(iter(names), "eval/return")


def common_mode(found: Sequence[Found], metric: str) -> Literal["max", "min"]:
    """Whether a high or a low metric is better: by ``trainer.score``, else by the metric's name."""
    scores = [OmegaConf.select(each.run.config, "trainer.score") for each in found if each.run]
    modes = {score.mode for score in scores if score and score.metric == metric}
    if len(modes) == 1:
        return modes.pop()
    return "min" if metric.endswith("loss") else "max"


def check_logged(entries: Sequence[Entry], metric: str) -> None:
    """Raise ``UserError`` if there are runs, but none has logged the metric."""
    if not entries or any(entry.curve for entry in entries):
        return
    names = {name for entry in entries if entry.run for name in metrics_of(entry.folder)}
    if metric in names or not names:
        reason = next(entry.problem for entry in entries)
        raise UserError(f"no run has a curve of {metric}; the first: {entries[0].folder}: {reason}")
    known = sorted(names)
    raise UserError(
        f"no run has logged {metric}; there are {', '.join(known)}{did_you_mean(metric, known)}"
    )


def grid_of(curves: Sequence[Curve], every: float | None = None) -> np.ndarray:
    """The x at which curves are compared, from where the first begins to where the last ends.

    Args:
        curves: at least one.
        every: distance of the points; None: where the curves have points, or ``MAX_POINTS`` at
            equal distances if those differ and are more.

    Raises:
        UserError: ``every`` is too small.

    """
    points = np.unique(np.concatenate([curve.x for curve in curves]))
    if every is not None:
        first, last = np.ceil(points[0] / every), np.floor(points[-1] / every)
        if not 0 <= last - first < MAX_GRID:
            text = f"a distance of {every:g} between points gives {last - first + 1:,.0f}"
            raise UserError(
                f"{text} of {points[0]:g} to {points[-1]:g}; 1 to {MAX_GRID:,} are allowed"
            )
        return np.arange(first, last + 1) * every
    if len(points) <= max(MAX_POINTS, *(curve.x.size for curve in curves)):
        return points
    return np.linspace(points[0], points[-1], MAX_POINTS)


def on_grid(curves: Sequence[Curve], grid: np.ndarray) -> np.ndarray:
    """The curves at common x, (R, len(grid)): linear between points, NaN outside of them."""
    return np.stack(
        [np.interp(grid, curve.x, curve.y, left=np.nan, right=np.nan) for curve in curves]
    )
