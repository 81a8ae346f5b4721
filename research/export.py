"""A policy for use elsewhere: ``python -m research.export RUN [format=onnx|torch ...]``."""

import logging
import sys
from collections.abc import Sequence

from research.results.command import run

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line; returns the exit status."""
    return run("export", export, arguments, description=DESCRIPTION, options=OPTIONS)


def export(words: list[str]) -> None:
    """Write the policy of the run that the words name."""
    from research.results.arguments import parse
    from research.results.export import ExportOptions, export_run
    from research.results.runs import only

    paths, options = parse(words, ExportOptions)
    path = export_run(only(paths), options)
    log.info("wrote %s (%.3g MB) and %s", path, path.stat().st_size / 1e6, path.stem + ".json")


DESCRIPTION = """\
Write the policy of a run, with its processor and in the environment's own units, as one
file that needs nothing of this project, and a JSON file that tells what goes in and out."""

OPTIONS = """\
options:
  format=onnx|torch      ONNX, or torch.export's .pt2 (onnx)
  checkpoint=best|last   the one with the best score, or the last (best)
  out=FILE               (RUN/export/policy.onnx or .pt2)
  trusted_modules=[m]    modules of yours that the config may name"""

if __name__ == "__main__":
    sys.exit(main())
