"""The protocols of datasets, as the trainer uses them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from gymnasium import Space
from torch import Tensor

from research.batches import ArrayTree, PackedBatch, Rollout, Step, Transition

Batch = TypeVar("Batch", covariant=True)


class Dataset(Protocol[Batch]):
    """Anything that hands out batches.

    Attributes:
        observation_space: of one observation of a batch.
        action_space: of one action of a batch, or of the target of an observation.
        batches_per_epoch: how many batches show every example once; None where no such number
            exists, as for a growing replay buffer. An epoch is that many calls of ``sample``.

    """

    observation_space: Space[Any]
    action_space: Space[Any]
    batches_per_epoch: int | None

    def sample(self) -> Batch:
        """The next batch; it never changes afterwards."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Tensors and plain values from which the same batches follow.

        What is too large to be written at every checkpoint goes to files in ``folder``. They are
        never changed, only added to. The state's key ``files`` names those that it needs; one that
        no kept checkpoint needs is deleted.
        """
        ...

    def load(self, state: dict[str, Any], folder: Path) -> None:
        """Continue from where ``save`` was called.

        Raises:
            DamagedFile: a file is not what was saved.

        """
        ...


@runtime_checkable
class OnlineDataset(Dataset[Transition], Protocol):
    """A dataset that E environments fill; its length counts what ``sample`` chooses from."""

    def __len__(self) -> int: ...

    def start_episodes(
        self, obs: ArrayTree, mask: np.ndarray, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Begin an episode in every environment where ``mask`` (E,) is true.

        Args:
            obs: (E, O), or a dict of such; the entries of other environments are ignored.
            mask: (E,) bool.
            info: chosen infos (E, ...) that came with ``obs``, by name.

        """
        ...

    def add(self, step: Step) -> None:
        """Store one step of the environments, of which every active one has a running episode."""
        ...

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Truncate running episodes at their newest observations, where ``mask`` (E,) is true."""
        ...


@runtime_checkable
class RolloutDataset(OnlineDataset, Protocol):
    """A dataset of rollouts; ``sample`` gives minibatches of what ``learn_from`` was given.

    Attributes:
        num_envs: E.

    """

    num_envs: int

    def take_rollout(self) -> Rollout | None:
        """The whole rollout, the first time after it is complete; else None."""
        ...

    def learn_from(self, rows: Any) -> None:
        """Draw minibatches of these rows (B, ...), one for each of the rollout's, or more."""
        ...


@runtime_checkable
class PrioritisedDataset(Protocol):
    """A dataset that can draw by the errors that were made on what it draws.

    Attributes:
        is_prioritised: whether it does so; its batches then have a ``weight`` (B,).

    """

    is_prioritised: bool

    def anneal(self, share: float) -> None:
        """Tell, before every batch, that ``share`` of the run's updates are made, in [0, 1]."""
        ...

    def prioritise(self, errors: Tensor) -> None:
        """Take the errors (B,) made on the last batch, on any device, without waiting for it."""
        ...


def find_prioritised(dataset: Any) -> PrioritisedDataset | None:
    """The dataset, if it draws by errors."""
    if isinstance(dataset, PrioritisedDataset) and dataset.is_prioritised:
        return dataset
    return None


@runtime_checkable
class ExtensibleDataset(Protocol):
    """An online dataset that stores more of a step than every environment has."""

    def hold(
        self, extras: Mapping[str, tuple[int, ...]], info: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Store values besides, float32, from the first step on; called once, before that.

        Args:
            extras: the shape of each value that every ``Step.extras`` brings, by name.
            info: the same for ``Step.next_info``, and for ``info`` of ``start_episodes``.

        Raises:
            ValueError: there are steps already, or they do not fit in memory.

        """
        ...


@runtime_checkable
class ValidationDataset(Protocol):
    """A dataset that holds out ``num_validation`` examples, which are never learned from."""

    num_validation: int

    def validation_batches(self, first: int = 0, count: int | None = None) -> Iterable[Any]:
        """Batches that show each of them once, or ``count`` batches from the ``first`` on."""
        ...


@runtime_checkable
class CountableDataset(Protocol):
    """A dataset that can iterate over its training examples."""

    def training_batches(self) -> Iterable[Any]:
        """Batches that show every training example once, as it is stored."""
        ...


@runtime_checkable
class ShareableDataset(Protocol):
    """A dataset whose batches several ranks can learn from together."""

    def share(self, rank: int, num_ranks: int) -> None:
        """Hand out this rank's share of every batch from now on; before the first ``sample``.

        Raises:
            ValueError: a batch has fewer examples than there are ranks.

        """
        ...


@runtime_checkable
class WaitingDataset(Protocol):
    """A dataset that waits for batches from other processes, maybe long, or for ever."""

    def wait_in(self, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """Enter ``waiting()`` for every such wait from now on; it may raise to end the wait.

        A state saved after that is as if the wait had not begun.
        """
        ...


@runtime_checkable
class PreparingDataset(Protocol):
    """A dataset that can gather its next batch while other work is done."""

    def prepare(self, *, pinned: bool) -> None:
        """Begin to gather what the next ``sample_packed`` returns; add nothing before that.

        Args:
            pinned: whether to gather into pinned memory, which a GPU reads directly.

        """

    def sample_packed(self) -> PackedBatch[Any]:
        """The batch that ``sample`` would return, in memory copied to a device as a whole."""
        ...
