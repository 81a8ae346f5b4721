"""Shows a sweep while it runs: a table that stays in place on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, TextIO, cast

from research.console import Printed
from research.launchers.plan.names import labels
from research.launchers.show.rows import (
    Row,
    counts,
    keys_of,
    number,
    printable,
    progress,
    speed,
    time_left,
)
from research.launchers.show.table import table, written

if TYPE_CHECKING:
    from rich.live import Live

REDRAW_S = 0.5
REPORT_S = 60.0
COLOURS = r"\b(?:(?P<green>completed)|(?P<red>failed))\b"


class Screen:
    """The table of a sweep on ``stream``.

    On a terminal it is redrawn in place, at most twice a second, and fits the window as it is
    then; log messages to a terminal appear above it. Elsewhere each change of state is a line,
    and so is each running job's progress once a minute. If the reader of the stream goes away,
    nothing more is written, and the jobs continue.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = Printed(stream)
        self.handlers: list[logging.StreamHandler] = []
        is_terminal = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self.live = self.start() if is_terminal else None
        self.rows: Sequence[Row] = ()
        self.drawn: list[str] = []
        self.next_draw = -float("inf")
        self.seen: dict[int, tuple[str, int]] = {}
        self.reported: dict[int, tuple[float, object]] = {}

    def start(self) -> "Live":
        """Begin to draw in place; log messages to a terminal from now on appear above."""
        from rich.console import Console
        from rich.file_proxy import FileProxy
        from rich.live import Live

        console = Console(
            file=cast(IO[str], self), force_terminal=True, force_interactive=True, soft_wrap=True
        )
        logged = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
        printed = [h for h in logged if h.stream and h.stream in (sys.stdout, sys.stderr)]
        self.handlers = [handler for handler in printed if handler.stream.isatty()]
        for handler in self.handlers:
            handler.setStream(FileProxy(console, handler.stream))
        # No thread, no redirected streams: this process starts programs and handles signals.
        live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        live.start()
        console.show_cursor()  # after a SIGKILL or Ctrl-Z it would stay hidden
        return live

    def show(self, rows: Sequence[Row]) -> None:
        """Show the jobs; it may be called at any rate."""
        now = time.monotonic()
        self.rows = rows
        if not self.live:
            self.write("".join(f"{line}\n" for line in self.news(rows, now)))
        elif now >= self.next_draw:
            # A caller that comes every half second, sometimes early, always gets a redraw.
            self.next_draw = max(self.next_draw + REDRAW_S, now + REDRAW_S / 2)
            self.draw(self.live)

    def note(self, line: str) -> None:
        """Print a line above the table, where it stays."""
        text = "\n".join(map(printable, line.splitlines()))
        if self.live:
            self.live.console.print(text, markup=False, emoji=False, highlight=False)
        else:
            self.write(f"{text}\n")

    def close(self) -> None:
        """Leave the last table where it is; later output appears below."""
        if self.live and self.rows:
            self.draw(self.live)
        if self.live:
            self.live.stop()
        for handler in self.handlers:
            handler.setStream(handler.stream.rich_proxied_file)
        self.live, self.handlers = None, []

    def draw(self, live: "Live") -> None:
        """Replace the last table."""
        from rich.cells import cell_len
        from rich.text import Text

        try:
            width, height = os.get_terminal_size(self.stream.fileno())
        except OSError:
            width, height = 0, 0
        live.console.size = width, height = max(width or 80, 2), max(height or 24, 2)
        # The terminal folds lines that were drawn in a wider window, which rich does not know.
        num_folds = sum(max(cell_len(line) - 1, 0) // width for line in self.drawn)
        self.write("\x1b[2K\x1b[A" * num_folds)
        # The last column is left free: terminals differ on when they wrap a full line.
        self.drawn = table(self.rows, width=width - 1, height=height - 1)
        text = Text("\n".join(self.drawn))
        text.highlight_regex(COLOURS)
        live.update(text, refresh=True)

    def news(self, rows: Sequence[Row], now: float) -> list[str]:
        """A line for each change since the last rows."""
        lines = [] if self.seen else counts(rows)
        short = labels(keys_of(rows))
        for row in rows:
            state, attempt, step = (row.status[key] for key in ("state", "attempt", "step"))
            before = self.seen.get(row.number)
            self.seen[row.number] = state, attempt
            reported, reported_step = self.reported.get(row.number, (-float("inf"), None))
            if before != (state, attempt) and (before or state == "running"):
                text = change(row)
            elif state == "running" and now - reported >= REPORT_S and step != reported_step:
                text = report(row)
            else:
                continue
            lines.append(f"{described(row, short)} {text}")
            self.reported[row.number] = now, step
        return lines

    def write(self, text: str) -> None:
        """Write ``text``, with ``?`` for characters that the stream cannot encode."""
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()

    def flush(self) -> None:
        """Do nothing; ``write`` has flushed the stream."""


def described(row: Row, short: Mapping[str, str]) -> str:
    """``job 3 (env=cheetah,seed=1)``."""
    values = {key: printable(row.varies[key]) for key in short if key in row.varies}
    parts = [f"{short[key]}={without_middle(value)}" for key, value in values.items()]
    return f"job {row.number}" + (f" ({','.join(parts)})" if parts else "")


def without_middle(text: str) -> str:
    """``text`` in at most 40 characters."""
    return text if len(text) <= 40 else f"{text[:19]}..{text[-19:]}"


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
