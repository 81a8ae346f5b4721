"""Files are written whole: a reader sees the old content or the new, never a part of it."""

import json
import math
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Replace ``path`` by ``content`` (text, bytes, or a function that writes to a binary file).

    The content goes to a temporary file beside ``path``, which is flushed to the disk and renamed;
    the rename is flushed too. When anything fails (a full disk, say), the temporary file is
    removed, ``path`` is as it was, and the error is raised.
    """
    # Not named like ``path``: TensorBoard reads every file that has "tfevents" in its name.
    handle, temporary = tempfile.mkstemp(prefix=".partial.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write does not know where it failed
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the renames done in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_file(path: Path) -> None:
    """Make what was appended to ``path`` survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of ``path``; when that fails, ``path`` is as it was."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(size)
            raise


def read_text(path: Path, *, max_bytes: int) -> str:
    """The text of a file that anybody may have put there.

    Raises:
        OSError: it is missing or unreadable.
        ValueError: it is no regular file, longer than ``max_bytes``, or not UTF-8.

    """
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its writer
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content.decode()


def read_json(path: Path, *, max_bytes: int) -> Any:
    """The content of a JSON file that anybody may have written, its numbers finite.

    Raises:
        OSError: it is missing or unreadable.
        ValueError: it is something else, or has more than ``max_bytes``; the message is one line.

    """
    text = read_text(path, max_bytes=max_bytes)
    try:
        return json.loads(text, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def finite(text: str) -> float:
    """The number that ``text`` is; ``ValueError`` if it is NaN or infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value
