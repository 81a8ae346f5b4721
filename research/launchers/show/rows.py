"""A job's row of the table, and its progress in a few characters."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from research.launchers.plan.names import varying

ORDER = ("running", "completed", "failed", "preempted", "pending")


class Row(NamedTuple):
    """A job's row of the table.

    Attributes:
        number: the job's number in its plan.
        varies: the values of the keys that differ between jobs.
        status: as ``read_status`` returns it, or ``BLANK``.
        device: the slot or SLURM task, such as ``"gpu 0 cpu 0-3"`` or ``"12_0 node1"``, or empty.
        folder: the run directory, for ``sweep.csv``.

    """

    number: int
    varies: Mapping[str, str]
    status: Mapping[str, Any]
    device: str
    folder: Path | None = None


def counts(rows: Sequence[Row], *, width: int = 200, num_shown: int | None = None) -> list[str]:
    """``12 jobs: 3 running, 7 completed, 1 failed, 1 pending``, in lines of ``width``."""
    states = Counter(row.status["state"] for row in rows)
    parts = ", ".join(f"{states[state]}\xa0{state}" for state in ORDER if states[state])
    text = "1\xa0job" if len(rows) == 1 else f"{len(rows)}\xa0jobs"
    text += f": {parts}" if parts else ""
    if num_shown is not None and num_shown < len(rows):
        text += f" ({len(rows) - num_shown}\xa0not\xa0shown)"
    return [line.replace("\xa0", " ") for line in textwrap.wrap(text, width)]


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Every key that varies, seed last."""
    return varying([row.varies for row in rows], [key for row in rows for key in row.varies])


def progress(status: Mapping[str, Any]) -> str:
    """The steps done, of all: ``120k/1M``."""
    step, steps = number(status["step"]), number(status["total_steps"])
    if step is None or (step == 0 and status["state"] == "pending"):
        return "-"
    return amount(step) + (f"/{amount(steps)}" if steps is not None else "")


def time_left(status: Mapping[str, Any]) -> str:
    """The time left by the last known speed, less the time since; ``-`` if unknown or over."""
    step, steps = number(status["step"]), number(status["total_steps"])
    steps_per_s = number(status["speed"])
    if status["state"] != "running" or step is None or steps is None or not steps_per_s:
        return "-"
    if step >= steps:
        return "0s"
    now = datetime.now(timezone.utc).isoformat()
    left_s = (steps - step) / steps_per_s - max(seconds_between(status["updated"], now) or 0, 0)
    return span(left_s) if left_s > 0 else "-"


def speed(status: Mapping[str, Any]) -> str:
    """The steps per second: ``118/s``."""
    steps_per_s = number(status["speed"])
    if steps_per_s is None or status["state"] == "pending":
        return "-"
    return f"{amount(steps_per_s) if steps_per_s >= 100 else format(steps_per_s, '.3g')}/s"


def amount(count: float) -> str:
    """Three digits and a unit, cut and never rounded up: 9999, 12.3k, 999k, 1M."""
    count = int(count)
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= max(size, 10**4):
            decimals = 3 - len(str(count // size))
            digits = count * 10**decimals // size / 10**decimals if decimals > 0 else count // size
            return f"{digits:g}{unit}"
    return str(count)


def span(seconds: float) -> str:
    """A length of time in at most five characters: 45s, 9m30s, 59m, 9h59m, 23h, 9d23h, 99d."""
    seconds = int(min(seconds, 1e9))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 10:
        return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"
    if hours < 10:
        return f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m"
    if days < 10:
        return f"{days}d{hours % 24:02}h" if days else f"{hours}h"
    return f"{days}d" if days < 1000 else ">999d"


def number(value: object) -> float | None:
    """``value`` if it is a finite number."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds from one time of a status to another, if both are known."""
    try:
        times = [datetime.fromisoformat(time) for time in (start, end) if time]
        return (times[1] - times[0]).total_seconds() if len(times) == 2 else None
    except (ValueError, TypeError):  # not written by Status
        return None


def printable(text: str) -> str:
    """``text`` without colours, and with ``?`` for other characters that are not printable."""
    plain = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return "".join(character if character.isprintable() else "?" for character in plain)
