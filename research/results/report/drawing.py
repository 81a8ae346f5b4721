"""Matplotlib figures as files, and as SVG that lies in a page and takes its colours."""

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from research.files import write_whole
from research.results.report.document import Figure, Series, Values

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

INK, LINE, GROUND = "#1d2229", "#d8dde3", "#fffffe"
"""Colours of text, of grids, and of what hides a line; the page replaces them by its own."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, which can be found and read aloud
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a name with a dollar is no formula
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


MOST_NAMES = 12
"""A legend with more names would hide the lines."""

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#7f7f7f", "#8c564b", "#9467bd", "#bcbd22"),
)
"""Told apart by colour-blind readers as far as ten can be: Okabe and Ito's first."""


def colours(number: int) -> list[str]:
    """As many colours; from the eleventh on, some look alike."""
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](0.05 + 0.9 * i / (number - 1))) for i in range(number)]


Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")


def in_style(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """``draw``, done in ``STYLE``: whatever it makes keeps the style that it is made in."""

    @wraps(draw)
    def draw_in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


def new_axes(width: float = 4.6, height: float = 3.1) -> tuple["Drawing", "Axes"]:
    """An empty figure of that size in inches, and its axes."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(width, height), layout="constrained")
    return drawing, drawing.add_subplot()


@in_style
def draw_lines(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    heading: str,
    x_label: str,
    y_label: str,
    ticks: Sequence[str] = (),
) -> Figure:
    """A figure of lines with their intervals.

    Args:
        name: of its files.
        title: the sentence under it.
        series: the lines.
        heading: the title above the axes.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        ticks: names of the positions 0, 1, ... if x is no number.

    """
    from matplotlib.ticker import EngFormatter

    drawing, axes = new_axes()
    for line in series:
        looks: dict[str, Any] = {"color": line.colour, "gid": f"group-{line.group}"}
        dashes, marker = "--" if line.is_dashed else "-", "o" if ticks or len(line.x) == 1 else ""
        whole = np.where(line.is_whole, line.y, np.nan) if len(line.is_whole) else line.y
        axes.plot(
            line.x, whole, dashes, marker=marker, markersize=4, lw=1.5, label=line.label, **looks
        )
        if not all(line.is_whole):
            axes.plot(line.x, line.y, ":", lw=1, **looks)
        if len(line.low) and len(line.x) > 1 and not ticks:
            axes.fill_between(line.x, line.low, line.high, alpha=0.2, lw=0, **looks)
        elif len(line.low):
            axes.vlines(line.x, line.low, line.high, lw=1.2, **looks)
    axes.set(title=heading, xlabel=x_label, ylabel=y_label)
    if ticks:
        axes.set_xticks(range(len(ticks)), [shortened(tick) for tick in ticks])
        axes.margins(x=0.1)
    elif max((line.x[-1] for line in series if len(line.x)), default=0) >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    own = [line.x for line in series if not line.is_dashed and len(line.x)]
    if 0 < len(own) < len(series):  # others may have gone on for longer
        axes.set_xlim(*widened(min(x[0] for x in own), max(x[-1] for x in own)))
    add_legend(axes)
    return Figure(name, title, drawing, series, ticks)


def widened(low: float, high: float) -> tuple[float, float]:
    """These limits with a margin."""
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin


def shortened(text: str, length: int = 16) -> str:
    """``text`` in so many characters, the middle left out."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}..{text[1 - length // 2 :]}"


def add_legend(axes: "Axes") -> None:
    """Name the lines in the axes; a page with a legend of its own does not show this one."""
    handles, labels = axes.get_legend_handles_labels()
    if 0 < len(handles) <= MOST_NAMES:
        axes.legend(handles, labels, loc="best").set_gid("legend")


@in_style
def write_files(figure: Figure, folder: "Path") -> str:
    """Write a figure as PNG and SVG into a folder; returns the SVG."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.drawing.savefig(png, format="png", dpi=150)
    figure.drawing.savefig(svg, format="svg", metadata={"Date": None})
    write_whole(folder / f"{figure.name}.png", png.getvalue())
    write_whole(folder / f"{figure.name}.svg", svg.getvalue())
    return svg.getvalue()


def as_inline(svg: str, name: str) -> str:
    """Matplotlib's SVG as an element of a page with other such elements.

    Ids are prefixed by ``name`` where something refers to them, and otherwise removed. Parts of
    groups that can be hidden are marked ``data-group``.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    # The white ground of the figure and of its axes.
    svg = re.sub(r'<g id="patch_[12]">\s*<path [^>]*?style="fill: #ffffff[^>]*/>\s*</g>', "", svg)
    svg = re.sub(r'id="group-(\d+)"', r'data-group="\1"', svg)
    svg = svg.replace('id="legend"', 'class="legend-of-file"')
    referred = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referred else "", svg
    )
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    colours = {INK: "currentColor", LINE: "var(--line)", GROUND: "var(--ground)"}
    for colour, replacement in colours.items():
        svg = svg.replace(colour, replacement)
    return svg


def pointer_data(figure: Figure) -> dict[str, Any]:
    """The data by which a script finds the values at a position of the pointer.

    Shares of the width and height of a drawn figure that its axes span, their limits, and the
    series, in plain values.
    """
    (axes,) = figure.drawing.axes
    box = axes.get_position()
    return {
        "span": [box.x0, box.x1],
        "height": [1 - box.y1, 1 - box.y0],
        "limits": list(axes.get_xlim()),
        "x_label": axes.get_xlabel(),
        "ticks": list(figure.ticks),
        "series": [
            {
                "group": series.group,
                "label": series.label,
                "colour": series.colour,
                "x": plain(series.x),
                "y": plain(series.y),
                "low": plain(series.low),
                "high": plain(series.high),
                "is_whole": list(map(bool, series.is_whole)),
            }
            for series in figure.series
        ],
    }


def plain(values: Values) -> list[float | None]:
    """Numbers with six digits; None for those that are not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
