"""A command about runs: words in, one line for an error, an exit status."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from research.errors import UserError


def run(
    name: str,
    work: Callable[[list[str]], bool | None],
    arguments: Sequence[str] | None,
    *,
    description: str,
    options: str,
) -> int:
    """Do what a command line asks for.

    Args:
        name: of the module in ``research``.
        work: gets the words; returns False if not all of it could be done.
        arguments: the command line; None for that of this process.
        description: of the command, for ``--help``.
        options: a line for each, for ``--help``.

    Returns:
        the exit status.

    """
    parser = argparse.ArgumentParser(
        prog=f"python -m research.{name}",
        usage="%(prog)s PATH... [KEY=VALUE...]",
        description=description,
        epilog=options,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="PATH", help="a run, or what holds runs")
    words = parser.parse_args(arguments).words
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    for logger in ("__main__", "research"):  # libraries say less
        logging.getLogger(logger).setLevel(logging.INFO)
    try:
        return 1 if work(words) is False else 0
    except (UserError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        return 130
