"""Values of which one is found by how much lies before it, without adding up all of them."""

import numpy as np


class SumTree:
    """N values of at least 0, with the sums of neighbouring pairs, the sums of these, and so on.

    Every sum is computed from the two below it, and never changed by a difference. So the sums
    depend on the values alone, to the bit, in whatever order these were set.

    Attributes:
        values: (N,) or one more, float64; to be changed by ``set`` alone.

    """

    bytes_per_value = 16
    """Memory per value, in bytes."""

    def __init__(self, size: int) -> None:
        widths = [size + size % 2]
        while widths[-1] > 1:
            half = widths[-1] // 2
            widths.append(half + half % 2 if half > 1 else 1)
        levels = [np.zeros(width) for width in widths]
        self.values, self._root = levels[0], levels[-1]
        self._pairs = [(level[::2], level[1::2]) for level in levels[:-1]]
        self._sums = levels[1:]

    @property
    def total(self) -> float:
        """The sum of all values."""
        return self._root.item()

    def set(self, places: np.ndarray, values: np.ndarray | float) -> None:
        """Set the values (K,) at ``places`` (K,); of a place that occurs twice, the last counts."""
        self.values[places] = values
        self.update(places)

    def update(self, places: np.ndarray) -> None:
        """Compute the sums that the values at ``places`` (K,) are part of."""
        for (left, right), sums in zip(self._pairs, self._sums, strict=True):
            places = places >> 1
            sums[places] = left[places] + right[places]

    def find(self, before: np.ndarray) -> np.ndarray:
        """The places (K,) whose values contain ``before`` (K,), if all values lie side by side.

        Args:
            before: distances from the start, in [0, total). A place whose value is 0 is never
                found, however these are rounded.

        """
        places = np.zeros(len(before), np.int64)
        for left, right in reversed(self._pairs):
            sums = left[places]
            is_right = (before >= sums) & (right[places] > 0)
            before = np.where(is_right, before - sums, before)
            places = 2 * places + is_right
        return places
