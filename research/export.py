"""A policy for use elsewhere: ``python -m research.export RUN [format=onnx|torch ...]``."""

import argparse
import logging
import sys
from collections.abc import Sequence

from research.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m research.export",
        description=DESCRIPTION,
        epilog=OPTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="RUN|OPTION=VALUE")
    words = parser.parse_args(arguments).words
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    log = logging.getLogger("research.export")
    logging.getLogger("research").setLevel(logging.INFO)
    try:
        from research.results.arguments import parse
        from research.results.export import ExportOptions, export_run

        paths, options = parse(words, ExportOptions)
        if len(paths) > 1:
            raise UserError(f"one run at a time, got {len(paths)}")
        path = export_run(paths[0], options)
        log.info("wrote %s (%.3g MB) and %s", path, path.stat().st_size / 1e6, path.stem + ".json")
        return 0
    except (UserError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        return 130


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
