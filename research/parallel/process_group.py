"""The ranks of a data-parallel run, as torch.distributed connects them.

Every rank holds the same weights and optimizers, learns from its share of each batch, and makes the
same step with the average of all gradients. Rank 0 alone writes the run directory.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

from research.errors import UserError
from research.files import write_whole

MEETING_S = 600.0
"""How long a rank waits for rank 0, which may be on a node that starts later."""

PATIENCE = timedelta(days=1)
"""A rank that reads slowly is no error, and one that ended is noticed at once by who started it."""


@contextmanager
def connect_ranks(rank: int, num_ranks: int, meeting: Path, host: str) -> Iterator[None]:
    """Connect the ranks of a run: over NCCL for tensors on GPUs, else over gloo.

    Args:
        rank: of this process.
        num_ranks: how many there are.
        meeting: a folder that all of them see, where rank 0 says how it is reached; of no other
            run or attempt.
        host: the name of this machine.

    Raises:
        UserError: rank 0 did not come.

    """
    if host == "localhost" and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it looks up this machine's name
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(0)  # the only one it sees
        backend = "cpu:gloo,cuda:nccl"
    address = meeting / "address"
    if rank == 0:
        store = TCPStore(host, 0, num_ranks, is_master=True, wait_for_workers=False)
        write_whole(address, f"{host} {store.port}")
    else:
        deadline = time.monotonic() + MEETING_S
        while not address.exists():
            if time.monotonic() > deadline:
                raise UserError(f"rank {rank} waited {MEETING_S:.0f} s for rank 0 in vain")
            time.sleep(0.02)
        name, port = address.read_text().split()
        store = TCPStore(name, int(port), num_ranks, is_master=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=PATIENCE)
    yield
    dist.barrier()  # not after an error: the others may be anywhere
    dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Which rank this process is, of how many; 0 of 1 in a run that is not parallel."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def copy_from_first(module: nn.Module) -> None:
    """Set all parameters and buffers to those of rank 0."""
    for tensor in module.state_dict().values():
        if isinstance(tensor, torch.Tensor):
            dist.broadcast(tensor, 0)


def sum_by_name(values: dict[str, float]) -> dict[str, float]:
    """The sum for each name over the ranks that have it."""
    if rank_and_count()[1] == 1:
        return values
    parts: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
