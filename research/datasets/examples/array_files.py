"""Files of named arrays: NumPy's .npz, torch's .pt, and tables."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from research.datasets.examples.columns import (
    Column,
    Text,
    require_arrays_fit,
    require_names,
    to_tensor,
)
from research.datasets.examples.tables import read_csv, read_parquet
from research.errors import UserError, message_of


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Column]:
    """Arrays (n, ...) by their names, after a check that they fit in memory.

    Raises:
        UserError: the file is missing, damaged or of an unknown kind; an array is missing, empty
            or neither numbers nor text; or the arrays differ in length or do not fit in memory.

    """
    readers = {
        ".npz": read_npz,
        ".pt": read_pt,
        ".pth": read_pt,
        ".parquet": read_parquet,
        ".csv": read_csv,
        ".tsv": read_csv,
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path}: the file's name must end in one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path} is not there; see dataset.path and dataset.validation")
    try:
        arrays = read(path, names)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each library has its own errors for damaged files
        raise UserError(f"{path} cannot be read: {message_of(error)}") from error
    parts = {
        name: array.indices if isinstance(array, Text) else array for name, array in arrays.items()
    }
    for name, array in parts.items():
        if not array.ndim:
            raise UserError(
                f"{path}: array '{name}' is a single number, {array.item()}; it must have one for "
                "each example"
            )
    lengths = {name: len(array) for name, array in parts.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: the arrays differ in length: {lengths}")
    if not any(lengths.values()):
        raise UserError(f"{path} has no examples in the arrays {', '.join(names)}")
    for name, array in parts.items():
        if not array.numel():
            raise UserError(
                f"{path}: array '{name}' has shape {tuple(array.shape)}, no number for an example; "
                "see dataset.obs and dataset.target"
            )
    return arrays


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Column]:
    """Arrays of ``numpy.savez``.

    Raises:
        UserError: one holds Python objects, which only code from the file could create.

    """
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename[:-4]: entry.file_size for entry in archive.infolist()}
    require_names(path, names, list(sizes))
    require_arrays_fit(path, sum(sizes[name] for name in set(names)))
    with np.load(path, allow_pickle=False) as file:
        return {name: read_array(file, path, name) for name in names}


def read_array(file: np.lib.npyio.NpzFile, path: Path, name: str) -> Column:
    """An array of an open file."""
    try:
        array = file[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise UserError(
            f"{path}: array '{name}' holds Python objects, which are not read; write it as numbers "
            f"by {name}.astype(float), or names of classes by {name}.astype(str)"
        ) from error
    if array.dtype.kind not in "US" or array.ndim == 0:
        return to_tensor(array, path, name)
    words, indices = np.unique(array.astype(str), return_inverse=True)
    if len(words) == 0 or array.size != len(array):
        raise UserError(f"{path}: text '{name}' must be (n,), got {array.shape}")
    first = f"'{array.flat[0]}' in example 0"
    return Text(words.tolist(), torch.from_numpy(indices.reshape(-1).astype(np.int64)), first)


def read_pt(path: Path, names: Sequence[str]) -> dict[str, Column]:
    """Tensors of a dict that ``torch.save`` wrote."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} cannot be read: it is damaged, or not of torch.save since torch 1.6"
        )
    # Mapped, not read, until it is known how large they are.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dict of tensors, not a {type(content).__name__}")
    known = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    require_names(path, names, list(known))
    require_arrays_fit(path, sum(known[name].nbytes for name in set(names)))
    return {name: known[name].clone() for name in names}
