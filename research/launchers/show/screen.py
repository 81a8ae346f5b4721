"""Shows a sweep while it runs: a table that stays in place on a terminal, plain lines elsewhere."""

import os
import time
from collections.abc import Sequence
from typing import TextIO

from research.launchers.plan.names import labels
from research.launchers.show.columns import display_width, printable, shorten
from research.launchers.show.rows import Row, counts, keys_of, number, progress, speed, time_left
from research.launchers.show.table import table, written

REDRAW_S = 0.5
REPORT_S = 60.0
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"


class Screen:
    """The table of a sweep on ``stream``.

    On a terminal it is redrawn in place, twice a second at most, and fits the window as it is
    then. Elsewhere each change of state is a line, and so is each running job's progress once a
    minute. When nobody reads the stream any more, it falls silent: the jobs go on.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.is_terminal and not os.environ.get("NO_COLOR")
        self.is_read = True
        self.rows: Sequence[Row] | None = None
        self.drawn: list[str] = []
        self.next_draw = -float("inf")
        self.seen: dict[int, tuple[str, int]] = {}
        self.reported: dict[int, tuple[float, object]] = {}

    def show(self, rows: Sequence[Row]) -> None:
        """Show the jobs as they stand; call it as often as you like."""
        now = time.monotonic()
        if not self.is_terminal:
            self.write("".join(f"{line}\n" for line in self.news(rows, now)))
        elif now >= self.next_draw:
            # A caller that comes every half second, now and then early, is not turned away.
            self.next_draw = max(self.next_draw + REDRAW_S, now + REDRAW_S / 2)
            self.draw(rows)
        self.rows = rows

    def note(self, line: str) -> None:
        """Print what stays, above the table."""
        lines = [printable(part) for part in line.splitlines()]
        if self.drawn and self.rows is not None:
            self.draw(self.rows, above=lines)
        else:
            self.write("".join(f"{part}\n" for part in lines))

    def close(self) -> None:
        """Leave the last table where it is; what is printed from now on comes below."""
        if self.is_terminal and self.rows is not None:
            self.draw(self.rows)
        self.rows, self.drawn = None, []

    def draw(self, rows: Sequence[Row], above: Sequence[str] = ()) -> None:
        """Write over the last table, in one piece so that nothing flickers."""
        width, height = self.size()
        # Lines that were drawn in a wider window have been folded by the terminal.
        up = sum(max(1, -(-display_width(printable(line)) // width)) for line in self.drawn)
        to_top = f"\r\x1b[{min(up, height - 1)}A" if up else "\r"
        # The last place of a line is left free: there, terminals differ on when they go on.
        lines = table(rows, width=width - 1, height=height - 1, colour=self.colour)
        text = "".join(f"{line}{CLEAR_LINE}\n" for line in lines)
        if above:
            # Line by line: clearing a whole window at once would keep the old table in its history.
            notes = "".join(f"{line}\n" for line in above)
            text = f"{CLEAR_LINE}\n" * min(up, height - 1) + to_top + notes + text
        self.drawn = lines
        self.write(to_top + text + CLEAR_BELOW)

    def size(self) -> tuple[int, int]:
        """Columns and lines of the window."""
        try:
            width, height = os.get_terminal_size(self.stream.fileno())
        except OSError:
            width, height = 0, 0
        return max(width or 80, 2), max(height or 24, 2)

    def news(self, rows: Sequence[Row], now: float) -> list[str]:
        """What changed since the last rows, a line each."""
        lines = [] if self.seen else counts(rows)
        names = described(rows)
        for row in rows:
            state, attempt = row.status["state"], row.status["attempt"]
            before = self.seen.get(row.number)
            self.seen[row.number] = state, attempt
            if before != (state, attempt) and (before or state == "running"):
                lines.append(f"{names[row.number]} {change(row)}")
                self.reported[row.number] = now, row.status["step"]
            elif state == "running" and self.is_due(row, now):
                lines.append(f"{names[row.number]} {report(row)}")
                self.reported[row.number] = now, row.status["step"]
        return lines

    def is_due(self, row: Row, now: float) -> bool:
        """Whether a running job has moved on and was quiet for a minute."""
        reported, step = self.reported.get(row.number, (-float("inf"), None))
        return now - reported >= REPORT_S and row.status["step"] != step

    def write(self, text: str) -> None:
        """Write at once, if there is still somebody to read."""
        encoding = self.stream.encoding or "utf-8"
        try:
            if self.is_read:
                self.stream.write(text.encode(encoding, "replace").decode(encoding))
                self.stream.flush()
        except BlockingIOError:
            pass  # a slow reader gets the rest with the next text
        except OSError:
            self.is_read = False


def described(rows: Sequence[Row]) -> dict[int, str]:
    """``job 3 (env=cheetah,seed=1)`` for each job's number."""
    short = labels(keys_of(rows))
    names = {}
    for row in rows:
        parts = [
            f"{label}={shorten(printable(row.varies[key]), 40)}"
            for key, label in short.items()
            if key in row.varies
        ]
        names[row.number] = f"job {row.number}" + (f" ({','.join(parts)})" if parts else "")
    return names


def change(row: Row) -> str:
    """The state a job is in now: ``running on gpu 0, attempt 2``."""
    status = row.status
    state, attempt, reason = status["state"], status["attempt"], status["exit_reason"]
    score = number(status["score"])
    parts = [state]
    if state == "running" and row.device:
        parts[0] += f" on {row.device}"
    if state in ("failed", "preempted") and reason:
        parts[0] += f": {printable(str(reason))}"
    if state == "completed" and score is not None:
        parts.append(f"score {written([score])[0]}")
    if attempt > 1 and state != "pending":
        parts.append(f"attempt {attempt}")
    return ", ".join(parts)


def report(row: Row) -> str:
    """A running job's progress: ``step 120k/1M, 118/s, 2h03m left, score 812.4``."""
    left, score = time_left(row.status), number(row.status["score"])
    parts = [f"step {progress(row.status)}"]
    parts += [speed(row.status)] if speed(row.status) != "-" else []
    parts += [f"{left} left"] if left != "-" else []
    parts += [f"score {written([score])[0]}"] if score is not None else []
    return ", ".join(parts)
