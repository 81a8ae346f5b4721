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

    def add(self, rows: np.ndarray) -> None:
        """Add different rows (K,), int64, none of which is a member yet."""
        size, self._size = self._size, self._size + len(rows)
        if len(rows) == 1:  # a fraction of the time
            row = rows.item()
            self._members_array[size], self._places[row] = row, size
            return
        self._members_array[size : self._size] = rows
        self._places[rows] = np.arange(size, self._size, dtype=np.int32)

    def discard(self, rows: np.ndarray) -> None:
        """Remove those of different rows (K,), int64, that are members, as if one by one."""
        if len(rows) > 1:
            rows = rows[self._places[rows] >= 0]
        if len(rows) < 2:
            for row in rows.tolist():  # a fraction of the time
                self._discard_one(row)
            return
        places = self._places[rows].astype(np.intp)
        size, self._size = self._size, self._size - len(rows)
        last = self._members_array[self._size : size][::-1].copy()  # what replaces each of them
        if np.count_nonzero(places >= self._size):
            places, last = self._replacements(rows, places, last)
        self._members_array[places] = last
        self._places[last.astype(np.intp)] = places
        self._places[rows] = -1

    def _discard_one(self, row: int) -> None:
        place = self._places[row]
        if place >= 0:
            self._size -= 1
            last = self._members_array[self._size]
            self._members_array[place], self._places[last] = last, place
            self._places[row] = -1

    def _replacements(
        self, rows: np.ndarray, places: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The places to fill, and the members that go there, if some of ``last`` are removed too.

        Step i moves the member at ``sources[i]``, the last place then, to the place of ``rows[i]``.
        A row that an earlier step has moved is where that step put it.
        """
        sources = np.arange(self._size + len(rows) - 1, self._size - 1, -1)
        places = places.copy()
        while len(moved := (places > sources).nonzero()[0]):
            places[moved] = places[sources[0] - places[moved]]
        self._places[rows] = -1
        stays = self._places[last.astype(np.intp)] >= 0
        targets = places[stays]
        while len(moved := (targets >= self._size).nonzero()[0]):
            targets[moved] = places[sources[0] - targets[moved]]
        return targets, last[stays]

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
