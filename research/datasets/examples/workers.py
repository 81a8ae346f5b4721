"""Processes that read examples while others are learned from."""

import functools
import logging
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from research.batches import Example, map_tensors
from research.datasets.examples.reading import ExampleReader
from research.errors import UserError, message_of
from research.machine.memory import format_bytes

log = logging.getLogger(__name__)

Waiting: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Makes a context that is entered for each wait; it may raise to end the wait."""

SHARED = Path("/dev/shm")
"""The file system of shared memory, on Linux."""

REMEDY = "give it more (docker run --shm-size=1g), or set dataset.num_workers=0"

METHOD = "fork" if sys.platform == "linux" else None
"""However this process was started: other methods import everything again, which takes seconds."""

SETTLE_S = 0.1
"""Time for threads that have finished their work to become idle."""


def make_loader(
    reader: ExampleReader,
    batches: Iterable[Sequence[int]],
    *,
    num_workers: int,
    pinned: bool,
    seed: int,
    persistent: bool,
) -> DataLoader[Example | UserError]:
    """A loader that reads ``batches``, indices (B,) each, in order, two per worker in advance.

    It has ``num_workers`` workers, but no more than ``num_cpus``; the batches do not depend on
    their number. The workers start when the loader is iterated, and end with the iterator, or with
    the loader if they are ``persistent``; they also end with this process, however that ends.

    Raises:
        UserError: the workers cannot start.

    """
    num_workers = min(num_workers, num_cpus())
    require_semaphores(num_workers)
    if dist.is_available() and dist.is_initialized():
        # While a thread of the process group releases its last message, a fork may inherit a
        # locked lock: https://github.com/python/cpython/issues/112275, fixed in Python 3.12.
        time.sleep(SETTLE_S)
    return DataLoader(
        reader,  # type: ignore[arg-type]  # it has all that is asked of a dataset with a sampler
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        multiprocessing_context=METHOD,
        collate_fn=share,
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


def examples_of(loader: DataLoader[Any], waiting: Waiting) -> Iterator[Example]:
    """The batches that the workers read.

    Args:
        loader: from ``make_loader``.
        waiting: is entered for each wait for a batch.

    Raises:
        UserError: a worker raised it.

    """
    batches = iter(loader)
    while True:
        with waiting():
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        if isinstance(batch, Packed):
            warn_of_full_memory()
            batch = Example(*map(torch.from_numpy, batch))
        yield batch


def require_semaphores(num_workers: int) -> None:
    """Refuse to start workers where torch could not make the semaphores of its queues.

    Raises:
        UserError: they do not fit in ``SHARED``, or are not permitted.

    """
    context, count = multiprocessing.get_context(METHOD), 8 + 3 * num_workers
    try:
        [context.Semaphore() for _ in range(count)]
    except (OSError, ImportError) as error:
        raise UserError(
            f"{num_workers} workers cannot start: they need {format_bytes(count * 2**12)} of "
            f"{SHARED}, where {describe_shared()} ({message_of(error)}); {REMEDY}"
        ) from error


@functools.cache  # once
def warn_of_full_memory() -> None:
    """Log why batches come slowly."""
    log.warning(
        "%s has no room for a batch (%s), so that they come through pipes, slowly; %s",
        SHARED,
        describe_shared(),
        REMEDY,
    )


def describe_shared() -> str:
    """The size of ``SHARED``, in words."""
    if not SHARED.exists():
        return "it is not there"
    total, _, free = shutil.disk_usage(SHARED)
    return f"{format_bytes(free)} of {format_bytes(total)} are free"


class Packed(NamedTuple):
    """An ``Example`` whose parts are arrays, which another process gets as copies."""

    obs: np.ndarray
    target: np.ndarray


def share(batch: Any) -> Any:
    """``batch`` in shared memory, or packed if there is no room: torch's queue would lose it."""
    if isinstance(batch, UserError):
        return batch
    with suppress(RuntimeError):
        if has_room(batch.obs.nbytes + batch.target.nbytes):
            return map_tensors(torch.Tensor.share_memory_, batch)
    return Packed(batch.obs.numpy(), batch.target.numpy())


def has_room(num_bytes: int) -> bool:
    """Whether two tensors fit in shared memory; torch 2.6 does not check and dies by SIGBUS."""
    return not SHARED.exists() or shutil.disk_usage(SHARED).free > num_bytes + 2 * mmap.PAGESIZE


def obey_parent_alone(worker: int) -> None:
    """Ignore the signals by which batch systems and terminals end every process of a run.

    The run still saves its work then, and would fail if its workers had ended before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_at_sigterm, daemon=True).start()


def end_at_sigterm() -> None:
    """End this process at a SIGTERM from its parent."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
