"""Examples to learn from in epochs, and examples to validate on."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from research.batches import Example
from research.datasets.examples.order import Cut, batch_sizes, epochs, split
from research.datasets.examples.reading import ExampleReader, read_all
from research.datasets.examples.sources import Source, TensorSource
from research.datasets.examples.target_spaces import target_space
from research.datasets.examples.workers import Waiting, examples_of, make_loader
from research.machine.device import data_device
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt


class Examples:
    """Batches of training examples, each once per epoch, in a different order every epoch.

    The order follows from ``seed`` and the epoch alone, whatever ``num_workers`` and ``device``
    are. The last batch of an epoch is smaller where B does not divide their number, or holds B + 1
    where one example would be left alone.

    Args:
        training: the examples to learn from.
        validation: separate examples, or the fraction of ``training`` to hold out; None if the run
            evaluates on something else.
        seed: of the order.
        split_seed: chooses those that are held out. Not ``seed``, so that runs with different seeds
            are compared on the same examples, which none of them has learned from.
        num_classes: number of classes; None to take it from ``training``.
        batch_size: B, over all ranks.
        num_workers: 0 to read all examples now, into the memory of ``device``; otherwise the number
            of processes that read them when they are needed, at most one for each usable CPU, and
            as many others for validation. They start with the first batch.
        device: cpu, cuda or cuda:N; auto for a GPU if there is one. With workers, batches are in
            the host's memory, pinned if ``device`` is a GPU.

    Raises:
        ValueError: for targets of two kinds, or a fraction that leaves no example on one side.
        UserError: an example cannot be read, or has a label out of range, or the examples do not
            fit in memory.

    """

    def __init__(
        self,
        training: Source,
        validation: Source | OpenFraction | None,
        seed: int,
        *,
        split_seed: NonNegativeInt,
        num_classes: PositiveInt | None,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        device: str,
    ) -> None:
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = data_device(device)
        self.seed = seed
        self.rank, self.num_ranks = 0, 1
        self.epoch = 0
        self.batch = 0
        apart = None if isinstance(validation, (float, int)) else validation
        kept, held_out = torch.arange(len(training)), torch.arange(len(apart or ()))
        for source in (training, apart):
            if source is not None and not len(source):
                raise ValueError(f"{source.name} has no examples")
        if isinstance(validation, (float, int)):
            kept, held_out = split(len(training), validation, seed=split_seed)
        if num_workers == 0:
            training = read_all(training, self.device)
            apart = read_all(apart, self.device) if apart is not None else None
            kept, held_out = kept.to(self.device), held_out.to(self.device)
        self._training_indices, self._validation_indices = kept, held_out
        self.num_validation = len(held_out)
        self.action_space = target_space(training, apart, num_classes)
        self._training = self._make_reader(training)
        self._validation = self._make_reader(apart) if apart is not None else self._training
        obs, other = self._training.first.obs, self._validation.first.obs
        if (obs.shape, obs.dtype) != (other.shape, other.dtype):
            raise ValueError(
                f"{training.name} has observations of {obs.dtype} {tuple(obs.shape)}, but "
                f"{self._validation.source.name} of {other.dtype} {tuple(other.shape)}"
            )
        self.observation_space = observation_space(obs)
        self.batches_per_epoch = len(batch_sizes(len(self._training_indices), batch_size))
        self._streams: dict[str, Any] = {}
        self._waiting: Waiting = nullcontext
        self._validation_plan: list[list[int]] = []  # the loader reads it at every validation
        # torch's loader does not end its workers if it is collected as part of cyclic garbage.
        weakref.finalize(self, self._streams.clear)

    def share(self, rank: int, num_ranks: int) -> None:
        """Hand out a rank's contiguous share of every batch, cut as by ``numpy.array_split``.

        Raises:
            ValueError: a batch has fewer examples than there are ranks.

        """
        smallest = min(batch_sizes(len(self._training_indices), self.batch_size))
        if smallest < num_ranks:
            raise ValueError(
                f"an epoch has a batch of {smallest}, too few examples for {num_ranks} ranks; "
                "choose another dataset.batch_size"
            )
        self.rank, self.num_ranks = rank, num_ranks

    def sample(self) -> Example:
        """The next batch, or this rank's share of it.

        Raises:
            UserError: an example cannot be read, or is not like the others.

        """
        if "training" not in self._streams:
            shares = epochs(
                self._training_indices,
                self._cut,
                seed=self.seed,
                epoch=self.epoch,
                batch=self.batch,
            )
            self._streams["training"] = self._read(self._training, shares)
        batch = next(self._streams["training"])
        self.batch += 1
        if self.batch == self.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return batch

    def validation_batches(self, first: int = 0, count: int | None = None) -> Iterable[Example]:
        """Batches that show every example held out once, in the order of their storage.

        A rank skips a batch in which it has no share.

        Args:
            first: index of the first batch, modulo their number.
            count: largest number of batches; None for all.

        """
        shares = list(self._cut.shares(self._validation_indices))
        turns = range(first, first + min(count or len(shares), len(shares)))
        chosen = [share for turn in turns if len(share := shares[turn % len(shares)])]
        if self.num_workers == 0:
            return self._read(self._validation, chosen)
        self._validation_plan[:] = [share.tolist() for share in chosen]
        if "validation" not in self._streams:
            loader = self._load(self._validation, self._validation_plan, persistent=True)
            self._streams["validation"] = loader
        return examples_of(self._streams["validation"], self._waiting)

    def training_batches(self) -> Iterable[Example]:
        """Batches that show every training example once, in the order of their storage.

        Every rank gets all of them, since statistics must be the same for all.
        """
        return self._read(self._training, self._training_indices.split(self.batch_size))

    def wait_in(self, waiting: Waiting) -> None:
        """Enter ``waiting()`` for every wait for a worker from now on; it may end it by raising."""
        self._waiting = waiting

    def save(self, folder: Path) -> dict[str, Any]:
        """The epoch, and how many of its batches have been taken."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load(self, state: dict[str, Any], folder: Path) -> None:
        """Continue from where ``save`` was called.

        Raises:
            ValueError: an epoch does not have as many batches.

        """
        if not 0 <= state["batch"] < self.batches_per_epoch:
            raise ValueError(
                f"the run has taken {state['batch']} batches of its epoch, which now has "
                f"{self.batches_per_epoch}; use the batch_size and examples it was begun with"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._streams.pop("training", None)

    @property
    def _cut(self) -> Cut:
        return Cut(self.batch_size, self.rank, self.num_ranks)

    def _make_reader(self, source: Source) -> ExampleReader:
        """A reader of ``source``, which checks labels if they were not known before."""
        if source.targets is None and isinstance(self.action_space, spaces.Discrete):
            return ExampleReader(source, int(self.action_space.n))
        return ExampleReader(source)

    def _read(self, reader: ExampleReader, batches: Iterable[Tensor]) -> Iterator[Example]:
        """The examples of ``batches``, indices (B,) each."""
        if self.num_workers > 0:
            indices = (batch.tolist() for batch in batches)
            return examples_of(self._load(reader, indices, persistent=False), self._waiting)
        assert isinstance(reader.source, TensorSource)
        return map(reader.source.take, batches)

    def _load(
        self, reader: ExampleReader, batches: Iterable[list[int]], *, persistent: bool
    ) -> Any:
        return make_loader(
            reader,
            batches,
            num_workers=self.num_workers,
            pinned=self.device.type == "cuda",
            seed=self.seed,
            persistent=persistent,
        )


def observation_space(obs: Tensor) -> spaces.Box:
    """The space of one observation: bytes from 0 to 255, or any float32."""
    if obs.dtype == torch.uint8:
        return spaces.Box(0, 255, tuple(obs.shape), np.uint8)
    return spaces.Box(-np.inf, np.inf, tuple(obs.shape), np.float32)
