"""What a dataset hands to a processor and an algorithm: tuples and dicts of tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

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
    """Copy every tensor of ``batch`` to ``device``; nothing is copied when it is there."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)
