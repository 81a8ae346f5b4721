"""Sums over the ranks of a data-parallel run, in which each learns from a share of every batch."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_parallel() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def count_examples(own: int, device: torch.device) -> int | Tensor:
    """The number of examples of all ranks' shares; does not wait for a GPU."""
    if not is_parallel():
        return own
    return sum_of_ranks(torch.full((), float(own), device=device))


def sum_of_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' ``values``, in their place."""
    dist.all_reduce(values)
    return values


def sum_over_ranks(
    parameters: Sequence[nn.Parameter], metrics: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Add the other ranks' gradients to those of ``parameters``, and their metrics to ``metrics``.

    Args:
        parameters: the same on every rank; one without a gradient gets zeros.
        metrics: of the same names on every rank.

    """
    if not is_parallel():
        return metrics
    for parameter in parameters:
        if parameter.grad is None:  # every rank must send as many numbers
            parameter.grad = torch.zeros_like(parameter)
    parts = [p.grad for p in parameters if p.grad is not None] + list(metrics.values())
    sums = torch.cat([part.flatten() for part in parts])  # one message instead of many
    dist.all_reduce(sums)
    for part, total in zip(parts, sums.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))
    return metrics
