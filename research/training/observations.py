"""Checks of observations and rewards, before anything learns from them."""

import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces

NUM_LOOKS = 1000
"""How many steps are compared with the declared bounds; to compare all would take too much time."""

log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """A number that is not finite, from an environment.

    Attributes:
        index: of the environment.
        what: the number in words, such as ``a reward of nan``.

    """

    index: int
    what: str


def find_fault(obs: Any, reward: np.ndarray | None = None) -> Fault | None:
    """The first number that is NaN or infinite, in observations (E, ...) or rewards (E,)."""
    if reward is not None and not is_finite(reward):
        index = int(np.flatnonzero(~np.isfinite(reward))[0])
        return Fault(index, f"a reward of {reward[index]}")
    arrays = named_arrays(obs) if isinstance(obs, dict) else [("observation", obs)]
    for name, array in arrays:
        if not is_finite(array):
            index, *entry = np.argwhere(~np.isfinite(array))[0].tolist()
            return Fault(index, f"{name}{entry} = {array[(index, *entry)]}")
    return None


def is_finite(array: np.ndarray) -> bool:
    """Whether no number of an array is NaN or infinite."""
    if array.dtype.kind != "f":
        return True
    # The sum of squares takes half the time; it may overflow where no number is infinite.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


class Bounds:
    """Logs the first observation that is outside its box by more than the size of the box.

    Args:
        space: of the observations of one environment.

    """

    def __init__(self, space: Space[Any]) -> None:
        limits = {name: widen(box) for name, box in named_boxes(space)}
        self.limits = {name: both for name, both in limits.items() if np.isfinite(both).any()}
        self.num_looks = NUM_LOOKS if self.limits else 0

    def look(self, obs: Any) -> None:
        """Compare observations (E, ...), up to ``NUM_LOOKS`` times or until a warning is logged."""
        if self.num_looks == 0:
            return
        self.num_looks -= 1
        for name, array in named_arrays(obs):
            if name not in self.limits:
                continue
            low, high = self.limits[name]
            outside = (array < low) | (array > high)
            if outside.any():
                index, *entry = np.argwhere(outside)[0].tolist()
                size = (high - low)[tuple(entry)] / 3
                log.warning(
                    "environment %d gave %s%s = %g, far outside the bounds that it declares, "
                    "%g and %g; it should declare infinite ones where it has none",
                    *(index, name, entry, array[(index, *entry)]),
                    *(low[tuple(entry)] + size, high[tuple(entry)] - size),
                )
                self.num_looks = 0
                return


def widen(box: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of a box of three times the size."""
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    return low - (high - low), high + (high - low)


def named_boxes(space: Space[Any], name: str = "observation") -> Iterator[tuple[str, spaces.Box]]:
    """The boxes of floats, named as by ``named_arrays``."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from named_boxes(part, f"{name}[{key!r}]")
    elif isinstance(space, spaces.Box) and space.dtype.kind == "f":
        yield name, space


def named_arrays(obs: Any, name: str = "observation") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays (E, ...) of observations, each with its name, such as ``observation['a']``."""
    if isinstance(obs, dict):
        for key, part in obs.items():
            yield from named_arrays(part, f"{name}[{key!r}]")
    else:
        yield name, obs
