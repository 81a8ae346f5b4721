"""Reading of examples, which must be alike."""

from collections.abc import Sequence

import torch

from research.batches import Example
from research.datasets.examples.sources import Source, TensorSource
from research.datasets.examples.target_spaces import check_range
from research.errors import UserError
from research.machine.memory import require_memory


class ExampleReader:
    """Reads batches of a source, every example of which must be like the first.

    Args:
        source: has at least one example.
        num_classes: labels must be below it; None if that is checked elsewhere.

    Attributes:
        first: the first example.

    Raises:
        UserError: the first example cannot be read.

    """

    def __init__(self, source: Source, num_classes: int | None = None) -> None:
        self.source = source
        self.num_classes = num_classes
        self.first = source[0]

    def read(self, indices: Sequence[int]) -> Example:
        """The examples with these ``indices`` (B,).

        Raises:
            UserError: one cannot be read, or is not like the first, or has a label out of range.

        """
        if isinstance(self.source, TensorSource):  # checked as a whole
            return self.source.take(torch.tensor(indices))
        obs, target = self.first
        batch = Example(
            torch.empty(len(indices), *obs.shape, dtype=obs.dtype),
            torch.empty(len(indices), *target.shape, dtype=target.dtype),
        )
        for row, index in enumerate(indices):
            example = self.source[index]
            if example.obs.shape != obs.shape:
                sizes = ["dataset.size=[H,W]"] * (example.obs.shape[1:] != obs.shape[1:])
                channels = ["dataset.channels=3"] * (len(example.obs) != len(obs))
                raise UserError(
                    f"{self.source.name_example(index)} has shape {tuple(example.obs.shape)}, but "
                    f"{self.source.name_example(0)} has {tuple(obs.shape)}; "
                    f"set {', '.join(sizes + channels)}"
                )
            if self.num_classes is not None:
                check_range(example.target[None], self.num_classes, self.source, index)
            batch.obs[row] = example.obs
            batch.target[row] = example.target
        return batch

    def __getitems__(self, indices: Sequence[int]) -> Example | UserError:
        """``read`` for torch's loader, whose workers would wrap an error in its traceback."""
        try:
            return self.read(indices)
        except UserError as error:
            return error


def read_all(source: Source, device: torch.device) -> TensorSource:
    """All examples in the memory of ``device``.

    Raises:
        UserError: one cannot be read, or is not like the first, or they do not fit.

    """
    if isinstance(source, TensorSource):
        obs, targets = source.obs, source.targets
        if device.type != "cpu":
            way_out = "set dataset.device=cpu"
            require_room(obs.nbytes + targets.nbytes, source.name, device, way_out)
    else:
        reader = ExampleReader(source)
        num_bytes = len(source) * sum(part.nbytes for part in reader.first)
        for place in {torch.device("cpu"), device}:
            require_room(num_bytes, source.name, place, "set dataset.num_workers=4")
        obs = torch.empty(len(source), *reader.first.obs.shape, dtype=reader.first.obs.dtype)
        target = reader.first.target
        targets = torch.empty(len(source), *target.shape, dtype=target.dtype)
        for start in range(0, len(source), 1024):
            rows = range(start, min(start + 1024, len(source)))
            obs[rows.start : rows.stop], targets[rows.start : rows.stop] = reader.read(rows)
    tensors = TensorSource(source.name, obs.to(device), targets.to(device))
    tensors.num_classes = source.num_classes
    if isinstance(source, TensorSource):
        tensors.target_name = source.target_name
    return tensors


def require_room(num_bytes: int, what: str, device: torch.device, way_out: str) -> None:
    """Raise a UserError if ``num_bytes`` do not fit in the memory of ``device``."""
    try:
        require_memory(num_bytes, what, device, way_out)
    except ValueError as error:
        raise UserError(str(error)) from error
