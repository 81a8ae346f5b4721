"""One run: its directory and what the whole of it shares."""

from pathlib import Path
from typing import Any, NamedTuple

from research.status import Status


class Run(NamedTuple):
    """What every part that writes or seeds needs to know of a run.

    Attributes:
        folder: the run directory.
        status: keeps ``status.json``.
        seed: from which every generator derives its own.
        config: the resolved config, as plain dicts, lists and scalars.

    """

    folder: Path
    status: Status
    seed: int
    config: dict[str, Any]
