"""What a dataset hands to a processor and an algorithm: tuples and dicts of tensors."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

Tree: TypeAlias = Tensor | dict[str, Tensor]
"""One tensor, or a dict of them for a Dict space."""

T = TypeVar("T")


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

    obs: Any  # a Tree; an algorithm for tensors alone need not tell them apart
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any


class Example(NamedTuple):
    """Observations with the targets that are to be learned, B of them.

    Attributes:
        obs: (B, ...).
        target: (B,) int64, classes; or (B, D) float32.

    """

    obs: Any
    target: Tensor


class Repeatable(Generic[T]):
    """What ``make`` returns, made anew for every iteration, so that none of it is kept."""

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[T]:
        return iter(self.make())


def map_tensors(function: Callable[[Tensor], Tensor], batch: T) -> T:
    """Apply ``function`` to every tensor of nested dicts and (named) tuples."""
    if isinstance(batch, Tensor):
        return function(batch)  # type: ignore[return-value]
    if isinstance(batch, dict):
        return {key: map_tensors(function, value) for key, value in batch.items()}  # type: ignore
    if isinstance(batch, tuple):
        values = [map_tensors(function, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)  # type: ignore
    raise TypeError(f"a batch holds tensors in dicts and tuples, got {type(batch).__name__}")


def to_device(batch: T, device: torch.device) -> T:
    """Copy ``batch`` to ``device``, without waiting; nothing is copied that is there."""
    move = map_tensors if device.type == "cpu" else copy_shared
    return move(lambda tensor: tensor.to(device, non_blocking=True), batch)


def copy_shared(copy: Callable[[Tensor], Tensor], batch: T) -> T:
    """Copy every tensor of ``batch``; parts of the same memory become parts of one copy of it.

    Views with gaps between their rows would be packed first, on the host, and overlapping ones
    copied twice. Memory that is mostly of other use is not copied as a whole.
    """
    used: dict[int, int] = {}
    map_tensors(lambda tensor: count_bytes(tensor, used), batch)
    copies: dict[int, Tensor] = {}

    def copy_part(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        address, itemsize = memory.data_ptr(), tensor.element_size()
        if used[address] < memory.nbytes() or memory.nbytes() % itemsize:
            return copy(tensor)
        if address not in copies:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(memory)
            copies[address] = copy(whole)
        whole = copies[address].view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return map_tensors(copy_part, batch)


def count_bytes(tensor: Tensor, used: dict[int, int]) -> Tensor:
    """Add the size of ``tensor`` to what is ``used`` of its memory, by address."""
    address = tensor.untyped_storage().data_ptr()
    used[address] = used.get(address, 0) + tensor.nbytes
    return tensor
