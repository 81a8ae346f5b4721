"""Weights & Biases: https://docs.wandb.ai."""

import importlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

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

OPEN: list[Any] = []
"""W&B's runs of this process that have not ended."""


class WandB(AppendOnly):
    """A run at W&B, or in files that ``wandb sync`` uploads later.

    Args:
        run_dir: the run directory; files go into its folder ``wandb``.
        project: where the run belongs.
        entity: the user or team; None for the default of the account.
        group: of runs that belong together; None for none.
        mode: None for the value of WANDB_MODE, or ``online`` without one.

    Raises:
        UserError: the package is missing.

    """

    def __init__(
        self,
        run_dir: Path,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        mode: Literal["online", "offline", "disabled"] | None,
    ) -> None:
        check_package("wandb", extra="wandb")
        self.run_dir = run_dir
        self.options = {"project": project, "entity": entity, "group": group, "mode": mode}
        self.run: Any = None

    def start(self, hyperparameters: Mapping[str, object]) -> Position:
        self.wandb: Any = importlib.import_module("wandb")
        identity = run_id(self.run_dir)
        try:
            self.run = self.wandb.init(
                **self.options,
                id=identity,
                name=run_name(self.run_dir),
                dir=self.run_dir,
                resume="allow",
                reinit="create_new",  # else another seed of this process goes on with the first
                config=hyperparameters_of(hyperparameters),
                allow_val_change=True,
            )
        except self.wandb.Error as error:
            project = self.options["project"]
            raise UserError(
                f"W&B could not start a run in project '{project}': {message_of(error)}; "
                "logger.wandb.mode=offline needs no network"
            ) from error
        OPEN.append(self.run)
        self.run.define_metric("*", step_metric="step")
        if self.run.resumed:
            return position_of(dict(self.run.summary))
        return offline_position(self.run_dir / "wandb", identity) if self.run.offline else NOWHERE

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        self.run.log({**clock._asdict(), **scalars})

    def log_video(self, name: str, path: Path, clock: Clock) -> None:
        video = self.wandb.Video(str(path), format="mp4")
        self.run.log({**clock._asdict(), name: video})

    def finish(self, metrics: Mapping[str, float]) -> None:
        self.run.summary.update(dict(metrics))
        self.end(0)

    def close(self) -> None:
        if self.run is not None:
            self.end(1)

    def end(self, status: int) -> None:
        """End the run with an exit status, and wait until its file is whole."""
        self.run.finish(exit_code=status)
        OPEN.remove(self.run)
        self.run = None
        if not OPEN:  # of several seeds in this process
            self.wandb.teardown()


def position_of(row: Mapping[str, Any]) -> Position:
    """The position of a row of W&B's history, or of its summary."""
    step, seconds = row.get("step", NOWHERE.step), row.get("seconds", NOWHERE.seconds)
    return Position(int(step), float(seconds))


def offline_position(folder: Path, identity: str) -> Position:
    """The last position in the files of a run that was offline.

    W&B writes them with a delay, so that a run that was killed has lost some points.
    """
    reached = NOWHERE
    for path in folder.glob(f"offline-run-*-{identity}/run-{identity}.wandb"):
        for row in read_history(path):
            reached = max(reached, position_of(row))
    return reached


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a ``.wandb`` file, up to the first damage."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[reportMissingImports]

    for content in read_records(path.read_bytes()):
        items = Record.FromString(content).history.item
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
        if "step" in row and math.isfinite(row["seconds"]):
            yield row


BLOCK = 2**15
HEAD = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which W&B begins with seven bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    place, record = HEAD.size, b""
    while place + HEAD.size <= len(content):
        if (rest := BLOCK - place % BLOCK) < HEAD.size:  # too short for a head
            place += rest
            continue
        _, length, kind = HEAD.unpack_from(content, place)
        place += HEAD.size + length
        if kind not in (FULL, FIRST, MIDDLE, LAST) or place > len(content):
            return
        part = content[place - length : place]
        record = part if kind in (FULL, FIRST) else record + part
        if kind in (FULL, LAST):
            yield record
