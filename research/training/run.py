"""One run: its directory, status, seed and config."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from research.status import Status

if TYPE_CHECKING:
    from research.training.lockstep import Seat


class Run(NamedTuple):
    """The facts about a run that its parts share.

    Attributes:
        folder: the run directory.
        status: writes ``status.json``.
        seed: from which every generator derives its own.
        config: the resolved config, as plain dicts, lists and scalars.
        seat: of a run in lockstep with others; None for a run alone.

    """

    folder: Path
    status: Status
    seed: int
    config: dict[str, Any]
    seat: "Seat | None" = None
