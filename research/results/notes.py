"""What a reader of results has to know: runs that are missing or unfinished, and other oddities."""

from collections.abc import Iterator, Sequence

import numpy as np

from research.launchers.show.rows import amount, progress
from research.results.groups import Entry, Results
from research.results.keys import INCIDENTAL, differing
from research.results.lines import Line

MAX_NAMED = 3
"""Runs that a note names."""


def notes_on(results: Results, lines: Sequence[Line]) -> list[str]:
    """A line for each thing that is odd."""
    return [
        *without_curve(results.entries),
        *unfinished(results.entries),
        *twice(results.entries),
        *missing_seeds(results.entries),
        *of_unequal_length(results, lines),
        *interpolated(lines, results.x),
        *unused(results),
    ]


def without_curve(entries: Sequence[Entry]) -> Iterator[str]:
    """What is wrong with the runs that are left out."""
    problems: dict[str, list[str]] = {}
    for entry in entries:
        if entry.problem is not None:
            text = entry.problem.removeprefix(str(entry.folder)).lstrip(": ")
            problems.setdefault(text, []).append(str(entry.folder))
    for text, folders in problems.items():
        yield f"left out: {several(folders)}: {text}"


def unfinished(entries: Sequence[Entry]) -> Iterator[str]:
    """The runs that have not completed, and how far they are."""
    names = [
        f"{entry.folder} ({entry.state}, {progress(entry.run.status)} steps)"
        for entry in entries
        if entry.run and entry.curve and entry.state != "completed"
    ]
    if names:
        total = sum(entry.curve is not None for entry in entries)
        yield f"{len(names)} of {total} runs have not completed: {several(names)}"


def twice(entries: Sequence[Entry]) -> Iterator[str]:
    """The groups that have a seed more than once, and what these runs differ in."""
    groups: dict[tuple[str, str], dict[tuple[str, int | None], list[Entry]]] = {}
    for entry in entries:
        if entry.curve is not None:
            seeds = groups.setdefault((entry.group, entry.task), {})
            seeds.setdefault((str(entry.values.get("env")), entry.seed), []).append(entry)
    for place, seeds in groups.items():
        again = {seed: runs for (_, seed), runs in seeds.items() if len(runs) > 1}
        if again:
            differences = [differing([run.values for run in runs]) for runs in again.values()]
            keys = dict.fromkeys(key for keys in differences for key in keys)
            keys = [key for key in keys if not key.startswith(INCIDENTAL)]
            folders = several([str(run.folder) for run in next(iter(again.values()))])
            yield (
                f"{name(*place)} has seed {', '.join(map(str, again))} more than once: {folders} "
                + (f"differ in {', '.join(keys)}" if keys else "have the same config")
            )


def missing_seeds(entries: Sequence[Entry]) -> Iterator[str]:
    """The seeds that a group has on one task and not on another."""
    seeds: dict[str, dict[str, set[int]]] = {}
    for entry in entries:
        if entry.seed is not None:
            seeds.setdefault(entry.group, {}).setdefault(entry.task, set()).add(entry.seed)
    for group, tasks in seeds.items():
        known = set().union(*tasks.values())
        for task, there in tasks.items():
            if known > there:
                lacking = ", ".join(map(str, sorted(known - there)))
                yield f"{name(group, task)} has no run of seed {lacking}, unlike other tasks"


def of_unequal_length(results: Results, lines: Sequence[Line]) -> Iterator[str]:
    """The groups whose runs end at different x, and up to where all of them reach."""
    for line in lines:
        ends = {
            str(entry.folder): entry.curve.x[-1]
            for entry in results.select(line.task, line.group)
            if entry.curve is not None
        }
        if min(ends.values()) < 0.99 * max(ends.values()):
            shortest = min(ends, key=lambda folder: ends[folder])
            yield (
                f"{name(line.group, line.task)}: all {len(ends)} runs reach {results.x} "
                f"{amount(ends[shortest])}, where {shortest} ends; the longest reaches "
                f"{amount(max(ends.values()))}; dotted beyond, without an interval"
            )


def interpolated(lines: Sequence[Line], x: str) -> Iterator[str]:
    """The groups whose runs have different points."""
    names = [name(line.group, line.task) for line in lines if line.is_interpolated]
    if names:
        points = max(len(line.x) for line in lines if line.is_interpolated)
        yield (
            f"{several(names)}: interpolated linearly between points of {x} that differ from run "
            f"to run, at up to {points} points; grid=N sets the distance between two"
        )


def unused(results: Results) -> Iterator[str]:
    """The published curves that are of none of the tasks."""
    for group in dict.fromkeys(curve.group for curve in results.published):
        tasks = {curve.task for curve in results.published if curve.group == group}
        if not tasks & set(results.tasks):
            yield (
                f"{group} has no curve of {' or '.join(results.tasks)}; "
                f"it has {', '.join(sorted(tasks))}"
            )


def hidden(lines: Sequence[Line], *, xscale: str, yscale: str | None) -> Iterator[str]:
    """The groups of which a logarithmic axis does not show all."""
    for axis, scale in (("x", xscale), ("y", yscale)):
        names = [
            name(line.group, line.task)
            for line in lines
            if np.nanmin(line.x if axis == "x" else line.estimate) <= 0
        ]
        if scale == "log" and names:
            yield f"{several(names)}: {axis}scale=log does not show values of 0 or below"


def name(group: str, task: str) -> str:
    """A line of a panel."""
    return f"{group} on {task}" if task else group


def several(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
