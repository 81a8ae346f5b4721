"""The base class of trackers, which show the metrics of a run in other forms than CSV."""

import importlib.util
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from research.errors import UserError
from research.files import read_text, write_whole
from research.training.records.clock import Clock


class Tracker:
    """Shows the metrics of a run, whose CSV files it does not replace.

    Its constructor checks what it is given, and neither writes nor connects: a sweep makes
    trackers to check its jobs, and so does every rank of a data-parallel run. Only rank 0 calls
    the other methods.
    """

    def start(self, hyperparameters: Mapping[str, object]) -> None:
        """Begin, or continue with what an earlier attempt of the run has logged.

        Args:
            hyperparameters: the config of the run, nested.

        """

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        """Add a point to the curve of each scalar, which is named ``group/metric``."""
        raise NotImplementedError

    def log_video(self, name: str, path: Path, gif: bytes, clock: Clock) -> None:
        """Add a video, which is there as an MP4 file and as a smaller GIF; none by default."""

    def rewind(self, step: int) -> None:
        """Remove everything after ``step``; a run that resumes from there logs it again."""

    def flush(self) -> None:
        """Write everything to the disk; called before a checkpoint is written."""

    def cover(self) -> None:
        """Take note that a checkpoint is written: no run goes back behind it."""

    def finish(self, hyperparameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Add final metrics: the run is complete."""

    def close(self) -> None:
        """End the connection, after ``finish`` or without it; the run may be resumed later."""


TrackerFactory: TypeAlias = Callable[[Path], "Tracker | AppendOnly"]
"""Makes a tracker of the run in a directory."""


class Position(NamedTuple):
    """How far a tracker has come: two numbers of the clock of its last point."""

    step: int
    seconds: float


NOWHERE = Position(-1, -1.0)
"""The position of a tracker without points."""


class AppendOnly(ABC):
    """A tracker that cannot remove a point; see ``research.training.records.covered``.

    Attributes:
        errors: what its methods raise if it cannot be reached. Its points then wait.

    """

    errors: tuple[type[Exception], ...] = ()

    @abstractmethod
    def start(self, hyperparameters: Mapping[str, object]) -> Position:
        """Connect; returns the position of the last point that it has of this run.

        Raises:
            UserError: it refuses, or cannot be reached.

        """

    @abstractmethod
    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        """Add a point, whole or not at all."""

    @abstractmethod
    def log_video(self, name: str, path: Path, clock: Clock) -> None:
        """Add a video, which is an MP4 file."""

    @abstractmethod
    def finish(self, metrics: Mapping[str, float]) -> None:
        """Add final metrics: the run is complete."""

    @abstractmethod
    def close(self) -> None:
        """End the connection, after ``finish`` or without it; the run may be resumed later."""


def check_package(name: str, *, extra: str) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        UserError: it cannot be found.

    """
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # a test has put None in its place
        found = None
    if found is None:
        hint = f"pip install -e '.[{extra}]'"
        raise UserError(f"logger.trackers: {name} needs the package {name}: {hint}")


def run_name(run_dir: Path) -> str:
    """A name for people: that of the run directory and of the folder around it."""
    return "/".join(run_dir.resolve().parts[-2:])


def run_id(run_dir: Path) -> str:
    """What identifies the run with trackers, the same in all its attempts: ``tracking_id``."""
    path = run_dir / "tracking_id"
    try:
        found = read_text(path, max_bytes=100).strip()
    except FileNotFoundError:
        found = uuid.uuid4().hex[:12]
        write_whole(path, f"{found}\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not (found.isalnum() and found.isascii()):
        raise UserError(f"{path} is damaged: it is not letters and digits")
    return found
