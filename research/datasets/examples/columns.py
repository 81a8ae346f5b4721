"""The arrays of a file, or columns of a table: numbers or text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from research.datasets.examples.reading import require_room
from research.errors import UserError, did_you_mean


class Text(NamedTuple):
    """Words of n examples.

    Attributes:
        words: the distinct words, in any order.
        indices: (n,) int64, the index of each example's word in ``words``.
        first: the first example's word and its place, for error messages.

    """

    words: Sequence[str]
    indices: Tensor
    first: str


Column: TypeAlias = Tensor | Text


def to_labels(
    text: Text, path: Path, classes: Sequence[str] | None
) -> tuple[Tensor, Sequence[str]]:
    """The label of every example, (n,) int64, and the names of all classes.

    Args:
        text: the name of every example's class.
        path: its file.
        classes: the names, in the order of their labels; None for those in ``text``, sorted.

    Raises:
        UserError: a name is not one of ``classes``.

    """
    names = sorted(text.words) if classes is None else classes
    labels = {name: label for label, name in enumerate(names)}
    for word in text.words:
        if word not in labels:
            raise UserError(
                f"{path} has class '{word}', which no training example has; they have "
                f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}{did_you_mean(word, names)}"
            )
    return torch.tensor([labels[word] for word in text.words])[text.indices], names


def to_tensor(array: np.ndarray, path: Path, name: str) -> Tensor:
    """A tensor of numbers of any width.

    Raises:
        UserError: ``array`` holds something else than numbers.

    """
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"{path}: '{name}' holds {array.dtype}, neither numbers nor text; "
            "see dataset.obs and dataset.target"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch has few operations for wide unsigned integers
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def require_names(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not known, or known twice."""
    for name in names:
        if name not in known:
            raise UserError(
                f"{path} has no array '{name}', but {', '.join(known) or 'none'}"
                f"{did_you_mean(name, known)}; see dataset.obs and dataset.target"
            )
        if list(known).count(name) > 1:
            raise UserError(f"{path} has several columns '{name}'; give them different names")


def require_arrays_fit(path: Path, num_bytes: int) -> None:
    """Raise a UserError if the arrays do not fit in memory."""
    require_room(num_bytes, str(path), torch.device("cpu"), "write fewer examples to the file")
