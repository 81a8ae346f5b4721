"""Infos of an environment that reach the algorithm and the dataset: costs, masks of actions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import UserError, did_you_mean

ACTION_MASK = "action_mask"
"""The info that is above 0 for the discrete actions that are allowed."""


class Infos:
    """Picks infos from those that vector environments return.

    Args:
        shapes: of each info in one environment, by name.

    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def pick(self, infos: Mapping[str, Any], needed: np.ndarray | None) -> dict[str, np.ndarray]:
        """The infos as arrays (E, ...), float32.

        Args:
            infos: as ``step`` returned them.
            needed: (E,) bool, the environments that must have them; None for all.

        Raises:
            UserError: an info is missing, or of another shape.

        """
        picked = {}
        for name, shape in self.shapes.items():
            values, present = infos.get(name), infos.get(f"_{name}")
            if values is None or (present is not None and not np.all(present[needed])):
                known = sorted(key for key in infos if not key.startswith("_"))
                raise UserError(
                    f"trainer.infos: the environment gave no info '{name}' with a step; it gave "
                    f"{known}{did_you_mean(name, known)}"
                )
            picked[name] = to_floats(name, values, present, shape)
        return picked

    def begin(
        self, infos: Mapping[str, Any], mask: np.ndarray, before: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The infos where episodes begin in ``mask`` (E,), and those of ``before`` elsewhere.

        An info that a reset does not return is 0.
        """
        begun = {}
        for name, shape in self.shapes.items():
            values, present = infos.get(name), infos.get(f"_{name}")
            new = np.zeros((len(mask), *shape), np.float32)
            if values is not None:
                floats = to_floats(name, values, present, shape)
                has = mask if present is None else mask & present
                new[has] = floats[has]
            old = before.get(name, new)
            begun[name] = np.where(mask.reshape(-1, *[1] * len(shape)), new, old)
        return begun


def to_floats(
    name: str, values: Any, present: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray:
    """The values of an info as an array (E, ...), with zeros where it is not ``present`` (E,)."""
    array = np.asarray(values)
    if array.dtype == object and present is not None and present.any():
        rows = np.stack([np.asarray(value) for value in array[present]])
        array = np.zeros((len(present), *rows.shape[1:]), np.float32)
        array[present] = rows
    if array.shape[1:] != shape:
        raise UserError(
            f"trainer.infos: the environment's info '{name}' has shape {list(array.shape[1:])}, "
            f"not {list(shape)}"
        )
    return array.astype(np.float32)


NO_INFOS = Infos({})
