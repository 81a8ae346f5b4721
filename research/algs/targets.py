"""Target networks: slowly updated copies, from which bootstrapped values come."""

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A copy whose parameters take no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def polyak_update(source: nn.Module, target: nn.Module, tau: float) -> None:
    """Move every parameter of ``target`` by the share ``tau`` towards ``source``; copy buffers."""
    old, new = list(target.parameters()), list(source.parameters())
    if old:  # it takes no empty list
        torch._foreach_lerp_(old, new, tau)  # type: ignore[reportPrivateImportUsage]
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)
