"""Where examples come from: read one by one from files, or held in memory."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from research.batches import Example


class Source(Protocol):
    """Examples by index, the same whenever they are read.

    Attributes:
        name: what an error calls it.
        num_classes: where the files tell it, else None.

    """

    name: str
    num_classes: int | None

    @property
    def targets(self) -> Tensor | None:
        """Of all examples, (n,) int64 or (n, D) float32.

        None where they cannot be known without reading the examples, which then have class labels.
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
        """What an error calls an example: its file, where it has one."""
        ...


class TensorSource:
    """Examples in memory.

    Args:
        name: what an error calls them.
        obs: (n, ...), uint8 or float32.
        targets: (n,) int64, or (n, D) float32.

    """

    num_classes: int | None = None
    classes: Sequence[str] | None = None
    """The names of the classes, in the order of their labels, where they have names."""
    target_name = "targets"
    """What an error calls the targets."""

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


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
