"""Logs of a run: a CSV file per group of metrics, TensorBoard, and W&B if asked for."""

import importlib
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError
from research.files import append, flush_file, flush_folder, write_whole
from research.training.records.events import (
    EventFile,
    gif_value,
    hyperparameter_values,
    rewind_events,
    scalar_values,
)
from research.training.records.video import encode, encode_gif


class Clock(NamedTuple):
    """How far a run is; these are the first columns of every row.

    Attributes:
        step: environment steps, or updates if there is no collector; TensorBoard's x axis.
        frames: simulated by the environments: environment steps times the action repeat, less the
            repeats that the end of an episode made superfluous.
        updates: of the algorithm.
        epoch: passes through the dataset.
        seconds: of training, earlier attempts included.

    """

    step: int
    frames: int
    updates: int
    epoch: int
    seconds: float


HEADER = ",".join(Clock._fields).encode()
"""The start of every log, which distinguishes it from a user's CSV file."""


class Logger:
    """Writes rows of metrics to CSV files, TensorBoard and W&B.

    Logs that the run directory holds are continued. TensorBoard is not imported before the first
    row. If the disk is full, an ``OSError`` is raised and every earlier row is whole.

    Args:
        run_dir: where the files go.
        tensorboard: write TensorBoard's event files too.
        wandb: the W&B project to log to as well, or None.

    Raises:
        UserError: ``wandb`` is asked for and cannot be used.

    """

    def __init__(self, run_dir: Path, *, tensorboard: bool, wandb: str | None) -> None:
        self.run_dir = run_dir
        self.tables: dict[str, Table] = {}
        self.events = EventFile(run_dir, purge_step=None) if tensorboard else None
        self.wandb = start_wandb(wandb, run_dir) if wandb is not None else None
        self.step = 0
        self.unflushed: set[Path] = set()

    def log(self, group: str, metrics: Mapping[str, float], clock: Clock) -> None:
        """Add a row to ``<group>.csv`` and points named ``group/metric`` elsewhere.

        Raises:
            ValueError: ``group`` has characters outside [a-z_], or a metric has an invalid name.
            UserError: ``<group>.csv`` exists and is not a log.

        """
        check_names(group, metrics)
        values = {name: float(value) for name, value in metrics.items()}
        scalars = {f"{group}/{name}": value for name, value in values.items()}
        self.step = clock.step
        table = self.table(group)
        table.add({**clock._asdict(), **values})
        self.unflushed.add(table.path)
        if self.events is not None:
            self.unflushed.add(self.events.write(clock.step, scalar_values(scalars)))
        if self.wandb is not None:
            self.wandb.log({**clock._asdict(), **scalars})

    def log_video(self, name: str, frames: np.ndarray, fps: Fraction, clock: Clock) -> None:
        """Write ``videos/<step>.mp4``, and show it in TensorBoard and W&B.

        Args:
            name: of the video in TensorBoard and W&B, such as ``eval/video``.
            frames: (T, H, W, 3) uint8.
            fps: frames per second.
            clock: how far the run is.

        Raises:
            UserError: the package av is missing.

        """
        self.step = clock.step
        path = self.run_dir / "videos" / f"{clock.step}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, encode(frames, fps))
        if self.events is not None:
            value = gif_value(name, encode_gif(frames, fps))
            self.unflushed.add(self.events.write(clock.step, [value]))
        if self.wandb is not None:
            video = importlib.import_module("wandb").Video(str(path), format="mp4")
            self.wandb.log({**clock._asdict(), name: video})

    def flush(self) -> None:
        """Write everything logged to the disk, so that a power cut loses none of it.

        Call it before a checkpoint is written: a run that resumes from it needs the rows before it.
        """
        for path in self.unflushed:
            flush_file(path)
        if self.unflushed:
            flush_folder(self.run_dir)
        self.unflushed.clear()

    def rewind(self, step: int) -> None:
        """Remove everything logged after ``step``; a run that resumes from there logs it again.

        What ``finish`` wrote is removed at any step. W&B keeps its points: it cannot remove any.
        """
        self.step = step
        for path in self.run_dir.glob("*.csv"):
            if path.is_file() and path.read_bytes().startswith(HEADER):
                self.table(path.stem).drop_after(step)
        rewind_events(self.run_dir, step)
        if self.events is not None:
            self.events = EventFile(self.run_dir, purge_step=step + 1)

    def finish(self, hyperparameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Write the hyperparameters (nested, of any type) and final metrics, and close.

        TensorBoard's HPARAMS page lists the run with these, and with the last value of everything
        logged; it shows the first five metrics by name.
        """
        flat = flatten(hyperparameters)
        if self.events is not None:
            scalars = {name: float(value) for name, value in metrics.items()}
            # One event, so that a rewind recognises these scalars by their hyperparameters.
            values = scalar_values(scalars) + hyperparameter_values(flat)
            self.unflushed.add(self.events.write(self.step, values))
        self.flush()
        if self.wandb is not None:
            self.wandb.config.update(flat, allow_val_change=True)
            self.wandb.summary.update(dict(metrics))
            self.wandb.finish()

    def table(self, group: str) -> "Table":
        """The CSV file of ``group``, opened once."""
        if group not in self.tables:
            self.tables[group] = Table(self.run_dir / f"{group}.csv")
        return self.tables[group]


class Table:
    """A log as CSV: it grows by rows and, when a metric is new, by columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        content = path.read_bytes() if path.exists() else b""
        if content and not content.startswith(HEADER):
            raise UserError(f"{path} is in the way: it does not start with {HEADER.decode()}")
        # The machine may have stopped in the middle of the last row.
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            write_whole(path, whole)
        if whole:
            self.columns = whole.splitlines()[0].decode().split(",")

    def add(self, row: Mapping[str, int | float]) -> None:
        """Append ``row``; a column it lacks stays empty, and floats read back exactly."""
        new = [name for name in row if name not in self.columns]
        if new:
            self.widen(new)
        cells = [str(row[name]) if name in row else "" for name in self.columns]
        append(self.path, (",".join(cells) + "\n").encode())

    def widen(self, names: list[str]) -> None:
        """Add columns, empty in the rows there are."""
        columns = self.columns + names
        rows = self.path.read_text().splitlines()[1:] if self.columns else []
        lines = [",".join(columns), *(row + "," * len(names) for row in rows)]
        write_whole(self.path, "".join(f"{line}\n" for line in lines))
        self.columns = columns

    def drop_after(self, step: int) -> None:
        """Remove the rows of later steps, and rows that a power cut damaged."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        form = re.compile(rb"(\d{1,19})(,[\w.+-]*){%d}\r?\n" % (len(self.columns) - 1))
        matches = filter(None, map(form.fullmatch, lines[1:]))
        kept = lines[:1] + [match[0] for match in matches if int(match[1]) <= step]
        if len(kept) < len(lines):
            write_whole(self.path, b"".join(kept))


def check_names(group: str, metrics: Mapping[str, float]) -> None:
    """Raise ``ValueError`` unless the names are valid for a file, its columns and its tags."""
    if not re.fullmatch("[a-z_]+", group):
        raise ValueError(f"a group of metrics is named with a-z and _, got '{group}'")
    for name in metrics:
        if not re.fullmatch("[A-Za-z0-9_./-]+", name) or name in Clock._fields:
            allowed = f"letters, digits and _ . / -, and not {', '.join(Clock._fields)}"
            raise ValueError(f"a metric of '{group}' is named with {allowed}; got '{name}'")


def flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, str | bool | int | float]:
    """Nested mappings as one, keys joined by dots; all but bools and finite numbers become text."""
    flat: dict[str, str | bool | int | float] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def start_wandb(project: str, run_dir: Path) -> Any:
    """A W&B run for ``run_dir``, continued if there was one.

    Raises:
        UserError: the package is missing, or W&B refuses (no key, no network).

    """
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        hint = "pip install -e '.[wandb]'"
        raise UserError(f"logging to W&B needs the package wandb: {hint}") from error
    folders = (run_dir / "wandb").glob("*run-*-*")
    run_id = next((folder.name.rsplit("-", 1)[1] for folder in folders), None)
    name = "/".join(run_dir.resolve().parts[-2:])
    try:
        run = wandb.init(project=project, dir=run_dir, name=name, id=run_id, resume="allow")
    except wandb.Error as error:
        raise UserError(f"W&B could not start a run in project '{project}': {error}") from error
    run.define_metric("*", step_metric="step")
    return run
