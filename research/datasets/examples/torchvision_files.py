"""Finds the damaged file of a torchvision dataset, if its checksums are known."""

import hashlib
from pathlib import Path


def damaged_file(kind: type, root: str) -> str | None:
    """The first missing or damaged file, if the class lists names and MD5 sums as CIFAR10 does.

    None if there is no such file, or if none of the files exists.
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
