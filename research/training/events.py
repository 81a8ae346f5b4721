"""TensorBoard's event files, written as they come: what is logged is on the disk."""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from research.files import append

LAST_STEP = 2**63 - 1
"""The largest step that TensorBoard's events can hold."""


class EventFile:
    """A file for TensorBoard, made at the first write.

    Not a ``SummaryWriter``: its thread reports a full disk late, by a traceback of its own, and it
    cannot write hyperparameters into the run's own file.

    Args:
        folder: where the file goes.
        purge_step: TensorBoard is to forget earlier files' points from here on; None for nothing.

    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        self.folder = folder
        self.purge_step = purge_step
        self.path: Path | None = None

    def write(self, step: int, content: Mapping[str, object]) -> None:
        """Add an event, which is on disk as TensorBoard's protocol buffer on return."""
        if self.path is None:
            self.path = self.open()
        append(self.path, event_record(step, content))

    def open(self) -> Path:
        """Start a file that TensorBoard reads after those that are there: it sorts by name."""
        names = [path.name for path in self.folder.glob("events.out.tfevents.*")]
        stamp = max([int(time.time()), *(int(name.split(".")[3]) + 1 for name in names)])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        records = event_record(0, {"file_version": "brain.Event:2"})
        # TensorBoard obeys every start of a session but the first, so each file has one.
        purge_step = self.purge_step if self.purge_step is not None else LAST_STEP
        records += event_record(purge_step, {"session_log": {"status": "START"}})
        append(self.folder / name, records)
        return self.folder / name


def event_record(step: int, content: Mapping[str, object]) -> bytes:
    """One record of an event file, framed by TensorBoard's own writer."""
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    event = Event(wall_time=time.time(), step=step, **content)
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


def scalar_summary(scalars: Mapping[str, float]) -> dict[str, object]:
    """A summary of plain numbers by tag."""
    return {"value": [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]}


def hyperparameter_summary(flat: Mapping[str, str | bool | int | float]) -> dict[str, object]:
    """Start and end of a session, from which TensorBoard makes a row of its HPARAMS page.

    No experiment is described: TensorBoard would take the columns of all runs from one of them,
    and without it puts first the hyperparameters in which the runs differ.
    """
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore

    fields = {bool: "bool_value", str: "string_value"}
    hparams = {
        name: Value(**{fields.get(type(value), "number_value"): value})  # type: ignore
        for name, value in flat.items()
    }
    end = {"status": "STATUS_SUCCESS", "end_time_secs": time.time()}
    messages = {
        "_hparams_/session_start_info": HParamsPluginData(session_start_info={"hparams": hparams}),
        "_hparams_/session_end_info": HParamsPluginData(session_end_info=end),
    }
    plugin_data = {
        tag: {"plugin_name": "hparams", "content": message.SerializeToString()}
        for tag, message in messages.items()
    }
    return {
        "value": [
            {"tag": tag, "metadata": {"plugin_data": data}} for tag, data in plugin_data.items()
        ]
    }
