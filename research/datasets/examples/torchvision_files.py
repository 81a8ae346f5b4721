"""Which file of a dataset of torchvision's is damaged, where that can be known."""

import hashlib
import os
import traceback
from pathlib import Path


def damaged_file(kind: type, root: str, error: BaseException) -> str | None:
    """The file below ``root`` for which an ``error`` of this class of dataset was raised."""
    return file_of_traceback(root, error) or file_of_checksums(kind, root)


def file_of_traceback(root: str, error: BaseException) -> str | None:
    """The last file that the functions which led to the error had at hand."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, (str, os.PathLike)) and os.path.isfile(value):
                path = Path(value)
                if path.resolve().is_relative_to(Path(root).resolve()):
                    found = str(path)
    return found


def file_of_checksums(kind: type, root: str) -> str | None:
    """The first file that is not what the class says, if it lists names and MD5 sums as CIFAR10's.

    None where there is not one of them.
    """
    folder = Path(root, getattr(kind, "base_folder", ""))
    listed = [*getattr(kind, "train_list", ()), *getattr(kind, "test_list", ())]
    paths = {folder / str(name): checksum for name, checksum in listed}
    if not any(path.is_file() for path in paths):
        return None
    for path, checksum in paths.items():
        if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != checksum:
            return str(path)
    return None
