"""Values of which one is found by how much lies before it, without adding up all of them."""

from itertools import pairwise

import numpy as np

WIDTH = 16
"""Children of a node: few levels, since a level takes about as long for one place as for many."""


class SumTree:
    """N values of at least 0, the sums of ``WIDTH`` neighbours each, the sums of these, and so on.

    Every sum is computed from what lies below it, always in the same order, and never changed by a
    difference. So the sums depend on the values alone, to the bit, however these were set.

    Attributes:
        values: (N,) or a few more, float64; what is changed in place needs an ``update``.

    """

    bytes_per_value = 9
    """Memory per value, in bytes: its own and its share of the sums, rounded up."""

    def __init__(self, size: int) -> None:
        self._levels: list[np.ndarray] = []
        while not self._levels or len(self._levels[-1]) > 1:
            size = -(-size // WIDTH)
            self._levels.append(np.zeros((size, WIDTH)))
        self.values = self._levels[0].reshape(-1)

    @property
    def total(self) -> float:
        """The sum of all values."""
        return self._levels[-1].cumsum()[-1].item()

    def set(self, places: np.ndarray, values: np.ndarray | float) -> None:
        """Set the values (K,) at ``places`` (K,); of a place that occurs twice, the last counts."""
        self.values[places] = values
        self.update(places)

    def update(self, places: np.ndarray) -> None:
        """Compute the sums that the values at ``places`` (K,) are part of."""
        for level, sums in pairwise(self._levels):
            places = places // WIDTH
            sums.reshape(-1)[places] = level[places].cumsum(axis=1)[:, -1]

    def find(self, before: np.ndarray) -> np.ndarray:
        """The places (K,) whose values contain ``before`` (K,), if all values lie side by side.

        Args:
            before: distances from the start, in [0, total). A place whose value is 0 is never
                found, however these are rounded, unless all are.

        """
        places, row = np.zeros(len(before), np.int64), np.arange(len(before))
        for level in reversed(self._levels):
            edges = level[places].cumsum(axis=1)
            before = np.minimum(before, np.nextafter(edges[:, -1], 0))  # if it was rounded up
            child = (edges > before[:, None]).argmax(axis=1)
            before = before - np.where(child > 0, edges[row, child - 1], 0)
            places = places * WIDTH + child
        return places
