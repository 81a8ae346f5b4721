"""Text in aligned columns that always fits the width."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

LONGEST, SHORT, SHORTEST = 40, 12, 6
COLOURS = {"completed": "32", "failed": "31"}
CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Column(NamedTuple):
    """The cells under a title, and what becomes of them when the width is short.

    Args:
        title: stands on the first line.
        cells: one for each line.
        right: numbers end at the right.
        is_name: a long cell may be shortened in the middle.
        rank: columns with a rank may be left out, the lowest first.
        least: width that is always kept, so that a changing number moves nothing.

    """

    title: str
    cells: Sequence[str]
    right: bool = True
    is_name: bool = False
    rank: int | None = None
    least: int = 0


def aligned(columns: Sequence[Column], *, width: int, colour: bool = False) -> list[str]:
    """A line of titles and a line for each row, none wider than ``width``.

    When the width is short, names are shortened to 12, columns move together, those of rank 1 to 3
    are left out, names shortened to 6, then the other columns with a rank left out.
    """
    columns = [
        column._replace(title=printable(column.title), cells=[*map(printable, column.cells)])
        for column in columns
    ]
    kept, widths, gap = fitted(columns, width)
    lines = []
    for cells in zip(*[(column.title, *column.cells) for column in kept], strict=True):
        padded = [
            pad(shorten(cell, size), size, column.right)
            for cell, size, column in zip(cells, widths, kept, strict=True)
        ]
        line = shorten(gap.join(padded).rstrip(), width)
        lines.append(painted(line) if colour else line)
    return lines


def fits(columns: Sequence[Column], width: int) -> bool:
    """Whether ``width`` is enough for all columns, names of up to 40 characters in full."""
    return total([natural_width(column) for column in columns], "  ") <= width


def fitted(columns: Sequence[Column], width: int) -> tuple[list[Column], list[int], str]:
    """The columns to show, their widths, and what stands between them."""
    natural = [natural_width(column) for column in columns]
    ranks = sorted(column.rank for column in columns if column.rank is not None)
    levels = [(longest, 0, "  ") for longest in range(LONGEST, SHORT - 1, -1)]
    levels += [(SHORT, rank, " ") for rank in range(4)]
    levels += [(longest, 3, " ") for longest in range(SHORT, SHORTEST - 1, -1)]
    levels += [(SHORTEST, rank, " ") for rank in ranks if rank > 3]
    for longest, left_out, gap in levels:
        pairs = [
            (column, min(size, longest) if column.is_name else size)
            for column, size in zip(columns, natural, strict=True)
            if column.rank is None or column.rank > left_out
        ]
        kept, widths = [column for column, _ in pairs], [size for _, size in pairs]
        if total(widths, gap) <= width:
            break
    return kept, widths, gap


def natural_width(column: Column) -> int:
    """The width of a column that has room."""
    width = max(column.least, *map(display_width, (column.title, *column.cells)))
    return min(width, LONGEST) if column.is_name else width


def total(widths: Sequence[int], gap: str) -> int:
    """The width of a line."""
    return sum(widths) + len(gap) * (len(widths) - 1)


def shorten(text: str, width: int) -> str:
    """``text``, with its middle replaced by two dots where it is too wide."""
    if display_width(text) <= width:
        return text
    dots = ".."[:width]
    head, tail = text[: (width + 1) // 2], text[len(text) - width // 2 :]
    while head + tail and display_width(head + dots + tail) > width:
        head, tail = (head[:-1], tail) if len(head) > len(tail) else (head, tail[1:])
    return head + dots + tail


def painted(line: str) -> str:
    """``line`` with what completed in green and what failed in red."""
    return re.sub(
        r"\b(completed|failed)\b", lambda word: f"\x1b[{COLOURS[word[0]]}m{word[0]}\x1b[0m", line
    )


def pad(text: str, width: int, right: bool) -> str:
    """``text`` and the spaces that fill ``width``."""
    spaces = " " * (width - display_width(text))
    return spaces + text if right else text + spaces


def display_width(text: str) -> int:
    """The places ``text`` takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def printable(text: str) -> str:
    """``text`` without colours, and with ``?`` for whatever else would move a cursor."""
    plain = CONTROL_SEQUENCE.sub("", text)
    return "".join(character if character.isprintable() else "?" for character in plain)
