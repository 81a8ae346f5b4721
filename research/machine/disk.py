"""Tensors in temporary files, for data that does not fit in memory."""

import math
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from research.machine.memory import format_bytes
from research.machine.mounts import read_mounts

IN_MEMORY = ("tmpfs", "ramfs")
"""File systems that keep their files in memory."""


def map_file(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file in the folder for temporary files, which the system caches like any file.

    The file has no name, so it disappears when the process ends, however it ends. Its blocks are
    reserved (not on macOS): otherwise a disk that fills up later would kill the process in a write.

    Raises:
        OSError: the disk has not enough space.

    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:  # macOS
            file.truncate(num_bytes)
        memory = mmap.mmap(file.fileno(), num_bytes)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def require_disk(num_bytes: int, what: str) -> None:
    """Check that ``num_bytes`` fit on the disk of the folder for temporary files.

    Raises:
        ValueError: they do not fit, or the folder is in memory; the message says what to do.

    """
    folder = Path(tempfile.gettempdir())
    kind = file_system(folder)
    if kind in IN_MEMORY:
        raise ValueError(
            f"{what} cannot be on disk in {folder}, which is in memory ({kind}); "
            "set TMPDIR to a folder on a local disk"
        )
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"{what} needs {format_bytes(num_bytes)} of disk, but {format_bytes(free)} are free in "
            f"{folder}; set TMPDIR to a folder with more, or lower dataset.capacity"
        )


def file_system(folder: Path, root: Path = Path("/")) -> str | None:
    """The type of the file system that holds ``folder``; None if it is unknown.

    Args:
        folder: any folder.
        root: the folder that holds ``proc``.

    """
    kinds = {mount.folder: mount.kind for mount in read_mounts(root)}
    place = root / folder.resolve().relative_to("/")
    return next((kinds[path] for path in (place, *place.parents) if path in kinds), None)
