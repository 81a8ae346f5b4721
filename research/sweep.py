"""Commands for an existing sweep: ``python -m research.sweep status|wait|cancel|retry DIR``."""

import argparse
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from research.errors import UserError, override
from research.launchers.plan.ledger import planned_jobs, read_plan
from research.launchers.show.follow import LIVING, SILENT, Follower, wait_showing
from research.launchers.show.report import report
from research.launchers.show.table import table
from research.launchers.slurm.queue import cancel, find_places, read_submissions
from research.status import BLANK, is_in_use, lock_owner, read_status

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m research.sweep", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, text) in VERBS.items():
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("sweep", type=Path, metavar="SWEEP_DIR")
        if verb == "status":
            command.add_argument("report", nargs="?", metavar="report=PATH", help=REPORT)
    choice = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        path = report_path(getattr(choice, "report", None))
        status = VERBS[choice.verb][0](choice.sweep.absolute())
        if path is not None:
            from research.report import write  # slow to import

            write([str(choice.sweep.absolute()), f"out={path}"])
        return status
    except UserError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        return 130


def show_status(sweep: Path) -> int:
    """Print the current state of every job."""
    follower = Follower(sweep, planned_jobs(sweep))
    for line in table(follower.look(), width=shutil.get_terminal_size((120, 0)).columns):
        log.info("%s", line)
    if not follower.is_answered:
        log.info("%s", SILENT)
    return 0


def report_path(option: str | None) -> str | None:
    """The path in ``report=PATH``.

    Raises:
        UserError: it is another option.

    """
    name, _, path = (option or "report=").partition("=")
    if name != "report" or (option and not path):
        raise UserError(f"{option} is no option; allowed: report=PATH")
    return path or None


def wait_for(sweep: Path) -> int:
    """Wait until all jobs have ended; returns 0 if every one completed."""
    jobs = planned_jobs(sweep)
    wait_showing(sweep, jobs)
    return 0 if report(sweep, jobs, mode=score_mode(sweep)) else 1


def score_mode(sweep: Path) -> Literal["max", "min"] | None:
    """Whether a high or a low score is better, if the config says so."""
    plan = read_plan(sweep)
    mode = plan["config"] if plan else None
    for key in ("trainer", "score", "mode"):
        mode = mode.get(key) if isinstance(mode, dict) else None
    return mode if mode in ("max", "min") else None


def cancel_jobs(sweep: Path) -> int:
    """Cancel the jobs that wait, and tell those that run to save their work and end."""
    jobs = planned_jobs(sweep)
    places = find_places(read_submissions(sweep))
    if places is None:
        raise UserError("SLURM does not answer; try later")
    open_jobs = {
        job.number for job in jobs if (read_status(job.folder) or BLANK)["state"] in LIVING
    }
    tasks = {place.task for number, place in places.items() if number in open_jobs}
    cancel(tasks)
    if is_in_use(sweep):
        pid, host = lock_owner(sweep) or (0, "an unknown host")
        if host != os.uname().nodename:
            raise UserError(f"the launcher runs on {host} (pid {pid}); cancel it there")
        os.kill(pid, signal.SIGTERM)
        log.info("told the launcher (pid %d) to stop its jobs", pid)
    elif tasks:
        log.info("cancelled %s", ", ".join(sorted(tasks)))
    else:
        log.info("no job of %s waits or runs", sweep)
    return 0


def retry(sweep: Path) -> int:
    """Run the jobs that have not completed, with the command that started the sweep."""
    plan = read_plan(sweep)
    planned_jobs(sweep)
    assert plan is not None
    command = [word for word in plan["command"] if not word.startswith("hydra.sweep.dir=")]
    command.append(override("hydra.sweep.dir", sweep))
    log.info("%s", shlex.join(command))
    return subprocess.run(command, cwd=plan["folder"]).returncode


VERBS = {
    "status": (show_status, "print the current state of every job"),
    "wait": (wait_for, "wait for the end, then print the results; exit status 0 if all completed"),
    "cancel": (cancel_jobs, "cancel the jobs; those that run save their work and end"),
    "retry": (retry, "run the jobs that have not completed, with the sweep's own command"),
}
REPORT = "also write what there is so far as PATH.html and PATH.md"
DESCRIPTION = "Look after a sweep from any shell."

if __name__ == "__main__":
    sys.exit(main())
