"""Batches, which a dataset hands to a processor and an algorithm: tuples and dicts of tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

Tree: TypeAlias = Tensor | dict[str, Tensor]
"""One tensor, or a dict of them for a Dict space."""

ArrayTree: TypeAlias = np.ndarray | dict[str, np.ndarray]
"""One array, or a dict of them for a Dict space."""

T = TypeVar("T")


class Step(NamedTuple):
    """One step of E environments, as a collector hands it to a dataset.

    Attributes:
        action: (E, A), as the environments got it.
        reward: (E,).
        terminated: (E,) bool, whether the episode ended in a terminal state, whose value is 0.
        truncated: (E,) bool, whether the episode was cut off, though it could have continued.
        next_obs: (E, O), or a dict of such; an ended episode's final observation.
        extras: values (E, ...) that the algorithm returned with the actions, by name.
        next_info: chosen infos (E, ...) of the environments that came with ``next_obs``, by name.
        active: (E,) bool, which environments took this step; None for all. The others only began
            an episode, and their entries are ignored.

    """

    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: ArrayTree
    extras: Mapping[str, np.ndarray] = {}
    next_info: Mapping[str, np.ndarray] = {}
    active: np.ndarray | None = None


class Transition(NamedTuple):
    """Steps of an environment, B of them.

    Attributes:
        obs: (B, O), or a dict of such for a Dict space.
        action: (B, A), as the environment got it.
        reward: (B,), summed and discounted over the n steps.
        discount: (B,), the factor of the value of ``next_obs``: gamma to the number of steps, 0
            after a termination. A truncated episode keeps its factor.
        next_obs: like ``obs``; n steps later, or the episode's real final observation.

    """

    obs: Any  # a Tree; so an algorithm that takes only tensors need not check for dicts
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any


class ExtendedTransition(NamedTuple):
    """A ``Transition`` where the algorithm or the environment gives more than its five fields.

    Attributes:
        obs, action, reward, discount, next_obs: as in ``Transition``.
        extras: values (B, ...) that the algorithm returned with ``action``, by name.
        info: chosen infos (B, ...) of the environment that came with ``obs``, by name.
        next_info: those that came with ``next_obs``.

    """

    obs: Any
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any
    extras: dict[str, Tensor]
    info: dict[str, Tensor]
    next_info: dict[str, Tensor]


class WeightedTransition(NamedTuple):
    """Steps that were not drawn with equal probability, as by prioritised replay.

    Attributes:
        obs, action, reward, discount, next_obs, extras, info, next_info: as in
            ``ExtendedTransition``; without values that are stored besides, these three are empty.
        weight: (B,), factor of the loss of each that corrects the bias.

    """

    obs: Any
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any
    extras: dict[str, Tensor]
    info: dict[str, Tensor]
    next_info: dict[str, Tensor]
    weight: Tensor


class Rollout(NamedTuple):
    """T steps of each of E environments by one policy; B is T * E, the environments of a step
    are neighbours.

    Attributes:
        obs, action, reward, next_obs: as in ``Transition``, of one step each.
        discount: (B,), gamma; 0 after a termination.
        over: (B,) bool, whether the environment's next step does not continue this one, since an
            episode ended.
        env: (B,) int64, index of the environment.
        extras, info, next_info: as in ``ExtendedTransition``.

    """

    obs: Any
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any
    over: Tensor
    env: Tensor
    extras: dict[str, Tensor]
    info: dict[str, Tensor]
    next_info: dict[str, Tensor]


class Example(NamedTuple):
    """Observations with their targets, B of them.

    Attributes:
        obs: (B, ...).
        target: (B,) int64, classes; or (B, D) float32.

    """

    obs: Any
    target: Tensor


class Repeatable(Generic[T]):
    """An iterable that calls ``make`` for every iteration, so that no item is kept in memory."""

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[T]:
        return iter(self.make())


@dataclass(slots=True)
class PackedBatch(Generic[T]):
    """A batch whose parts share the memory of a few tensors, which are copied as a whole.

    Attributes:
        memory: these tensors.
        unpack: makes the batch from them, or from their copies on another device.

    """

    memory: Sequence[Tensor]
    unpack: Callable[[Sequence[Tensor]], T]


def map_tensors(function: Callable[[Tensor], Tensor], batch: T) -> T:
    """Apply ``function`` to every tensor of nested dicts and (named) tuples; None stays None."""
    if isinstance(batch, Tensor):
        return function(batch)  # type: ignore[return-value]
    if isinstance(batch, dict):
        return {key: map_tensors(function, value) for key, value in batch.items()}  # type: ignore
    if batch is None:
        return batch
    if isinstance(batch, tuple):
        values = [map_tensors(function, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)  # type: ignore
    raise TypeError(f"a batch holds tensors in dicts and tuples, got {type(batch).__name__}")


def list_tensors(batch: Any) -> list[Tensor]:
    """All tensors of nested dicts and tuples, in the order of ``map_tensors``."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, batch)
    return found


def copy_all(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy the values into places of their shapes, in one kernel if they are of one kind."""
    if places:  # it takes no empty list
        torch._foreach_copy_(places, values)  # type: ignore[reportPrivateImportUsage]


def add_weight(batch: Transition | ExtendedTransition, weight: Tensor) -> WeightedTransition:
    """The batch with the weight (B,) of each of its steps."""
    held = batch[5:] if isinstance(batch, ExtendedTransition) else ({}, {}, {})
    return WeightedTransition(*batch[:5], *held, weight)


def count_rows(batch: Any) -> int:
    """B, the length of the first tensor of a batch."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


def to_device(batch: T | PackedBatch[T], device: torch.device) -> T:
    """Copy ``batch`` to ``device`` without waiting; tensors that are there are not copied."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    if isinstance(batch, PackedBatch):
        return batch.unpack([copy(tensor) for tensor in batch.memory])
    return map_tensors(copy, batch)


def accumulate(values: Tensor, decay: Tensor, start: Tensor) -> Tensor:
    """Decaying sums over time: ``s[t] = values[t] + decay[t] * s[t - 1]``.

    Args:
        values: (T, E).
        decay: (T, E).
        start: (E,), s[-1].

    """
    sums = torch.empty_like(values)
    total = start
    for time in range(len(values)):
        total = torch.addcmul(values[time], decay[time], total)
        sums[time] = total
    return sums
