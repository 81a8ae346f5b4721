"""TensorBoard's event files, which are cut back when a run resumes from an earlier step."""

import io
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.files import append, write_whole

NAMES = "events.out.tfevents.*"

LAST_STEP = 2**63 - 1
"""The largest step that TensorBoard's events can hold."""


class EventFile:
    """A file for TensorBoard, made at the first write.

    Not a ``SummaryWriter``: its thread reports a full disk late, by a traceback of its own, and it
    cannot write hyperparameters into the run's own file.

    Args:
        folder: where the file goes.
        purge_step: step from which TensorBoard drops the points of earlier files; None to keep all.

    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        self.folder = folder
        self.purge_step = purge_step
        self.path: Path | None = None

    def write(self, step: int, values: list[dict[str, object]]) -> Path:
        """Add an event of summary values; returns the file, which holds it whole."""
        if self.path is None:
            self.path = self.open()
        append(self.path, event_record(step, {"summary": {"value": values}}))
        return self.path

    def open(self) -> Path:
        """Start a file whose name sorts last, so that TensorBoard reads it after the others."""
        numbers = [re.match("[0-9]+", path.name.split(".")[3]) for path in self.folder.glob(NAMES)]
        stamp = max([int(time.time()), *(int(number[0]) + 1 for number in numbers if number)])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        records = event_record(0, {"file_version": "brain.Event:2"})
        # TensorBoard ignores the first start of a session, so each file has one.
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


def scalar_values(scalars: Mapping[str, float]) -> list[dict[str, object]]:
    """Scalars as the summary values of an event."""
    return [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]


def gif_value(tag: str, gif: bytes) -> dict[str, object]:
    """An animated GIF as a summary value: an image, which TensorBoard shows as the browser does."""
    width, height = struct.unpack_from("<HH", gif, 6)
    image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": gif}
    return {"tag": tag, "image": image}


def text_value(tag: str, text: str) -> dict[str, object]:
    """Markdown as a summary value, for TensorBoard's TEXT page."""
    tensor = {"dtype": "DT_STRING", "string_val": [text.encode()]}
    return {"tag": tag, "tensor": tensor, "metadata": {"plugin_data": {"plugin_name": "text"}}}


def hyperparameter_values(
    flat: Mapping[str, str | bool | int | float],
) -> list[dict[str, object]]:
    """Start and end of a session, from which TensorBoard makes a row of its HPARAMS page.

    They have no experiment summary: TensorBoard would take the columns of all runs from one of
    them. Without it, the hyperparameters that differ between runs come first.
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
    return [{"tag": tag, "metadata": {"plugin_data": data}} for tag, data in plugin_data.items()]


def rewind_events(folder: Path, step: int) -> None:
    """Cut the event files in ``folder`` back to ``step``; other files stay as they are.

    Later events, events with hyperparameters and damaged records are removed. No file is deleted,
    even if it has no events left: a TensorBoard that reads it would wait for it for ever.
    """
    for path in folder.glob(NAMES):
        content = path.read_bytes() if path.is_file() else b""
        kept: list[bytes] = []
        for record, event in readable_events(content):
            if not kept and not event.file_version.startswith("brain.Event:"):
                break
            if stays(event, step):
                kept.append(record)
        if kept and sum(map(len, kept)) < len(content):
            write_whole(path, b"".join(kept))


def readable_events(content: bytes) -> Iterator[tuple[bytes, Any]]:
    """Each undamaged record of an event file, and the event in it."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    end = 0
    while (start := end) + 16 <= len(content):
        length, length_checksum = struct.unpack_from("<QI", content, start)
        end = start + 12 + length + 4
        if masked_crc32c(content[start : start + 8]) != length_checksum or end > len(content):
            return  # the start of the next record is unknown
        data, checksum = content[start + 12 : end - 4], content[end - 4 : end]
        if masked_crc32c(data) != int.from_bytes(checksum, "little"):
            continue
        try:
            event = Event.FromString(data)
        except DecodeError:
            continue
        yield content[start:end], event


def stays(event: Any, step: int) -> bool:
    """Whether a run that resumes from ``step`` keeps an event."""
    if event.WhichOneof("what") in ("file_version", "session_log"):
        return True
    is_end = any(value.tag.startswith("_hparams_/") for value in event.summary.value)
    return event.step <= step and not is_end
