"""TensorBoard, whose points are cut back when a run resumes from an earlier step."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from research.files import flush_file, flush_folder
from research.training.records.clock import Clock
from research.training.records.events import (
    NAMES,
    EventFile,
    gif_value,
    hyperparameter_values,
    rewind_events,
    scalar_values,
    text_value,
)
from research.training.records.hyperparameters import hyperparameters_of
from research.training.records.trackers.base import Tracker


class TensorBoard(Tracker):
    """Event files in the run directory; the package is not imported before the first of them.

    Its pages have the curves, the config (TEXT), and for a run that is complete, its
    hyperparameters and final metrics (HPARAMS).

    Args:
        run_dir: where the files go.

    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.events = EventFile(run_dir, purge_step=None)
        self.step = 0
        self.unflushed: set[Path] = set()

    def start(self, hyperparameters: Mapping[str, object]) -> None:
        text = yaml.safe_dump(dict(hyperparameters), sort_keys=False)
        text = f"```yaml\n{text}```"
        files = [path for path in self.run_dir.glob(NAMES) if path.is_file()]
        if not any(text.encode() in path.read_bytes() for path in files):
            self.write(self.step, [text_value("config", text)])

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        self.write(clock.step, scalar_values(scalars))

    def log_video(self, name: str, path: Path, gif: bytes, clock: Clock) -> None:
        self.write(clock.step, [gif_value(name, gif)])

    def rewind(self, step: int) -> None:
        rewind_events(self.run_dir, step)
        self.events = EventFile(self.run_dir, purge_step=step + 1)
        self.step = max(step, 0)

    def flush(self) -> None:
        for path in self.unflushed:
            flush_file(path)
        if self.unflushed:
            flush_folder(self.run_dir)
        self.unflushed.clear()

    def finish(self, hyperparameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """The HPARAMS page shows the last value of everything logged, the first five by name."""
        # One event, so that a rewind recognises these scalars by their hyperparameters.
        values = hyperparameter_values(hyperparameters_of(hyperparameters))
        self.write(self.step, scalar_values(metrics) + values)
        self.flush()

    def write(self, step: int, values: list[dict[str, object]]) -> None:
        """Add an event."""
        self.step = step
        self.unflushed.add(self.events.write(step, values))
