"""The curves of every task, and the scores at their ends."""

from collections.abc import Mapping, Sequence

from research.launchers.plan.names import safe
from research.launchers.show.table import written
from research.results.figure import label_of
from research.results.groups import Results
from research.results.lines import Line
from research.results.notes import interpolated, of_unequal_length, unused
from research.results.published import Published
from research.results.report.aggregate import interval_cell
from research.results.report.document import Cell, Figure, Gallery, Section, Series, Table
from research.results.report.drawing import draw_lines
from research.results.report.overview import scores_of
from research.results.statistics import iqm, mean, stratified_bootstrap

X_LABELS = {
    "step": "environment steps",
    "frames": "frames (environment steps times action repeat)",
    "updates": "updates of the algorithm",
    "epoch": "epochs",
    "seconds": "seconds of training",
}


def curves_section(
    results: Results, lines: Sequence[Line], colours: Mapping[str, str], smooth: float | None
) -> Section:
    """The section.

    Args:
        results: of ``gather``.
        lines: of these results.
        colours: of the groups and of the sources of published curves.
        smooth: width of the moving average that the lines are; None: they are none.

    """
    numbers = {label: number for number, label in enumerate(colours)}
    figures = [task_figure(results, task, lines, numbers, colours) for task in results.tasks]
    legend = [(number, label, colours[label]) for label, number in numbers.items()]
    blocks: list[str | Table | Gallery] = [
        *explanations(results, lines, smooth),
        Gallery([figure for figure in figures if figure.series], legend),
    ]
    if results.entries:
        blocks.append(scores_table(results))
    return Section("Curves", blocks)


def explanations(results: Results, lines: Sequence[Line], smooth: float | None) -> list[str]:
    """What the lines and the bands are."""
    average = f", a moving average over {smooth:,g} {results.x}" if smooth else ""
    points = [len(line.x) for line in lines]
    sizes = f" up to {max(points)} points" if points else ""
    notes = [
        *of_unequal_length(results, lines),
        *interpolated(lines, results.x),
        *unused(results),
    ]
    texts = [
        f"Mean over seeds of {results.metric}{average}, at{sizes} of {results.x}, with 95 % "
        "intervals by the bootstrap over seeds. Dotted, without an interval: the mean of the "
        "others where some seed has no value, since it ends earlier. A run that failed or was "
        "stopped counts as far as it goes; its last value is no score.",
        *(f"Note: {note}." for note in notes),
    ]
    if results.published:
        texts.append(
            "Dashed: published curves, with the standard error of the mean where it was published, "
            "which is narrower than a 95 % interval."
        )
    return texts


def task_figure(
    results: Results,
    task: str,
    lines: Sequence[Line],
    numbers: Mapping[str, int],
    colours: Mapping[str, str],
) -> Figure:
    """The curves of a task, those of others dashed."""
    own = [
        Series(
            numbers[line.group],
            line.group,
            line.x,
            line.estimate,
            line.low if line.num_runs > 1 else (),
            line.high if line.num_runs > 1 else (),
            colours[line.group],
            is_whole=line.is_whole.tolist(),
        )
        for line in lines
        if line.task == task
    ]
    others = [
        published_series(curve, numbers[curve.group], colours[curve.group])
        for curve in results.published
        if curve.task == task
    ]
    return draw_lines(
        f"curves_{results.tasks.index(task)}_{safe(task)}",
        f"{task}: {results.metric}, mean over seeds and 95 % interval",
        [*own, *others],
        heading=task.replace("_", " "),
        x_label=x_label(results),
        y_label=label_of(results.metric),
    )


def x_label(results: Results) -> str:
    """What x is; the steps of a run without an environment are its updates."""
    configs = [entry.values for entry in results.entries if entry.values]
    has_pace = any(c.get("trainer.pace", "None") != "None" for c in configs)
    if results.x == "step" and configs and not has_pace:
        return X_LABELS["updates"]
    return X_LABELS[results.x]


def published_series(curve: Published, number: int, colour: str) -> Series:
    """A published curve, with the standard error of its mean."""
    low, high = curve.mean - curve.error, curve.mean + curve.error
    return Series(number, curve.group, curve.frames, curve.mean, low, high, colour, is_dashed=True)


def scores_table(results: Results) -> Table:
    """The last value of every curve, over the seeds of each group on each task."""
    rows = []
    for task in results.tasks:
        for group in results.groups:
            found = scores_of(results, task, group)
            if len(found):
                cells = [interval_cell(stratified_bootstrap([found], each)) for each in (mean, iqm)]
                ends = [float(found.min()), float(found.max())]
                cells += map(Cell, written(ends), ends)
                seeds = Cell(str(len(found)), len(found))
                rows.append([Cell(task), Cell(group), seeds, *cells])
    columns = ("task", "group", "seeds", "mean", "IQM", "min", "max")
    return Table(f"{results.metric} at the end of each curve, 95 % intervals", columns, rows)
