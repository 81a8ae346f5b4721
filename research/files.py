"""Files are written whole: a reader sees the old content or the new, never a part of it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Replace ``path`` by ``content`` (text, bytes, or a function that writes to a binary file).

    The content goes to a temporary file beside ``path``, which is flushed to the disk and renamed;
    the rename is flushed too. When anything fails (a full disk, say), the temporary file is
    removed, ``path`` is as it was, and the error is raised.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
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
    except BaseException:
        os.unlink(temporary)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the renames done in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
