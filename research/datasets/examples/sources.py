"""Where examples come from: read one by one from files, or held in memory."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from research.batches import Example


class Source(Protocol):
    """Examples by index, the same whenever they are read.

    Attributes:
        name: for error messages.
        num_classes: number of classes, if the files define it, else None.

    """

    name: str
    num_classes: int | None

    @property
    def targets(self) -> Tensor | None:
        """The targets of all examples, (n,) int64 or (n, D) float32.

        None if they are not known before the examples are read, which then have class labels.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Observation (...), uint8 or float32, and target, () int64 or (D,) float32.

        Raises:
            UserError: the example cannot be read; the message names its file.

        """
        ...

    def name_example(self, index: int) -> str:
        """The name of an example in error messages: its file, if it has one."""
        ...


class TensorSource:
    """Examples in memory.

    Args:
        name: of the examples in error messages.
        obs: (n, ...), uint8 or float32.
        targets: (n,) int64, or (n, D) float32.

    """

    num_classes: int | None = None
    classes: Sequence[str] | None = None
    """The names of the classes, in the order of their labels, if they have names."""
    target_name = "targets"
    """The name of the targets in error messages."""

    def __init__(self, name: str, obs: Tensor, targets: Tensor) -> None:
        self.name = name
        self.obs = obs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(self, index: int) -> Example:
        return Example(self.obs[index], self.targets[index])

    def name_example(self, index: int) -> str:
        return f"example {index} of {self.name}"

    def take(self, indices: Tensor) -> Example:
        """The examples with these ``indices`` (B,), on the same device."""
        return Example(self.obs.index_select(0, indices), self.targets.index_select(0, indices))
