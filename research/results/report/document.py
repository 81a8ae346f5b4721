"""A report as plain data: sections of paragraphs, tables and figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Values: TypeAlias = Sequence[float] | np.ndarray


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what is shown.
        value: the number that it is sorted by; None: it is sorted by its text.
        state: the state of a run, which colours the text; empty for anything else.

    """

    text: str
    value: float | None = None
    state: str = ""


class Table(NamedTuple):
    """Rows under titles. The reader may sort them by any column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def is_numeric(self) -> list[bool]:
        """Whether each column holds a number."""
        places = range(len(self.columns))
        return [any(row[place].value is not None for row in self.rows) for place in places]


class Series(NamedTuple):
    """The points of a line, for the values that are shown under the pointer.

    Attributes:
        group: number of the group that the line belongs to, which hides it.
        label: the name beside its value.
        x: positions, ascending.
        y: values; NaN where there is none.
        low: lower end of the interval around each value; empty if there is none.
        high: upper end of it.
        colour: as ``#rrggbb``.
        is_dashed: whether the line is dashed, as published results are.
        is_whole: whether all seeds are behind each value; empty if they always are.

    """

    group: int
    label: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    colour: str = "#0072b2"
    is_dashed: bool = False
    is_whole: Sequence[bool] = ()


class Figure(NamedTuple):
    """A drawing with one pair of axes.

    Attributes:
        name: of its files, without their endings.
        title: the sentence under it.
        drawing: matplotlib's figure. An artist whose gid is ``group-3`` is hidden with group 3,
            one whose gid is ``legend`` is not shown in the page, which has its own.
        series: the lines in it.
        ticks: names of the positions 0, 1, ... if x is no number.

    """

    name: str
    title: str
    drawing: "Drawing"
    series: Sequence[Series] = ()
    ticks: Sequence[str] = ()


class Gallery(NamedTuple):
    """Figures side by side, whose groups are shown and hidden together.

    Attributes:
        figures: of about equal size.
        groups: number, label and colour of each group that can be hidden.
        is_wide: whether each figure takes the whole width.

    """

    figures: Sequence[Figure]
    groups: Sequence[tuple[int, str, str]] = ()
    is_wide: bool = False


class Section(NamedTuple):
    """A titled part of a report; its text is plain, not markup."""

    title: str
    blocks: Sequence[str | Table | Gallery]


class Report(NamedTuple):
    """The whole report.

    Attributes:
        title: a few words.
        made: the time, and the command that makes it again.
        sections: in the order in which a reader asks.

    """

    title: str
    made: str
    sections: Sequence[Section]


def count(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def joined(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
