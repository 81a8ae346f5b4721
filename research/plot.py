"""One figure for a paper: ``python -m research.plot PATH... [KEY=VALUE...]``."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.launchers.show.rows import amount
from research.results import statistics
from research.results.command import run
from research.results.figure import X_LABELS, check_figure, draw
from research.results.groups import gather
from research.results.lines import lines_of
from research.results.notes import hidden, notes_on
from research.results.options import (
    Option,
    describe_options,
    names,
    one_of,
    positive,
    read_words,
    share,
)

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of the command line; returns the exit status."""
    options = describe_options(OPTIONS)
    return run("plot", plot_words, arguments, description=DESCRIPTION, options=options)


def plot_words(words: Sequence[str]) -> None:
    """Draw the figure that these words ask for."""
    paths, options = read_words(words, OPTIONS)
    plot(paths, **options)


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
