"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)


class Bar(tqdm):
    """A tqdm bar without tqdm's monitor: that is a thread, and environments may fork."""

    monitor_interval = 0


class Progress:
    """Shows steps, speed, time left and the last metrics reported.

    Call ``close`` at the end: until then, console logging on a terminal is printed above the bar.

    Args:
        total_steps: where the run ends.
        start_step: where it starts or resumes.
        terminal: whether to show a bar; None: if stderr is a terminal (of a known size).

    """

    def __init__(self, total_steps: int, start_step: int, *, terminal: bool | None = None) -> None:
        self.total_steps = total_steps
        self.step = start_step
        self.metrics: dict[str, float] = {}
        self.speed: float | None = None
        self.last_step, self.last_s = start_step, time.monotonic()
        self.bar: Bar | None = None
        self.streams: list[tuple[logging.StreamHandler, TextIO]] = []
        if is_terminal(sys.stderr) if terminal is None else terminal:
            self.bar = Bar(
                total=total_steps,
                initial=start_step,
                unit=" steps",
                unit_scale=True,
                dynamic_ncols=True,
                # Read the clock at every step: it is cheap, and the bar never lags.
                miniters=1,
                mininterval=0.2,
            )
            self.redirect_console()

    def update(self, step: int) -> None:
        """Note that ``step`` is reached; cheap, for the inner loop."""
        self.step = step
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Show metrics: the bar keeps the last value of each, a line has just these."""
        if self.bar is not None:
            self.metrics |= metrics
            self.bar.set_postfix_str(format_metrics(self.metrics))
        else:
            log.info("%s", self.line(metrics))

    def close(self) -> None:
        """Close the bar, which stays visible, and restore console logging; may be called twice."""
        if self.bar is not None:
            self.bar.close()
        for handler, stream in self.streams:
            handler.setStream(stream)
        self.streams = []

    def line(self, metrics: Mapping[str, float]) -> str:
        """Progress as text; the speed is that since the line before."""
        now_s = time.monotonic()
        if self.step > self.last_step and now_s > self.last_s:
            self.speed = (self.step - self.last_step) / (now_s - self.last_s)
            self.last_step, self.last_s = self.step, now_s
        parts = [f"step {self.step:,}/{self.total_steps:,}"]
        if self.speed is not None:
            left_s = (self.total_steps - self.step) / self.speed
            parts += [f"{self.speed:.3g} steps/s", f"ETA {tqdm.format_interval(left_s)}"]
        return "  ".join([*parts, format_metrics(metrics)]).rstrip()

    def redirect_console(self) -> None:
        """Make the root logger's console handlers write above the bar."""
        handlers = logging.getLogger().handlers
        for handler in [each for each in handlers if isinstance(each, logging.StreamHandler)]:
            if handler.stream in (sys.stdout, sys.stderr):
                self.streams.append((handler, handler.stream))
                handler.setStream(AboveBar(handler.stream))


class AboveBar:
    """A stream that prints above the bars of the terminal.

    tqdm's own redirection makes a new handler, which loses the level of the old one.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Print ``text`` as it is."""
        tqdm.write(text, file=self.stream, end="")

    def flush(self) -> None:
        """Flush the underlying stream."""
        self.stream.flush()


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be seen on ``stream``; tqdm shows none on a terminal of no size."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 0


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics with four figures each, as in ``return 412.3  length 1000``."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
