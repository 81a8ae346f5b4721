"""A figure of curves for a paper, by matplotlib."""

import importlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.errors import UserError, did_you_mean
from research.files import write_whole
from research.results.groups import Results
from research.results.lines import Line
from research.results.published import Published

FORMATS = ("pdf", "svg", "png")
MAX_COLUMNS = 4
MAX_INSIDE = 4
"""Lines up to which the legend of a single panel is in it."""

COLUMN_IN = 3.25
"""Width of a column of a paper of two, in inches."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart, without the pale yellow."""

DASHES = ("-", "-.", (0, (6, 1)))
PUBLISHED_DASHES = "--"
STYLE: Mapping[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.dpi": 200,
    "font.size": 8,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text, in a font that is embedded
    "ps.fonttype": 42,
    "savefig.dpi": 200,
    "svg.hashsalt": "research",  # the same figure has the same bytes
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
X_LABELS = {"step": "steps", "epoch": "epochs"}


def draw(
    results: Results,
    lines: Sequence[Line],
    path: Path,
    *,
    width_in: float | None = None,
    style: str | None = None,
    xscale: Literal["linear", "log"] = "linear",
    yscale: Literal["linear", "log"] | None = None,
) -> None:
    """Write a figure: a panel for each task, a line with an interval for each group.

    Args:
        results: of ``gather``.
        lines: of these results; at least one, unless there are published curves.
        path: a .pdf, .svg or .png, which is replaced.
        width_in: of the figure, in inches; None: a column of a paper, or two for several panels.
        style: a matplotlib style sheet: its name or a file.
        xscale: of x.
        yscale: of y; None: ``log`` for a loss that is positive and spans two decades.

    Raises:
        UserError: matplotlib is missing, or the style or the format is unknown.

    """
    matplotlib = check_figure(path, style)
    own = {**STYLE, "axes.prop_cycle": matplotlib.cycler(color=COLORS)}
    with matplotlib.style.context([own, *([style] if style else [])]):
        figure = fill_figure(results, lines, width_in, matplotlib, xscale, yscale)
        save(figure, path)


def fill_figure(
    results: Results,
    lines: Sequence[Line],
    width_in: float | None,
    matplotlib: Any,
    xscale: str,
    yscale: str | None,
) -> Any:
    """The figure; see ``draw``."""
    from matplotlib.figure import Figure

    tasks = [task for task in results.tasks if any(line.task == task for line in lines)]
    tasks = tasks or results.tasks
    num_columns = min(len(tasks), MAX_COLUMNS)
    num_rows = -(-len(tasks) // num_columns)
    width = width_in or COLUMN_IN * min(num_columns, 2)
    figure = Figure(figsize=(width, num_rows * width / num_columns * 0.75), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False)
    looks = looks_of(results, matplotlib.rcParams["axes.prop_cycle"])
    for panel, task in zip(panels.flat, tasks, strict=False):
        own = [line for line in lines if line.task == task]
        draw_lines(panel, own, looks)
        draw_published(panel, [each for each in results.published if each.task == task], looks)
        panel.set(title=plain(task.replace("_", " ")), xscale=xscale)
        panel.set_yscale(yscale or scale_of(results.metric, own))
        limit_x(panel, own)
        for axis in (panel.xaxis, panel.yaxis):
            shorten_ticks(axis)
        panel.set_ylabel(label_of(results.metric) if panel in panels[:, 0] else "")
    for panel in panels.flat[len(tasks) :]:
        panel.set_axis_off()
    for panel in panels.flat[max(0, len(tasks) - num_columns) : len(tasks)]:
        panel.set_xlabel(X_LABELS.get(results.x, results.x))
    add_legend(figure, list(panels.flat), legend_of(results, lines), looks)
    return figure


def load_matplotlib() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.

    """
    try:
        importlib.import_module("matplotlib.style")
        return importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        hint = "pip install -e '.[results]'"
        raise UserError(f"a figure needs the package matplotlib: {hint}") from error


def check_figure(path: Path, style: str | None) -> Any:
    """The package matplotlib, if it can draw in a style and write the figure to ``path``.

    Raises:
        UserError: it cannot.

    """
    if path.suffix.removeprefix(".") not in FORMATS:
        raise UserError(f"out={path}: its ending must be one of .{', .'.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"out={path}: {path.parent} is no folder")
    if path.is_dir():
        raise UserError(f"out={path} is a folder")
    matplotlib = load_matplotlib()
    known = matplotlib.style.available
    if style is not None and style not in known and not Path(style).is_file():
        raise UserError(
            f"style={style} is neither a file nor a style of matplotlib; "
            f"some are {', '.join(known[:5])}{did_you_mean(style, known)}"
        )
    return matplotlib


def looks_of(results: Results, cycle: Any) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each group, the same in all panels."""
    properties = [dict(each) for each in cycle]
    others = dict.fromkeys(curve.group for curve in results.published)
    looks = {}
    for index, group in enumerate([*results.groups, *others]):
        turn, place = divmod(index, len(properties))
        dashes = PUBLISHED_DASHES if group in others else DASHES[turn % len(DASHES)]
        looks[group] = {**properties[place], "linestyle": dashes}
    return looks


def draw_lines(panel: Any, lines: Sequence[Line], looks: Mapping[str, Any]) -> None:
    """Each line and its interval; dotted where some runs have no value."""
    for line in lines:
        look = looks[line.group]
        panel.plot(line.x, line.estimate, ":", color=look["color"], lw=1)
        whole = np.where(line.is_whole, line.estimate, np.nan)
        marker = "o" if np.isfinite(whole).sum() == 1 else None
        panel.plot(line.x, whole, marker=marker, ms=3, **look)
        panel.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.2, lw=0)


def draw_published(panel: Any, curves: Sequence[Published], looks: Mapping[str, Any]) -> None:
    """Each published curve with its standard error."""
    for curve in curves:
        look = looks[curve.group]
        panel.plot(curve.frames, curve.mean, **look)
        bounds = curve.mean - curve.error, curve.mean + curve.error
        panel.fill_between(curve.frames, *bounds, color=look["color"], alpha=0.2, lw=0)


def limit_x(panel: Any, lines: Sequence[Line]) -> None:
    """Show x as far as the runs reach, even if published curves go on."""
    is_log = panel.get_xscale() == "log"
    points = np.concatenate([line.x for line in lines] or [np.zeros(0)])
    points = points[points > 0] if is_log else points
    if points.size and points.max() > points.min():
        panel.set_xlim(points.min() if is_log else min(points.min(), 0), points.max())


def scale_of(metric: str, lines: Sequence[Line]) -> str:
    """``log`` for a loss that is positive and spans two decades, else ``linear``."""
    values = np.concatenate([line.estimate for line in lines] or [np.zeros(1)])
    low, high = np.nanmin(values), np.nanmax(values)
    return "log" if metric.endswith("loss") and low > 0 and high > 100 * low else "linear"


def shorten_ticks(axis: Any) -> None:
    """Write 20k and 1M if the axis reaches 10,000."""
    from matplotlib.ticker import EngFormatter

    if max(map(abs, axis.get_view_interval())) >= 10_000 and axis.get_scale() == "linear":
        axis.set_major_formatter(EngFormatter(sep=""))


def label_of(metric: str) -> str:
    """What is written beside the y axis."""
    group, _, name = metric.partition("/")
    return name.replace("_", " ") + (f" ({group})" if group != "eval" else "")


def legend_of(results: Results, lines: Sequence[Line]) -> dict[str, str]:
    """The text for each group that is drawn, with its number of seeds."""
    texts = {}
    for group in results.groups:
        own = [line for line in lines if line.group == group]
        if own:
            counts = [line.num_runs for line in own]
            envs = f"{own[0].num_envs} tasks, " if own[0].num_envs > 1 else ""
            texts[group] = f"{group} ({envs}{seeds(min(counts), max(counts))})"
    drawn = [curve for curve in results.published if curve.task in results.tasks]
    for group in dict.fromkeys(curve.group for curve in drawn):
        counts = [curve.num_seeds for curve in drawn if curve.group == group]
        error = ", +- s.e." if max(counts) > 1 else ""
        texts[group] = f"{group} ({seeds(min(counts), max(counts))}{error})"
    return texts


def plain(text: str) -> str:
    """A name as matplotlib shows it unchanged: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def seeds(fewest: int, most: int) -> str:
    """``1 seed``, ``5 seeds`` or ``3 to 5 seeds``."""
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{count} seed{'' if most == 1 else 's'}"


def add_legend(
    figure: Any, panels: Sequence[Any], texts: Mapping[str, str], looks: Mapping[str, Any]
) -> None:
    """A legend in the only panel or, if there are several or it is long, below."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=plain(text), **looks[group]) for group, text in texts.items()]
    if len(panels) == 1 and len(handles) <= MAX_INSIDE:
        panels[0].legend(handles=handles, loc="best")
        return
    for num_columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=num_columns)
        size = legend.get_window_extent()
        if size.width <= figure.bbox.width or num_columns == 1:
            figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)
            return
        legend.remove()


def save(figure: Any, path: Path) -> None:
    """Write the figure whole, without the time at which it was made."""
    suffix = path.suffix.removeprefix(".")
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph
    figure.savefig(buffer, format=suffix, metadata=dates.get(suffix))
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"out={path}: {error.strerror}") from error
