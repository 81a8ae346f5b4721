"""Exactly once: points for trackers that cannot remove any wait until a checkpoint covers them.

A run that resumes repeats what came after its last checkpoint. So a point is sent only once it lies
before one. A run that ended between both reads it from the CSV files when it resumes: the tracker
says which of them it has.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from research.errors import UserError, message_of
from research.training.records.clock import Clock
from research.training.records.table import read_points
from research.training.records.trackers.base import NOWHERE, AppendOnly, Position, Tracker

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A point, or a video by its name and file."""

    clock: Clock
    content: dict[str, float] | tuple[str, Path]


class Covered(Tracker):
    """Hands points to a tracker as soon as a checkpoint covers them, each exactly once.

    If the tracker cannot be reached, a warning is logged, and they wait for the next checkpoint.

    Args:
        tracker: cannot remove points.
        run_dir: the run directory, whose CSV files have all points.

    """

    def __init__(self, tracker: AppendOnly, run_dir: Path) -> None:
        self.tracker = tracker
        self.run_dir = run_dir
        self.step = -1
        self.position = NOWHERE
        self.waiting: deque[Waiting] = deque()

    def rewind(self, step: int) -> None:
        self.step = step
        self.waiting = deque(each for each in self.waiting if each.clock.step <= step)

    def start(self, hyperparameters: Mapping[str, object]) -> None:
        self.position = self.tracker.start(hyperparameters)
        if self.position.step > self.step:
            # A checkpoint was damaged, and the run repeats points that the tracker has.
            self.position = Position(self.position.step, math.inf)
        self.waiting = deque(Waiting(*point) for point in read_points(self.run_dir))
        self.cover()

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        last = self.waiting[-1] if self.waiting else None
        if last and last.clock == clock and isinstance(last.content, dict):
            last.content.update(scalars)
        else:
            self.waiting.append(Waiting(clock, dict(scalars)))

    def log_video(self, name: str, path: Path, gif: bytes, clock: Clock) -> None:
        self.waiting.append(Waiting(clock, (name, path)))

    def cover(self) -> None:
        try:
            self.send_all()
        except self.tracker.errors as error:
            log.warning("%s; they wait for the next checkpoint", self.missing(error))

    def send_all(self) -> None:
        """Hand over what waits."""
        while self.waiting:
            self.send(self.waiting[0])
            self.waiting.popleft()

    def send(self, each: Waiting) -> None:
        """Hand over a point or video, unless the tracker has it."""
        position = Position(each.clock.step, each.clock.seconds)
        if position <= self.position:
            return
        if isinstance(each.content, dict):
            self.tracker.log(each.content, each.clock)
        else:
            self.tracker.log_video(*each.content, each.clock)
        self.position = position

    def missing(self, error: Exception) -> str:
        """Which points the tracker did not take, and why."""
        name, step = type(self.tracker).__name__, self.waiting[0].clock.step
        return f"{name} did not take the points from step {step} on: {message_of(error)}"

    def finish(self, hyperparameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        try:
            self.send_all()
            self.tracker.finish(metrics)
        except self.tracker.errors as error:
            what = self.missing(error) if self.waiting else message_of(error)
            raise UserError(f"{what}; type the command again to send what is missing") from error

    def close(self) -> None:
        try:
            self.tracker.close()
        except self.tracker.errors as error:
            log.warning("%s: %s", type(self.tracker).__name__, message_of(error))
