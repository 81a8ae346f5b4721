"""The ranks of a data-parallel run, as torch.distributed connects them.

Every rank holds the same weights and optimizers, learns from its share of each batch, and makes the
same step with the sum of all gradients. Only rank 0 writes the run directory.
"""

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from research.errors import UserError
from research.parallel.ranks import Node

T = TypeVar("T")

MEETING = timedelta(minutes=10)
"""How long ranks wait for each other at the start: nodes may start at different times."""

PATIENCE = timedelta(days=1)
"""How long they wait later: a slow rank is no error, and its parent notices at once if it ends."""


def open_store(node: Node) -> TCPStore:
    """The store by which the ranks of a run connect, hosted by the process of the first node.

    Raises:
        UserError: its port is taken, or the first node cannot be reached.

    """
    is_first = node.index == 0
    try:
        return TCPStore(
            node.host, node.port, is_master=is_first, timeout=MEETING, wait_for_workers=False
        )
    except RuntimeError as error:
        where = f"port {node.port}" if is_first else f"port {node.port} of {node.host}"
        raise UserError(
            f"{where} cannot be used for the ranks to meet: {str(error).splitlines()[0]}; choose "
            "another one by MASTER_PORT"
        ) from error


@functools.cache
def rank_store() -> Store:
    """The store of the run of this rank, from the variables that torchrun sets."""
    store, _, _ = next(rendezvous("env://", timeout=MEETING))
    return store


@contextmanager
def connect_ranks() -> Iterator[None]:
    """Connect this rank to the others: over NCCL for tensors on GPUs, else over gloo."""
    if sys.platform == "linux" and os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it looks up this machine's name
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(0)  # the only one it sees
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=PrefixStore("group", rank_store()),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=PATIENCE,
    )
    yield
    dist.barrier()  # not after an error: the others may be anywhere
    dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """The rank of this process and the number of ranks; 0 and 1 in a run that is not parallel."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def copy_from_first(module: nn.Module) -> None:
    """Set all parameters and buffers to those of rank 0."""
    for tensor in module.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            dist.broadcast(tensor, 0)


def from_first(value: T) -> T:
    """The value that rank 0 has, on every rank; others' values are ignored."""
    if rank_and_count()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def sum_by_name(values: dict[str, float]) -> dict[str, float]:
    """The sum for each name over the ranks that have it."""
    if rank_and_count()[1] == 1:
        return values
    parts: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
