"""One run: its directory, status, seed and config."""

from pathlib import Path
from typing import Any, NamedTuple

from research.status import Status


class Run(NamedTuple):
    """The facts about a run that its parts share.

    Attributes:
        folder: the run directory.
        status: writes ``status.json``.
        seed: from which every generator derives its own.
        config: the resolved config, as plain dicts, lists and scalars.

    """

    folder: Path
    status: Status
    seed: int
    config: dict[str, Any]
