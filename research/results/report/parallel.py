"""Parallel coordinates: each run as a line through its hyperparameters to its score."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from research.launchers.show.table import written
from research.results.keys import in_order, to_number
from research.results.report.document import Figure
from research.results.report.drawing import GROUND, in_style, new_axes, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMES = 12
"""Values that are named beside an axis; of more, only the first and last are."""


@in_style
def parallel_figure(
    name: str, task: str, runs: Sequence[tuple[Mapping[str, str], float]], metric: str
) -> Figure:
    """The figure of a task.

    Args:
        name: of its files.
        task: its name.
        runs: the values of each run, and its score.
        metric: name of the score.

    """
    from matplotlib import colormaps

    keys = list(runs[0][0])
    heights = {key: heights_of([values[key] for values, _ in runs]) for key in keys}
    scores = [score for _, score in runs]
    low, high = min(scores), max(scores)
    drawing, axes = new_axes(9.0, 3.2)
    for values, score in sorted(runs, key=lambda run: run[1]):
        end = (score - low) / (high - low) if high > low else 0.5
        line = [*(heights[key][values[key]] for key in keys), end]
        # The ends of this map are hard to see on white or on black.
        axes.plot(line, color=colormaps["plasma"](0.2 + 0.58 * end), lw=1.3, alpha=0.8)
    for place, key in enumerate(keys):
        name_values(axes, place, heights[key])
    name_values(axes, len(keys), dict(zip(written([low, high]), (0.0, 1.0), strict=True)))
    axes.set(title=task.replace("_", " "), ylim=(-0.08, 1.08), xlim=(-0.15, len(keys) + 0.3))
    axes.set_xticks(range(len(keys) + 1), [*(shortened(key, 24) for key in keys), metric])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    for place in range(len(keys) + 1):
        axes.axvline(place, color="#7f7f7f", lw=0.8, zorder=0)
    title = f"{task}: each run as a line through its values to its score, which colours it"
    return Figure(name, title, drawing)


def name_values(axes: "Axes", place: int, heights: Mapping[str, float]) -> None:
    """Write values beside a vertical axis."""
    shown = list(heights.items())
    for value, height in shown if len(shown) <= MOST_NAMES else (shown[0], shown[-1]):
        axes.annotate(
            shortened(value),
            (place, height),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": GROUND, "edgecolor": "none", "pad": 1},
            zorder=5,
        )


def ordered(values: Iterable[str]) -> list[str]:
    """The different values, numbers by size before words by name."""
    return sorted(set(values), key=lambda value: in_order({"": value}, [""]))


def are_numbers(values: Sequence[str]) -> bool:
    """Whether all values are finite numbers, and too many to be named one by one."""
    numbers = map(to_number, values)
    is_finite = all(number is not None and math.isfinite(number) for number in numbers)
    return is_finite and len(values) > MOST_NAMES


def spans_decades(numbers: Sequence[float]) -> bool:
    """Whether numbers are better seen by their logarithms."""
    return min(numbers) > 0 and max(numbers) > 50 * min(numbers)


def heights_of(values: Iterable[str]) -> dict[str, float]:
    """Where each value lies from 0 to 1: at equal distances, or by its size if they are many."""
    names = ordered(values)
    sizes = [float(place) for place in range(len(names))]
    if are_numbers(names):
        sizes = [to_number(name) or 0.0 for name in names]
        sizes = list(map(math.log, sizes)) if spans_decades(sizes) else sizes
    extent = (sizes[-1] - sizes[0]) or 1.0
    return {name: (size - sizes[0]) / extent for name, size in zip(names, sizes, strict=True)}
