"""``evaluation.json`` of a run directory: every evaluation made after training."""

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import DamagedFile
from research.files import read_json, write_whole
from research.status import utc_now

NAME = "evaluation.json"
VERSION = 1
MAX_BYTES = 2**26
"""A longer file is no list of evaluations."""

log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """A run's evaluation.

    Attributes:
        settings: all that the results depend on.
        results: ``metrics`` by name, as training logs them, and what else was computed.

    """

    settings: dict[str, Any]
    results: dict[str, Any]


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, the oldest first; none if it has no such file.

    Raises:
        DamagedFile: the file is something else.

    """
    path = folder / NAME
    try:
        content = read_json(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: {error}; move it away") from error
    evaluations = content.get("evaluations") if isinstance(content, dict) else None
    if not isinstance(evaluations, list) or content.get("version") != VERSION:
        raise DamagedFile(f"{path} is no list of evaluations of version {VERSION}; move it away")
    return evaluations


def add_evaluation(folder: Path, evaluated: Evaluated) -> None:
    """Add an evaluation to a run's, unless the same one is there.

    One of the same settings with other results, from other code for example, is kept beside it.

    Raises:
        DamagedFile: the file that is there holds no evaluations.

    """
    with locked(folder):
        add(folder, evaluated)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other evaluations of the run from being added meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def add(folder: Path, evaluated: Evaluated) -> None:
    """``add_evaluation`` where nobody else does it."""
    evaluations = read_evaluations(folder)
    new = finite(evaluated._asdict())
    for old in evaluations:
        if old["settings"] == new["settings"]:
            if old["results"] == new["results"]:
                return
            log.warning(
                "%s: the results differ from those of %s with the same settings; both are kept",
                *(folder / NAME, old["time"]),
            )
    content = {"version": VERSION, "evaluations": [*evaluations, {"time": utc_now(), **new}]}
    write_whole(folder / NAME, json.dumps(content, indent=1) + "\n")


def finite(value: Any) -> Any:
    """Nested plain values in which numbers that JSON lacks are None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
