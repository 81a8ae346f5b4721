"""Logs of a run: a CSV file per group of metrics, and trackers that show the same."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from research.files import flush_file, flush_folder, write_whole
from research.training.records.clock import Clock
from research.training.records.events import rewind_events
from research.training.records.table import Table, find_logs
from research.training.records.trackers.base import Tracker
from research.training.records.video import encode, encode_gif


class Logger:
    """Writes rows of metrics to CSV files, and hands them to trackers.

    Logs that the run directory holds are continued. If the disk is full, an ``OSError`` is raised
    and every earlier row is whole. Nothing is written before ``rewind`` or the first row.

    Args:
        run_dir: where the files go.
        trackers: get every point; none for CSV alone.

    """

    def __init__(self, run_dir: Path, trackers: Sequence[Tracker]) -> None:
        self.run_dir = run_dir
        self.trackers = trackers
        self.tables: dict[str, Table] = {}
        self.unflushed: set[Path] = set()

    def start(self, hyperparameters: Mapping[str, object]) -> None:
        """Start the trackers, after ``rewind``.

        Args:
            hyperparameters: the config of the run, nested.

        Raises:
            UserError: one of them refuses.

        """
        for tracker in self.trackers:
            tracker.start(hyperparameters)

    def log(self, group: str, metrics: Mapping[str, float], clock: Clock) -> None:
        """Add a row to ``<group>.csv``, and points named ``group/metric`` to the trackers.

        Raises:
            ValueError: ``group`` has characters outside [a-z_], or a metric has an invalid name.
            UserError: ``<group>.csv`` exists and is not a log.

        """
        check_names(group, metrics)
        values = {name: float(value) for name, value in metrics.items()}
        table = self.table(group)
        table.add({**clock._asdict(), **values})
        self.unflushed.add(table.path)
        scalars = {f"{group}/{name}": value for name, value in values.items()}
        for tracker in self.trackers:
            tracker.log(scalars, clock)

    def log_video(self, name: str, frames: np.ndarray, fps: Fraction, clock: Clock) -> None:
        """Write ``videos/<step>.mp4``, and hand it to the trackers.

        Args:
            name: of the video, such as ``eval/video``.
            frames: (T, H, W, 3) uint8.
            fps: frames per second.
            clock: how far the run is.

        Raises:
            UserError: the package av is missing.

        """
        path = self.run_dir / "videos" / f"{clock.step}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, encode(frames, fps))
        gif = encode_gif(frames, fps) if self.trackers else b""
        for tracker in self.trackers:
            tracker.log_video(name, path, gif, clock)

    def flush(self) -> None:
        """Write everything logged to the disk, so that a power cut loses none of it.

        Call it before a checkpoint is written: a run that resumes from it needs the rows before it.
        """
        for path in self.unflushed:
            flush_file(path)
        if self.unflushed:
            flush_folder(self.run_dir)
        self.unflushed.clear()
        for tracker in self.trackers:
            tracker.flush()

    def cover(self) -> None:
        """Tell the trackers that a checkpoint is written, so that what is logged is certain."""
        for tracker in self.trackers:
            tracker.cover()

    def rewind(self, step: int) -> None:
        """Remove everything logged after ``step``; a run that resumes from there logs it again.

        What ``finish`` wrote is removed at any step.
        """
        for path in find_logs(self.run_dir):
            self.table(path.stem).drop_after(step)
        rewind_events(self.run_dir, step)  # even if they are not continued
        for tracker in self.trackers:
            tracker.rewind(step)

    def finish(self, hyperparameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Write the hyperparameters (nested, of any type) and final metrics: the run is complete.

        Raises:
            UserError: a tracker lacks points, and does not take them.

        """
        self.flush()
        final = {name: float(value) for name, value in metrics.items()}
        for tracker in self.trackers:
            tracker.finish(hyperparameters, final)

    def close(self) -> None:
        """Close the trackers, after ``finish`` or without it."""
        for tracker in self.trackers:
            tracker.close()

    def table(self, group: str) -> Table:
        """The CSV file of ``group``, opened once."""
        if group not in self.tables:
            self.tables[group] = Table(self.run_dir / f"{group}.csv")
        return self.tables[group]


def check_names(group: str, metrics: Mapping[str, float]) -> None:
    """Raise ``ValueError`` unless the names are valid for a file, its columns and its tags."""
    if not re.fullmatch("[a-z_]+", group):
        raise ValueError(f"a group of metrics is named with a-z and _, got '{group}'")
    for name in metrics:
        if not re.fullmatch("[A-Za-z0-9_./-]+", name) or name in Clock._fields:
            allowed = f"letters, digits and _ . / -, and not {', '.join(Clock._fields)}"
            raise ValueError(f"a metric of '{group}' is named with {allowed}; got '{name}'")
