"""The order of examples: batches, epochs and splits."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Cut(NamedTuple):
    """How indices become batches, of which a rank gets its contiguous share.

    Attributes:
        batch_size: B, over all ranks.
        rank: of this process.
        num_ranks: how many share a batch.

    """

    batch_size: int
    rank: int
    num_ranks: int

    def shares(self, indices: Tensor) -> Iterator[Tensor]:
        """The rank's share of every batch of ``indices`` (n,), cut as by ``numpy.array_split``."""
        for batch in indices.split(batch_sizes(len(indices), self.batch_size)):
            yield batch.tensor_split(self.num_ranks)[self.rank]


def batch_sizes(num_examples: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches: B, but the last is smaller where B does not divide.

    An example that would be alone there joins the batch before, since batch normalisation has no
    statistics of one, and one should not weigh as much as B.
    """
    whole, rest = divmod(num_examples, batch_size)
    if rest == 1 and whole:
        return [batch_size] * (whole - 1) + [batch_size + 1]
    return [batch_size] * whole + [rest] * (rest > 0)


def epochs(indices: Tensor, cut: Cut, *, seed: int, epoch: int, batch: int) -> Iterator[Tensor]:
    """Endless shares of batches of ``indices`` (n,), from ``batch`` of ``epoch`` on."""
    while True:
        words = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(2)
        generator = torch.Generator().manual_seed(int(words.view(np.int64)[0]))
        order = torch.randperm(len(indices), generator=generator).to(indices.device)
        yield from islice(cut.shares(indices[order]), batch, None)
        epoch, batch = epoch + 1, 0


def split(num_examples: int, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to learn from, and a random ``fraction`` to hold out, each in ascending order.

    Raises:
        ValueError: it leaves one of them empty.

    """
    num_held_out = round(fraction * num_examples)
    if not 0 < num_held_out < num_examples:
        raise ValueError(
            f"validation={fraction} of {num_examples} examples holds out {num_held_out}, and "
            f"leaves {num_examples - num_held_out} to learn from; both must be at least 1"
        )
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[:num_held_out], order[num_held_out:]
    return kept.sort().values, held_out.sort().values
