"""Examples in arrays of one file, or in the columns of a table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from research.datasets.examples.array_files import read_arrays
from research.datasets.examples.columns import Column, Text, to_labels
from research.datasets.examples.dataset import Examples
from research.datasets.examples.sources import TensorSource
from research.errors import UserError
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt


def array_examples(
    env: object,
    seed: int,
    *,
    path: str,
    obs: Sequence[str],
    target: Sequence[str],
    validation: OpenFraction | str | None,
    split_seed: NonNegativeInt,
    num_classes: NonNegativeInt | None,
    batch_size: PositiveInt,
    num_workers: NonNegativeInt,
    device: str,
) -> Examples:
    """Named arrays, the first dimension of which counts examples.

    Integer targets (n,) are class labels, others are numbers to be learned. Text targets are names
    of classes, labelled in the alphabetical order of the names in ``path``; the file of
    ``validation`` has the same labels. Observations of uint8 are images if they are (n, C, H, W),
    or (n, H, W) with one channel; all others become float32.

    Args:
        env: not used.
        seed: of the order.
        path: the file.
        obs: names of arrays or columns; several are put side by side.
        target: the same, for the targets.
        validation: the path of another such file, or as ``Examples`` takes it.
        num_classes: as ``Examples`` takes it. If it is given, targets that are whole floats are
            labels, too; 0: integer targets are numbers to be learned.
        split_seed, batch_size, num_workers, device: as ``Examples`` takes them.

    Raises:
        UserError: a file is missing or damaged, or lacks an array, or an array has a value that is
            not a finite float32, images (n, H, W, C), or a class that training lacks.
        ValueError: as ``Examples`` raises it.

    """
    training = read_examples(Path(path), obs, target, num_classes)
    apart = validation
    if isinstance(apart, str):
        apart = read_examples(Path(apart), obs, target, num_classes, training.classes)
        if (training.classes is None) != (apart.classes is None):
            text, other = (apart, training) if training.classes is None else (training, apart)
            raise UserError(
                f"the targets of {text.name} are text, but those of {other.name} are numbers; "
                "write both alike"
            )
    return Examples(
        training,
        apart,
        seed,
        split_seed=split_seed,
        num_classes=num_classes or None,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )


def read_examples(
    path: Path,
    obs: Sequence[str],
    target: Sequence[str],
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
) -> TensorSource:
    """The examples of a file.

    Args:
        path: the file.
        obs, target, num_classes: as ``array_examples`` takes them.
        classes: the names that text targets may have; None for those in the file.

    """
    if not obs or not target:
        raise ValueError("obs and target must each name at least one array")
    arrays = read_arrays(path, [*obs, *target])
    observations = side_by_side([numbers(path, name, arrays, "obs") for name in obs])
    if observations.dtype == torch.uint8 and observations.ndim in (3, 4):
        observations = to_images(observations, f"{path}: '{obs[0]}'")
    else:
        observations = to_float32(observations, path, "an observation")
    if observations.ndim == 1:
        observations = observations[:, None]
    text = arrays[target[0]]
    if len(target) == 1 and isinstance(text, Text) and num_classes != 0:
        targets, classes = to_labels(text, path, classes)
    else:
        targets = side_by_side([numbers(path, name, arrays, "target") for name in target])
        targets, classes = to_targets(targets, path, num_classes), None
    source = TensorSource(str(path), observations, targets)
    source.target_name = ", ".join(target)
    if classes is not None:
        source.classes, source.num_classes = classes, len(classes)
    return source


def numbers(path: Path, name: str, arrays: Mapping[str, Column], key: str) -> Tensor:
    """The array of this name, which must not be text."""
    array = arrays[name]
    if isinstance(array, Text):
        raise UserError(
            f"{path}: '{name}' holds text, {array.first}, where numbers are wanted; "
            f"see dataset.{key}"
        )
    return array


def to_targets(values: Tensor, path: Path, num_classes: int | None) -> Tensor:
    """Labels (n,) int64, or numbers to be learned (n, D) float32, from ``values`` (n, ...).

    Raises:
        UserError: an example has several labels, a label is not whole, or a number is not a finite
            float32.

    """
    if num_classes == 0 or (values.is_floating_point() and num_classes is None):
        return to_float32(values, path, "a target").reshape(len(values), -1)
    if math.prod(values.shape[1:]) != 1:
        raise UserError(
            f"{path}: labels must be one for each example, got {tuple(values.shape)}; if they are "
            "numbers to learn, set dataset.num_classes=0"
        )
    if values.is_floating_point():
        values = to_float32(values, path, "a target")
        broken = (values != values.round()).flatten().nonzero()
        if len(broken):
            index = int(broken[0])
            raise UserError(
                f"{path}: example {index} has target {float(values.flatten()[index]):g}, no class "
                "label; for numbers to learn, set dataset.num_classes=null"
            )
    return values.long().flatten()


def to_images(values: Tensor, name: str) -> Tensor:
    """Images (n, C, H, W), from the same or from (n, H, W) with one channel.

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


def side_by_side(arrays: Sequence[Tensor]) -> Tensor:
    """One array (n, ...) as it is; several side by side, (n, D)."""
    if len(arrays) == 1:
        return arrays[0]
    return torch.cat([array.reshape(len(array), -1) for array in arrays], dim=1)
