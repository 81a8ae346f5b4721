"""A report of runs, sweeps and published curves: ``python -m research.report PATH...``."""

import logging
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from research.errors import UserError
from research.results.command import run
from research.results.options import Option, describe_options, names, positive, read_words

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report that the command line asks for; returns the exit status."""
    options = describe_options(OPTIONS)
    return run("report", write, arguments, description=DESCRIPTION, options=options)


def write(words: Sequence[str]) -> None:
    """Write the report that these words ask for, and log where it is.

    Raises:
        UserError: a path holds no run, or an option is wrong.

    """
    from research.results.report.make import make_report
    from research.results.report.page import check_output, write_report

    paths, options = read_words(words, OPTIONS)
    metric, task = options.pop("y"), options.pop("col")
    if task is None:
        raise UserError("col=null: name the key of the config that makes a task")
    out = options.pop("out") or Path("report")
    check_output(out)
    now = datetime.now().astimezone().isoformat(" ", "minutes")
    made = f"Made on {now} by: python -m research.report {shlex.join(words)}"
    write_report(make_report(paths, made=made, metric=metric, task=task, **options), out)
    log.info("wrote %s.html, and %s.md with its figures in %s_figures", out, out, out)


def without_ending(text: str) -> Path:
    """A path, its ending ``.html`` or ``.md`` left out."""
    path = Path(text.removesuffix(".html").removesuffix(".md"))
    if not path.name:
        raise ValueError("it must end in the name of the files")
    return path


OPTIONS = {
    "x": Option(str, None, "step, frames, updates, epoch or seconds; default: step, or frames"),
    "y": Option(str, None, "a metric such as eval/return; default: trainer.score.metric"),
    "by": Option(names, None, "keys that make a group; default: alg and what else varies"),
    "col": Option(str, "env", "the key that makes a task"),
    "filter": Option(str, None, "alg=td3,sac or seed!=3; may be given again"),
    "baseline": Option(str, None, "the group with which the others are compared"),
    "normalise": Option(str, None, "dmc, or the scores LOW,HIGH that become 0 and 1"),
    "smooth": Option(positive, None, "width of a moving average of the curves, in the unit of x"),
    "grid": Option(positive, None, "distance of two points; default: where runs have them"),
    "out": Option(without_ending, "report", "the files to write, without their endings"),
}
DESCRIPTION = "Write a report of runs, sweeps and published curves (CSV): one page, and Markdown."

if __name__ == "__main__":
    sys.exit(main())
