"""What was run, what is missing of it, and why."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from research.launchers.show.rows import progress
from research.results.groups import Entry, Results
from research.results.notes import missing_seeds, twice
from research.results.report.document import Cell, Section, Table, count, joined

STATES = ("completed", "running", "preempted", "failed", "pending")


def overview_section(results: Results, names: Sequence[str]) -> Section:
    """The section; ``names`` are those of the entries, in their order."""
    if not results.entries:
        return Section("What was run", [summary(results)])
    blocks: list[str | Table] = [summary(results), seeds_table(results)]
    if lost := without_result(results, names):
        blocks.append(lost)
    else:
        blocks.append("No run failed, and none is missing.")
    blocks += [
        f"Note: {text}." for text in (*twice(results.entries), *missing_seeds(results.entries))
    ]
    running = [
        (str(entry.run.status["updated"]), name)
        for name, entry in zip(names, results.entries, strict=True)
        if entry.run and entry.state == "running"
    ]
    if running:
        time, name = min(running)
        blocks.append(
            "Running runs count with what they have logged so far. The oldest status among them "
            f"is that of {name}, written at {time}."
        )
    return Section("What was run", blocks)


def summary(results: Results) -> str:
    """The runs, groups, tasks and the metric in a sentence."""
    states = Counter(entry.state for entry in results.entries)
    parts = [f"{states[state]} {state}" for state in STATES if states[state]]
    found = (
        f"{count(len(results.entries), 'run')} ({', '.join(parts)}): "
        f"{count(len(results.groups), 'group')} by {joined(results.by)}, "
        f"on {count(len(results.tasks), 'task')} ({joined(results.tasks)})."
        if results.entries
        else "No runs, only published curves."
    )
    better = "more" if results.mode == "max" else "less"
    sources = dict.fromkeys(curve.group for curve in results.published)
    beside = f" Beside them are published curves: {joined(list(sources))}." if sources else ""
    return f"{found} The metric is {results.metric}, of which {better} is better.{beside}"


def seeds_table(results: Results) -> Table:
    """How many seeds each group has on each task."""
    rows = [
        [Cell(group), *(seeds_cell(results, task, group) for task in results.tasks)]
        for group in results.groups
    ]
    title = "Seeds with a result, of those planned or begun"
    return Table(title, ("group", *results.tasks), rows)


def seeds_cell(results: Results, task: str, group: str) -> Cell:
    """``5``, or ``4 of 5`` if one has no result."""
    planned = [entry for entry in results.entries if (entry.task, entry.group) == (task, group)]
    if not planned:
        return Cell("-")
    good = [entry for entry in planned if is_good(entry)]
    whole = len(good) == len(planned)
    text = str(len(good)) if whole else f"{len(good)} of {len(planned)}"
    return Cell(text, len(good), "" if whole else "failed")


def is_good(entry: Entry) -> bool:
    """Whether a run has a curve, and is at its end or on its way."""
    return entry.curve is not None and entry.state in ("completed", "running")


def scores_of(results: Results, task: str, group: str) -> np.ndarray:
    """The scores of a group's runs on a task that are at their end or on their way."""
    found = [entry.score for entry in results.select(task, group) if is_good(entry)]
    return np.array([score for score in found if score is not None])


def without_result(results: Results, names: Sequence[str]) -> Table | None:
    """The runs that failed, were stopped, never began or have no curve, with the reason."""
    rows = [
        [
            Cell(name),
            Cell(entry.task),
            Cell(entry.group),
            seed_cell(entry),
            Cell(entry.state, state=entry.state),
            Cell(progress(entry.run.status) if entry.run else "-"),
            Cell(reason_of(entry)),
        ]
        for name, entry in zip(names, results.entries, strict=True)
        if not is_good(entry)
    ]
    columns = ("run", "task", "group", "seed", "state", "steps", "reason")
    title = "Failed, stopped, missing or without a curve; a curve counts as far as it goes"
    return Table(title, columns, rows) if rows else None


def seed_cell(entry: Entry) -> Cell:
    """The seed of a run."""
    return Cell("-") if entry.seed is None else Cell(str(entry.seed), entry.seed)


def reason_of(entry: Entry) -> str:
    """Why a run has no result, as far as that is known."""
    reason = entry.run.status["exit_reason"] if entry.run and entry.state != "completed" else None
    return "; ".join(filter(None, (reason, entry.problem))) or "-"
