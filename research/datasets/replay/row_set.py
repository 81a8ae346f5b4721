"""A set of row numbers that a batch is drawn from without searching."""

import numpy as np
import torch
from torch import Tensor


class RowSet:
    """Row numbers below ``num_rows``; adding, removing and drawing one take constant time.

    The members fill the front of an array in no particular order: a removed one is replaced by the
    last. Drawing is then one gather, whatever the lengths of the episodes.
    """

    bytes_per_row = 8
    """Memory per possible member, in bytes."""

    def __init__(self, num_rows: int) -> None:
        self._members = torch.empty(num_rows, dtype=torch.int32)
        self._members_array = self._members.numpy()
        self._places = np.full(num_rows, -1, np.int32)
        self._size = 0
        self._drawn = torch.empty(0, dtype=torch.int32)

    def __len__(self) -> int:
        return self._size

    def add(self, row: int) -> None:
        """Add a row that is no member yet."""
        assert self._places[row] < 0, f"row {row} is a member already"
        self._members_array[self._size] = row
        self._places[row] = self._size
        self._size += 1

    def discard(self, row: int) -> None:
        """Remove a row if it is a member."""
        place = self._places[row]
        if place < 0:
            return
        self._size -= 1
        last = self._members_array[self._size]
        self._members_array[place] = last
        self._places[last] = place
        self._places[row] = -1

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` members, int32, uniformly and with replacement."""
        if len(self._drawn) != count:
            self._drawn = torch.empty(count, dtype=torch.int32)
        places = self._drawn.random_(0, self._size, generator=generator)
        return self._members.index_select(0, places)

    def members(self) -> Tensor:
        """All members in their order; shares memory with the set."""
        # From numpy, so that saving it writes the members and not the whole array.
        return torch.from_numpy(self._members_array[: self._size])

    def replace(self, members: Tensor) -> None:
        """Hold exactly ``members``, in this order.

        Raises:
            ValueError: they are not int32 row numbers, or one of them occurs twice.

        """
        if members.dtype != torch.int32 or members.dim() != 1 or len(members) > len(self._places):
            raise ValueError(f"{tuple(members.shape)} members in {members.dtype} do not fit")
        if len(members) and not 0 <= members.min() <= members.max() < len(self._places):
            span = f"{members.min()} to {members.max()}"
            raise ValueError(f"rows {span} do not lie in the {len(self._places)} that there are")
        if len(members.unique()) < len(members):
            raise ValueError("a row is a member twice")
        self._size = len(members)
        self._members[: self._size] = members
        self._places.fill(-1)
        self._places[self._members_array[: self._size]] = np.arange(self._size)
