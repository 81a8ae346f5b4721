"""What environments give, looked at before anything learns from it."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Fault(NamedTuple):
    """What nothing can be learned from.

    Attributes:
        index: of the environment that gave it.
        what: such as ``a reward of nan``.

    """

    index: int
    what: str


def find_fault(obs: Any, reward: np.ndarray | None = None) -> Fault | None:
    """The first number that is NaN or infinite, in observations (E, ...) or rewards (E,)."""
    if reward is not None and not is_finite(reward):
        index = int(np.flatnonzero(~np.isfinite(reward))[0])
        return Fault(index, f"a reward of {reward[index]}")
    for name, array in named_arrays(obs):
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


def named_arrays(obs: Any, name: str = "observation") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays (E, ...) of observations, each with its name, such as ``observation['a']``."""
    if isinstance(obs, dict):
        for key, part in obs.items():
            yield from named_arrays(part, f"{name}[{key!r}]")
    else:
        yield name, obs
