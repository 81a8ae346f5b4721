"""What makes batches from the rows of a replay buffer, as the buffer uses it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from research.batches import PackedBatch, Step
from research.datasets.replay.frames import FrameStacks
from research.datasets.replay.rings import EpisodeRings
from research.datasets.replay.storage import RowStorage


@dataclass(frozen=True)
class EpisodeRows:
    """The rows that a reader reads; those of an episode follow each other, also in ``storage``.

    A row has the observation after a step, the infos that came with it, and the action, the extras,
    the reward and ``continues`` (0 after a termination, else 1) of the step that led to it. These
    are undefined in the first row of an episode.

    Attributes:
        storage: the rows, with the leaves ``action``, ``reward``, ``continues``, those in ``obs``,
            ``extras.<name>`` and ``info.<name>``.
        rings: which rows belong together.
        stacks: of every leaf of an observation that holds one frame of each stack, by name.
        obs: the leaves of an observation.
        obs_keys: their keys in a Dict space; None for any other.
        extras: names of the values that an algorithm adds to a step.
        info: names of the infos of an observation.

    """

    storage: RowStorage
    rings: EpisodeRings
    stacks: Mapping[str, FrameStacks]
    obs: Sequence[str]
    obs_keys: Sequence[str] | None
    extras: Sequence[str]
    info: Sequence[str]


class Reader(Protocol):
    """Makes a batch of samples, each from the rows of one episode that follow its start.

    Attributes:
        min_steps: a sample can start at a row once ``max_steps`` rows of the episode follow it; at
            the end of an episode ``min_steps`` suffice, at least 1.
        max_steps: see ``min_steps``.
        bytes_per_row: host memory that it takes for each row.

    """

    min_steps: int
    max_steps: int
    bytes_per_row: int

    def open(self, rows: EpisodeRows) -> None:
        """Read from these rows from now on; they are empty."""
        ...

    def follow(self, step: Step | None) -> None:
        """Compute what is not to be computed at every sampling, of ``rings.completed``.

        Args:
            step: it was written before; None if episodes were truncated without another step.

        """
        ...

    def restore(self) -> None:
        """Compute the same again from rows that were loaded."""
        ...

    def read(self, starts: Tensor, *, pinned: bool) -> PackedBatch[Any]:
        """The samples (B, ...) that start at these rows; called in a thread if that saves time.

        Args:
            starts: (B,), int32, on the host.
            pinned: whether to put the batch in pinned memory, which a GPU reads directly.

        """
        ...


ReaderFactory: TypeAlias = Callable[[int, float], Reader]
"""Makes a reader from n, how many rewards are summed, and gamma per environment step."""
