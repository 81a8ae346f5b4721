"""Errors that are shown to the user as one line, and the nearest name for a misspelt one."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend; ``train.py`` prints it as one line and exits with status 1."""


class DamagedFile(UserError):
    """A file of a run that is not what was written: cut short, altered, or of another version."""


PREEMPTED = 75
"""Exit status of a run that was told to stop and goes on later: EX_TEMPFAIL of sysexits.h."""


class Preempted(KeyboardInterrupt):
    """A signal ended a run, which saved its work; the same command goes on from there."""


def did_you_mean(name: object, choices: Iterable[object]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``name``, else an empty string."""
    known = {str(choice).lower(): str(choice) for choice in choices}
    nearest = get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f"; did you mean '{known[nearest[0]]}'?" if nearest else ""
