"""The space of examples' targets: classes, or numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from research.datasets.examples.sources import Source
from research.errors import UserError


def target_space(
    training: Source, validation: Source | None, num_classes: int | None
) -> spaces.Discrete | spaces.Box:
    """The space of the targets, after a check of all targets that are known.

    Args:
        training: defines the number of classes, by its files or else by its greatest label.
        validation: None, or separate examples, with no other classes than those of training.
        num_classes: None, or the number of classes, some of which may have no example.

    Raises:
        ValueError: the number of classes is unknown, one, not that of the files, or given although
            the targets are not labels; or validation's targets are of another kind or class.
        UserError: a label is out of range.

    """
    if training.targets is not None and training.targets.is_floating_point():
        return regression_space(training, training.targets, validation, num_classes)
    known = training.num_classes
    if num_classes is not None and known is not None and num_classes != known:
        raise ValueError(f"num_classes is {num_classes}, but {training.name} has {known} classes")
    count = known if num_classes is None else num_classes
    if count is None:
        if training.targets is None:
            raise ValueError(
                f"{training.name} does not tell how many classes it has; set dataset.num_classes"
            )
        count = int(training.targets.max()) + 1
        if count > len(training):
            raise ValueError(
                f"{training.name} has label {count - 1}, but only {len(training)} examples; set "
                f"dataset.num_classes={count} if that is right (numbers to learn must be floats, "
                "or a file's with dataset.num_classes=0)"
            )
        if validation is not None and validation.targets is not None:
            check_known(validation.targets, training.targets, validation)
    for source in (training, validation):
        if source is not None and source.targets is not None:
            check_range(source.targets, count, source)
    if num_classes is None:
        check_two_classes(training)
    return spaces.Discrete(count)


class Numbers(spaces.Box):
    """The space of numbers to be learned, of any size, with a name for error messages."""

    def __init__(self, shape: Sequence[int], name: str) -> None:
        super().__init__(-np.inf, np.inf, tuple(shape), np.float32)
        self.name = name

    def __repr__(self) -> str:
        return f"{super().__repr__()} for {self.name}"


def check_two_classes(training: Source) -> None:
    """Raise a ValueError for examples of one class, which any classifier gets right."""
    if training.num_classes == 1:
        raise ValueError(
            f"{training.name} has one class, but a classifier needs two; add examples of a second"
        )
    labels = training.targets
    if training.num_classes is None and labels is not None and (labels == labels[0]).all():
        raise ValueError(
            f"all examples of {training.name} have label {int(labels[0])}, but a classifier needs "
            "two classes; set dataset.num_classes if there are more than the examples show"
        )


def regression_space(
    training: Source, targets: Tensor, validation: Source | None, num_classes: int | None
) -> spaces.Box:
    """The space of training's ``targets`` (n, D), which are no labels."""
    if num_classes is not None:
        raise ValueError(
            f"num_classes is {num_classes}, but the targets are {targets.dtype}, no class labels; "
            "set dataset.num_classes=null"
        )
    shape = targets.shape[1:]
    if validation is not None:
        others = validation.targets
        if others is None or not others.is_floating_point() or others.shape[1:] != shape:
            found = "labels" if others is None else f"{others.dtype} {tuple(others.shape[1:])}"
            raise ValueError(
                f"{training.name} has targets of {targets.dtype} {tuple(shape)}, but "
                f"{validation.name} of {found}"
            )
    return Numbers(shape, f"'{getattr(training, 'target_name', 'targets')}' of {training.name}")


def check_range(labels: Tensor, num_classes: int, source: Source, first: int = 0) -> None:
    """Refuse ``labels`` (n,) of the examples from ``first`` on that are not below ``num_classes``.

    Raises:
        UserError: for the first of them.

    """
    if labels.is_floating_point():
        raise UserError(f"the targets of {source.name} must be class labels, got {labels.dtype}")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        label = int(labels[index])
        allowed = f"allowed are 0 to {num_classes - 1}; see dataset.num_classes"
        counted = (
            "labels count classes from 0 (numbers to learn must be floats, or a file's with "
            "dataset.num_classes=0)"
        )
        raise UserError(
            f"{source.name_example(first + index)} has label {label}; "
            f"{counted if label < 0 else allowed}"
        )


def check_known(labels: Tensor, known: Tensor, source: Source) -> None:
    """Raise a ValueError for ``labels`` (n,) of ``source`` that are not in ``known`` (m,).

    Negative ones are left to ``check_range``: they can never be right.
    """
    unknown = ((labels >= 0) & ~torch.isin(labels, known)).nonzero()
    if len(unknown):
        index = int(unknown[0])
        raise ValueError(
            f"{source.name_example(index)} has label {int(labels[index])}, which no training "
            "example has; set dataset.num_classes if that is right"
        )
