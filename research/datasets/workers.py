"""Processes that read examples while others are learned from."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from research.batches import Example
from research.datasets.reading import Reader
from research.errors import UserError

SETTLE_S = 0.1
"""For threads that have nothing to wait for to come to rest."""


def make_loader(
    reader: Reader,
    batches: Iterable[Sequence[int]],
    *,
    num_workers: int,
    pinned: bool,
    seed: int,
    persistent: bool,
) -> DataLoader[Example | UserError]:
    """Reads ``batches``, indices (B,) each, in their order, two for each worker in advance.

    There are ``num_workers``, but no more than ``num_cpus``, which the batches do not depend on.
    The workers start when it is iterated, and end with the iterator, or if they are ``persistent``
    with the loader, and with this process however that ends.
    """
    if dist.is_available() and dist.is_initialized():
        # While a thread of the process group lets go of its last message, a fork may inherit a
        # locked lock: https://github.com/python/cpython/issues/112275, mended in Python 3.12.
        time.sleep(SETTLE_S)
    return DataLoader(
        reader,  # type: ignore[arg-type]  # it has all that is asked of a dataset with a sampler
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=min(num_workers, num_cpus()),
        # Whatever has started this process: others import everything again, for seconds.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        collate_fn=unchanged,
        pin_memory=pinned,
        worker_init_fn=obey_parent_alone,
        # Its own, since the loader draws a seed for its workers.
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=persistent,
    )


def num_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def examples_of(loader: DataLoader[Example | UserError]) -> Iterator[Example]:
    """What the workers read.

    Raises:
        UserError: a worker's.

    """
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def unchanged(batch: Any) -> Any:
    """``batch``, which is one already."""
    return batch


def obey_parent_alone(worker: int) -> None:
    """Ignore an end that batch systems and terminals ask of every process of a run.

    The run saves its work then, and would fail if its workers had gone before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_when_told, daemon=True).start()


def end_when_told() -> None:
    """End this process at a SIGTERM of its parent."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
