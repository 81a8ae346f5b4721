"""One figure for a paper: ``python -m research.plot PATH... [KEY=VALUE...]``."""

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import UserError, did_you_mean
from research.launchers.show.rows import amount
from research.results import statistics
from research.results.figure import X_LABELS, check_figure, draw
from research.results.groups import gather
from research.results.lines import lines_of
from research.results.notes import hidden, notes_on

log = logging.getLogger(__name__)


class Option(NamedTuple):
    """An option of the command line.

    Attributes:
        read: its value from the text; raises ``ValueError`` with what is allowed.
        default: as it would be typed; None: there is none.
        text: for ``--help``.

    """

    read: Callable[[str], Any]
    default: str | None
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m research.plot",
        usage="%(prog)s PATH... [KEY=VALUE...]",
        description=DESCRIPTION,
        epilog=describe_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="PATH", help="a run, a sweep, a CSV")
    words = parser.parse_args(arguments).words
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        paths, options = read_words(words)
        plot(paths, **options)
    except UserError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        return 130
    return 0


def plot(
    paths: Sequence[str],
    *,
    x: str | None,
    y: str | None,
    by: list[str],
    col: str | None,
    filter: list[str],
    statistic: str,
    confidence: float,
    smooth: float | None,
    grid: float | None,
    out: Path,
    **look: Any,
) -> None:
    """Write the figure, and log what is odd and what it shows."""
    check_figure(out, look["style"])
    results = gather(paths, metric=y, x=x, by=by, col=col, filters=filter)
    lines = lines_of(
        results,
        statistic=STATISTICS[statistic],
        every=grid,
        smooth=smooth,
        confidence=confidence,
    )
    scales = {key: look[key] for key in ("xscale", "yscale")}
    for note in [*notes_on(results, lines), *hidden(lines, **scales)]:
        log.info("%s", note)
    draw(results, lines, out, **look)
    interval = f"{100 * confidence:g} % percentile-bootstrap intervals over seeds"
    unit = X_LABELS.get(results.x, results.x)
    window = f", moving average over {amount(smooth)} {unit}" if smooth else ""
    log.info("%s: %s of %s%s, %s", out, statistic, results.metric, window, interval)


def read_words(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The paths and the options of a command line.

    Raises:
        UserError: an option is unknown, given twice or has a wrong value, or there is no path.

    """
    paths, given, filters = [], {}, []
    for word in words:
        key, is_option, text = word.partition("=")
        if not is_option or "/" in key or Path(word).exists():
            paths.append(word)
        elif key not in OPTIONS:
            allowed = ", ".join(OPTIONS)
            raise UserError(f"no option {key}; allowed: {allowed}{did_you_mean(key, OPTIONS)}")
        elif key == "filter":
            filters.append(text)
        elif key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        else:
            given[key] = text
    if not paths:
        raise UserError("no path is given; name a run, a sweep or a CSV file of published curves")
    defaults = {key: option.default for key, option in OPTIONS.items() if option.default}
    options = dict.fromkeys(OPTIONS) | {
        key: read_option(key, text) for key, text in {**defaults, **given}.items()
    }
    return paths, {**options, "filter": filters, "by": options["by"] or []}


def read_option(key: str, text: str) -> Any:
    """The value of an option."""
    try:
        return None if text in ("null", "") else OPTIONS[key].read(text)
    except ValueError as error:
        raise UserError(f"{key}={text}: {error}") from error


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("it must be a number above 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1."""
    value = positive(text)
    if value >= 1:
        raise ValueError("it must be a number between 0 and 1")
    return value


def names(text: str) -> list[str]:
    """Names between commas, in brackets or not."""
    return [name.strip() for name in text.strip("[]").split(",") if name.strip()]


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"allowed: {', '.join(choices)}{did_you_mean(text, choices)}")
        return text

    return read


def describe_options() -> str:
    """The options, for ``--help``."""
    lines = [
        f"  {key + '=' + (option.default or ''):18} {option.text}"
        for key, option in OPTIONS.items()
    ]
    return "\n".join(["options:", *lines])


STATISTICS = {"mean": statistics.mean, "iqm": statistics.iqm}
OPTIONS = {
    "x": Option(str, None, "step, frames, updates, epoch or seconds; default: step, or frames"),
    "y": Option(str, None, "a metric such as eval/return; default: trainer.score.metric"),
    "by": Option(names, None, "keys that make a line; default: alg and what else varies"),
    "col": Option(str, "env", "the key that makes a panel; null: one panel"),
    "filter": Option(str, None, "alg=td3,sac or seed!=3; may be given again"),
    "statistic": Option(one_of(*STATISTICS), "mean", "mean, or iqm: interquartile mean"),
    "confidence": Option(share, "0.95", "of the percentile-bootstrap interval"),
    "smooth": Option(positive, None, "width of a moving average, in the unit of x"),
    "grid": Option(positive, None, "distance of two points; default: where runs have them"),
    "width_in": Option(positive, None, "of the figure, inches; default: 3.25 or 6.5"),
    "xscale": Option(one_of("linear", "log"), "linear", "linear or log"),
    "yscale": Option(one_of("linear", "log"), None, "linear or log; default: as it suits"),
    "style": Option(str, None, "a style of matplotlib, or a file of one"),
    "out": Option(Path, "fig.pdf", "a .pdf, .svg or .png"),
}
DESCRIPTION = "Draw one figure of runs, sweeps and published curves (CSV)."

if __name__ == "__main__":
    sys.exit(main())
