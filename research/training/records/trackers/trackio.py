"""Trackio, whose curves are in an SQLite file: https://github.com/gradio-app/trackio."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import UserError, message_of
from research.training.records.clock import Clock
from research.training.records.hyperparameters import hyperparameters_of
from research.training.records.trackers.base import (
    NOWHERE,
    AppendOnly,
    Position,
    check_package,
    run_id,
    run_name,
)

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables that would send points elsewhere, where it is not known which arrived."""


class Trackio(AppendOnly):
    """A run in Trackio's local database: ``trackio show`` shows it, ``trackio sync`` uploads it.

    Args:
        run_dir: names the run; the database lies in TRACKIO_DIR, or else in the user's cache.
        project: where the run belongs.
        group: of runs that belong together; None for none.

    Raises:
        UserError: the package is missing, or would log elsewhere.

    """

    def __init__(self, run_dir: Path, *, project: str, group: str | None) -> None:
        check_package("trackio", extra="trackio")
        for name in REMOTE:
            if os.environ.get(name):
                raise UserError(
                    f"logger.trackers: trackio logs to this machine, but {name} is set; unset it, "
                    "and upload by 'trackio sync'"
                )
        self.run_dir = run_dir
        self.project = project
        self.group = group
        self.run: Any = None
        self.step = 0

    def start(self, hyperparameters: Mapping[str, object]) -> Position:
        trackio = importlib.import_module("trackio")
        self.video = trackio.Video
        name = f"{run_name(self.run_dir)}-{run_id(self.run_dir)}"
        config = hyperparameters_of(hyperparameters)
        try:
            self.run = trackio.init(
                self.project, name=name, group=self.group, config=config, resume="allow"
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(
                f"Trackio could not start a run in project '{self.project}': {message_of(error)}"
            ) from error
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        rows = storage.get_logs(self.project, name, run_id=self.run.id)
        points = [Position(row["step"], row["seconds"]) for row in rows if "seconds" in row]
        return max(points, default=NOWHERE)

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        self.step = clock.step
        values = {**clock._asdict(), **scalars}
        del values["step"]  # Trackio's own name
        self.run.log(values, step=clock.step)

    def log_video(self, name: str, path: Path, clock: Clock) -> None:
        self.run.log({name: self.video(path)}, step=clock.step)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Trackio has no final metrics: they become points."""
        self.run.log(dict(metrics), step=self.step)
        self.close()

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None
