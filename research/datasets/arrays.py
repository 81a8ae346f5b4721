"""Examples in arrays of one file: NumPy's .npz, torch's .pt, or the columns of a .parquet file."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from research.datasets.examples import Examples
from research.datasets.reading import require_room
from research.datasets.sources import TensorSource, one_line
from research.errors import UserError, did_you_mean


def array_examples(
    env: object,
    seed: int,
    *,
    path: str,
    obs: Sequence[str],
    target: Sequence[str],
    validation: float | str | None,
    split_seed: int,
    num_classes: int | None,
    batch_size: int,
    num_workers: int,
    device: str,
) -> Examples:
    """Named arrays, the first dimension of which counts examples.

    Integer targets (n,) are class labels, others are numbers to be learned. Observations of uint8
    are images if they are (n, C, H, W) or (n, H, W), of one channel then; all others are float32.

    Args:
        env: not used.
        seed: of the order.
        path: the file.
        obs: names of arrays or columns; several are put side by side.
        target: likewise.
        validation: the path of another such file, or as ``Examples`` takes it.
        split_seed, num_classes, batch_size, num_workers, device: as ``Examples`` takes them.

    Raises:
        UserError: a file is missing or damaged, or has no such arrays, or one with a value that is
            no number of float32, or images (n, H, W, C).
        ValueError: as ``Examples`` raises it.

    """
    apart = validation
    if isinstance(apart, str):
        apart = read_examples(Path(apart), obs, target)
    return Examples(
        read_examples(Path(path), obs, target),
        apart,
        seed,
        split_seed=split_seed,
        num_classes=num_classes,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )


def read_examples(path: Path, obs: Sequence[str], target: Sequence[str]) -> TensorSource:
    """The examples of a file."""
    if not obs or not target:
        raise ValueError("obs and target must each name at least one array")
    arrays = read_arrays(path, [*obs, *target])
    observations = join([arrays[name] for name in obs])
    if observations.dtype == torch.uint8 and observations.ndim in (3, 4):
        observations = to_images(observations, f"{path}: '{obs[0]}'")
    else:
        observations = to_float32(observations, path, "an observation")
    if observations.ndim == 1:
        observations = observations[:, None]
    targets = join([arrays[name] for name in target])
    if targets.is_floating_point():
        targets = to_float32(targets, path, "a target").reshape(len(targets), -1)
    elif math.prod(targets.shape[1:]) == 1:
        targets = targets.long().flatten()
    else:
        raise UserError(f"{path}: labels must be one for each example, got {tuple(targets.shape)}")
    return TensorSource(str(path), observations, targets)


def to_images(values: Tensor, name: str) -> Tensor:
    """Images (n, C, H, W) of those, or of (n, H, W) with one channel.

    Raises:
        UserError: they look like (n, H, W, C).

    """
    shape = tuple(values.shape[1:])
    if len(shape) == 3 and shape[0] > 4 and shape[2] in (1, 3, 4):
        raise UserError(
            f"{name} has images {shape}, but (C, H, W) is wanted; write np.moveaxis(x, -1, 1)"
        )
    return values.reshape(len(values), -1, *shape[-2:])


def to_float32(values: Tensor, path: Path, what: str) -> Tensor:
    """The same numbers (n, ...) as float32.

    Raises:
        UserError: for the first that is infinite, nan or too large.

    """
    numbers = values.float()
    wrong = (~numbers.isfinite()).nonzero()
    if len(wrong):
        example, value = f"{path}: example {int(wrong[0, 0])}", float(values[tuple(wrong[0])])
        if math.isfinite(value):
            raise UserError(f"{example} has {value:g} in {what}, beyond float32; scale it down")
        raise UserError(f"{example} has no number in {what}")
    return numbers


def join(arrays: Sequence[Tensor]) -> Tensor:
    """One array (n, ...) as it is; several side by side, (n, D)."""
    if len(arrays) == 1:
        return arrays[0]
    return torch.cat([array.reshape(len(array), -1) for array in arrays], dim=1)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Arrays (n, ...) by their names, after a check that they fit in memory.

    Raises:
        UserError: the file is missing, damaged or of no known kind, or has no such arrays of
            numbers and of one length, or an example has none of them, or they do not fit.

    """
    readers = {".npz": read_npz, ".pt": read_pt, ".pth": read_pt, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: the file's name must end in one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path} is not there; see dataset.path and dataset.validation")
    try:
        arrays = readers[path.suffix](path, names)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each library has its own errors for damaged files
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    for name, array in arrays.items():
        if not array.ndim:
            raise UserError(
                f"{path}: array '{name}' is a single number, {array.item()}; it must have one for "
                "each example"
            )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: the arrays differ in length: {lengths}")
    if not any(lengths.values()):
        raise UserError(f"{path} has no examples in the arrays {', '.join(names)}")
    for name, array in arrays.items():
        if not array.numel():
            raise UserError(
                f"{path}: array '{name}' has shape {tuple(array.shape)}, no number for an example; "
                "see dataset.obs and dataset.target"
            )
    return arrays


def require_names(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not known."""
    for name in names:
        if name not in known:
            raise UserError(
                f"{path} has no array '{name}', but {', '.join(known) or 'none'}"
                f"{did_you_mean(name, known)}; see dataset.obs and dataset.target"
            )


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Arrays of ``numpy.savez``."""
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename[:-4]: entry.file_size for entry in archive.infolist()}
    require_names(path, names, list(sizes))
    require_arrays_fit(path, sum(sizes[name] for name in set(names)))
    with np.load(path, allow_pickle=False) as file:
        return {name: to_tensor(file[name]) for name in names}


def read_pt(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
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


def read_parquet(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Columns of numbers, or of lists of one length.

    Raises:
        UserError: pyarrow is not installed, or a column has gaps or lists of several lengths.

    """
    try:
        from pyarrow import compute, parquet
    except ImportError as error:
        raise UserError(f"{path} needs an extra: pip install -e '.[parquet]'") from error
    file = parquet.ParquetFile(path)
    require_names(path, names, file.schema_arrow.names)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    starts = tuple(f"{name}." for name in names)
    wanted = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(starts)]
    require_arrays_fit(
        path, sum(chunk.num_values * np.dtype(np.float64).itemsize for chunk in wanted)
    )
    table = file.read(columns=list(dict.fromkeys(names)))
    arrays = {}
    for name in names:
        column = table.column(name)
        if column.null_count:
            raise UserError(f"{path}: column '{name}' has {column.null_count} gaps")
        if "list" in str(column.type):
            lengths = compute.call_function("list_value_length", [column]).unique().to_pylist()
            values = compute.call_function("list_flatten", [column])
            if len(lengths) > 1 or values.null_count:
                raise UserError(
                    f"{path}: the lists of column '{name}' differ in length, or have gaps"
                )
            arrays[name] = to_tensor(values.to_numpy().reshape(len(column), *lengths))
        else:
            arrays[name] = to_tensor(column.to_numpy())
    return arrays


def require_arrays_fit(path: Path, num_bytes: int) -> None:
    """Refuse with a UserError what is too large for memory."""
    require_room(num_bytes, str(path), torch.device("cpu"), "write fewer examples to the file")


def to_tensor(array: np.ndarray) -> Tensor:
    """Numbers of any width.

    Raises:
        ValueError: there are others than numbers.

    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array holds {array.dtype}, no numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch knows few operations on them
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
