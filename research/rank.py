"""A data-parallel run: the command starts its ranks, which train as a run of one process does.

If torchrun has started the command once for each rank, only rank 0 reads the command line, and
sends the others what to train.
"""

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from research.console import outlive_readers
from research.crash import crash_told
from research.errors import UserError
from research.explain import exit_status, log_traceback, one_line
from research.launchers.plan.job import hydra_state, restore
from research.machine.gpus import slot_environment
from research.parallel.ranks import (
    Failure,
    Node,
    TorchrunRank,
    first_failure,
    rank_slots,
    run_ranks,
    torchrun_rank,
)
from research.process import error_line
from research.signals import OF_A_RUN, StopRequest, ignore
from research.status import Status
from research.training.run import Run

SIGNALS = {None: None, "SIGINT": signal.SIGINT}
"""Signals to send to rank 0, by those received; SIGTERM for all others, since it ignores some."""

RUN = "run"
"""The store's key for what to train, set by rank 0; empty if rank 0 ended without a run."""


def train_in_parallel(task: Callable[[DictConfig, Run], float], run: Run, node: Node) -> float:
    """Run ``task`` in ``trainer.devices`` processes of this node; returns the score.

    Raises:
        UserError: there are fewer GPUs, or a rank failed.
        Preempted: a signal ended the run, which saved its work.

    """
    rank = Rank(task, run.config, run.folder, hydra_state())
    try:
        if place := torchrun_rank():
            return lead(rank, place)
        with StopRequest() as stop:
            return run_ranks(
                rank,
                devices=run.config["trainer"]["devices"],
                device=run.config["device"],
                node=node,
                log_folder=run.folder,
                told=lambda: SIGNALS.get(stop.made, signal.SIGTERM),
            )
    finally:
        run.status.read()  # rank 0 has written it meanwhile


@dataclass
class Rank:
    """The function that the process of a rank calls.

    Args:
        task: trains what a config names.
        config: the resolved config of the run.
        folder: the run directory.
        state: of Hydra, from ``hydra_state``.

    """

    task: Callable[[DictConfig, Run], float]
    config: dict[str, Any]
    folder: Path
    state: dict[Any, Any]

    def __call__(self) -> float | Failure:
        """Train; returns the score, or a ``Failure``."""
        outlive_readers()
        restore(self.state)
        self.is_first = os.environ["RANK"] == "0"
        if self.is_first:
            hydra: Any = HydraConfig.get()
            configure_log(hydra.job_logging, hydra.verbose)
        try:
            return self.train()
        except BaseException as error:
            ignore(OF_A_RUN)  # torchrun sends SIGTERM to all as soon as one has failed
            log_traceback(error)
            line = one_line(error)
            trace = None if line else "".join(traceback.format_exception(error))
            return Failure(line or error_line(error), trace, exit_status(error), time.time())

    def train(self) -> float:
        """Train as one of the ranks."""
        from research.parallel.process_group import connect_ranks

        run = Run(self.folder, Status(self.folder), self.config["seed"], self.config)
        try:
            with ExitStack() as stack:
                if self.is_first:
                    stack.enter_context(crash_told(self.folder))
                stack.enter_context(connect_ranks())
                return self.task(OmegaConf.create(self.config), run)
        finally:
            if self.is_first:
                run.status.write()  # the last update may still wait, being written once a second


def devices_override(place: TorchrunRank, words: Sequence[str]) -> str:
    """The override of ``trainer.devices`` that follows from torchrun's number of processes.

    Raises:
        UserError: the command line sets another number, or starts a sweep.

    """
    own = f"trainer.devices={place.num_local}"
    given = [word for word in words if word.lstrip("+").startswith("trainer.devices=")]
    if given and given[-1].lstrip("+") != own:
        raise UserError(f"torchrun --nproc-per-node={place.num_local} is {own}, got {given[-1]}")
    if {"-m", "--multirun"} & set(words):
        raise UserError(
            f"torchrun starts the ranks of one run; a sweep starts them itself by {own} -m"
        )
    return own


@contextmanager
def leading(place: TorchrunRank | None) -> Iterator[None]:
    """Let the other ranks that torchrun started end, if this one ends without a run for them."""
    try:
        yield
    finally:
        if place:
            from research.parallel.process_group import rank_store

            if not rank_store().check([RUN]):
                rank_store().set(RUN, "")


def lead(rank: Rank, place: TorchrunRank) -> float:
    """Train as rank 0 of those that torchrun started; returns the score."""
    from research.parallel.process_group import rank_store

    take_device(rank.config, place)
    store = rank_store()
    content = cloudpickle.dumps((rank.config, rank.folder, rank.state))
    store.set(RUN, content)  # type: ignore[reportArgumentType]  bytes are taken
    result = rank()
    if isinstance(result, Failure):
        raise first_failure(Node(place.rank, place.num_ranks), {place.rank: result}, store)
    return result


def follow(task: Callable[[DictConfig, Run], float], place: TorchrunRank) -> int:
    """Train what rank 0 sent, as another rank that torchrun started; returns the exit status.

    It ignores the signals that ask a run to end: all ranks end at the same step as rank 0.
    """
    from research.parallel.process_group import PATIENCE, rank_store

    store = rank_store()
    store.wait([RUN], PATIENCE)
    if not (content := store.get(RUN)):
        return 0
    rank = Rank(task, *pickle.loads(content))
    ignore(OF_A_RUN)
    path = rank.folder / f"rank_{place.rank}.log"
    with path.open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    take_device(rank.config, place)
    result = rank()
    if path.stat().st_size == 0:
        path.unlink(missing_ok=True)
    if isinstance(result, Failure):
        first_failure(Node(place.rank, place.num_ranks), {place.rank: result}, store)
        return result.status
    return 0


def take_device(config: dict[str, Any], place: TorchrunRank) -> None:
    """Show this process only the GPU of its rank, if there are any; torchrun shows it all GPUs."""
    slot = rank_slots(place.num_local, config["device"])[place.local_rank]
    os.environ.update(slot_environment(slot, os.environ))
