"""The processes of one data-parallel run: a rank for each device, on one node or on several."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from research.errors import PREEMPTED, Preempted, UserError
from research.machine.cpus import usable_cpus
from research.machine.gpus import slot_environment, usable_gpus
from research.machine.slots import Slot, make_slots
from research.process import Call, Process, make_call

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[reportPrivateImportUsage]

NODE = "RESEARCH_LIGHTNING_NODE"
"""Set for each node's process of a run on several: ``<index>/<count>:<host>:<port>``."""

GRACE_S = 2.0
"""How long the other ranks may take to fail as well, or to end behind rank 0."""

TICK_S = 0.02

STOPPED = {PREEMPTED: Preempted, 130: KeyboardInterrupt}
"""What a command that was told to end exits with, and what it raises."""


class Node(NamedTuple):
    """A machine of a run.

    Attributes:
        index: of this one; 0 has rank 0.
        count: how many there are.
        host: the name or address of the first one.
        port: of the first one, where the ranks meet; 0 for any that is free.

    """

    index: int
    count: int
    host: str = "localhost"
    port: int = 0


class TorchrunRank(NamedTuple):
    """What torchrun tells each process that it starts.

    Attributes:
        rank: of this process.
        num_ranks: how many there are.
        local_rank: among those of this node.
        num_local: how many this node has.

    """

    rank: int
    num_ranks: int
    local_rank: int
    num_local: int


class Failure(NamedTuple):
    """Why a rank did not return.

    Attributes:
        line: for the user.
        trace: for a programmer; None where the user can mend it.
        status: what a command exits with that ends so.
        at_s: when, in seconds since 1970.

    """

    line: str
    trace: str | None
    status: int
    at_s: float


def this_node(environ: Mapping[str, str] = os.environ) -> Node:
    """The node that this process runs on, as the launcher has told it."""
    if NODE not in environ:
        return Node(0, 1)
    place, _, address = environ[NODE].partition(":")
    index, count = map(int, place.split("/"))
    host, _, port = address.rpartition(":")
    return Node(index, count, host, int(port))


def torchrun_rank(environ: Mapping[str, str] = os.environ) -> TorchrunRank | None:
    """The rank of a process that torchrun started; None where it has no other, or did not.

    Its variables: https://docs.pytorch.org/docs/stable/elastic/run.html.
    """
    if "TORCHELASTIC_RUN_ID" not in environ or environ["WORLD_SIZE"] == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return TorchrunRank(*(int(environ[name]) for name in names))


def run_ranks(
    rank: Callable[[], Any],
    *,
    devices: int,
    device: str,
    node: Node,
    log_folder: Path,
    told: Callable[[], int | None],
) -> Any:
    """Run the ranks of this node to their end, which one of them that fails makes the end of all.

    Args:
        rank: what the process of each calls; it returns its result, or a ``Failure``.
        devices: ranks of each node.
        device: ``auto``, ``cpu`` or ``cuda``; each rank sees one GPU, if there are any to see.
        node: where this is.
        log_folder: gets ``rank_<number>.log`` with what ranks but 0 print.
        told: the signal that asked for an end, or None; rank 0 gets it.

    Returns:
        what this node's first rank returned.

    Raises:
        UserError: there are fewer GPUs than devices; or a rank failed, with its reason.
        KeyboardInterrupt: rank 0 was told to end; Preempted if it has saved its work.

    """
    from research.parallel.process_group import open_store

    slots = rank_slots(devices, device)
    store = open_store(node)
    call = make_call(rank)
    processes: list[Process] = []
    try:
        for slot in slots:
            environ = rank_environment(slot, devices, node, store.port)
            processes.append(start(call, environ, log_folder))
        results = wait(processes, told if node.index == 0 else lambda: None)
    finally:
        for process in processes:
            if not process.has_ended():
                process.kill()
        for path in log_folder.glob("rank_*.log"):
            if path.stat().st_size == 0:
                path.unlink(missing_ok=True)
    failures = {
        node.index * devices + number: result
        for number, result in results.items()
        if isinstance(result, Failure)
    }
    if failures:
        raise first_failure(node, failures, store)
    return results[0]


def rank_slots(devices: int, device: str) -> list[Slot]:
    """A slot for each rank of this node, none of them pinned.

    Raises:
        UserError: there are too few GPUs, or none can be chosen by that name.

    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device} is one; with several it must be auto, cpu or cuda")
    gpus = [] if device == "cpu" else usable_gpus("auto")
    if gpus and any(name.startswith("MIG-") for name in gpus):
        raise UserError(
            f"trainer.devices={devices} needs whole GPUs, got {', '.join(gpus)}: CUDA shows a run "
            "one MIG device"
        )
    if gpus and devices > len(gpus):
        raise UserError(
            f"trainer.devices={devices}, but {len(gpus)} can be used here (GPUs {','.join(gpus)}); "
            f"a sweep gives a job as many by hydra.launcher.gpus_per_job={devices}"
        )
    cpus = usable_cpus("auto")
    slots = make_slots(
        cpus=list(islice(cycle(cpus), max(devices, len(cpus)))),
        gpus=gpus,
        gpus_per_job=1,
        jobs_per_gpu=1,
        cpus_per_job=None,
        max_jobs=devices,
    )
    return [slot._replace(cpus=()) for slot in slots]


def rank_environment(slot: Slot, devices: int, node: Node, port: int) -> dict[str, str]:
    """The environment of a rank's process: torchrun's variables, and the GPU of its slot."""
    places = {
        "RANK": node.index * devices + slot.number,
        "WORLD_SIZE": node.count * devices,
        "LOCAL_RANK": slot.number,
        "LOCAL_WORLD_SIZE": devices,
        "MASTER_ADDR": node.host,
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # torch's name for one that no rank keeps
        "TORCHELASTIC_RESTART_COUNT": 0,
    }
    told = {name: str(value) for name, value in places.items()}
    return {**os.environ, **slot_environment(slot, os.environ), **told}


def start(call: Call, environ: dict[str, str], log_folder: Path) -> Process:
    """The process of a rank.

    Rank 0 prints where this process does, and is the only one to obey signals: a batch system tells
    every process to end, but all must do so at the same step.
    """
    rank = int(environ["RANK"])
    if rank == 0:
        err, out = sys.stderr.fileno(), sys.stdout.fileno()
        return Process(call, log=err, out=out, environ=environ)
    with (log_folder / f"rank_{rank}.log").open("a") as log:
        return Process(call, log=log.fileno(), environ=environ, obeys=False)


def wait(processes: Sequence[Process], told: Callable[[], int | None]) -> dict[int, Any]:
    """What the processes returned, by number; the others' once one failed and they had some time.

    The first gets the signal that ``told`` tells.
    """
    results: dict[int, Any] = {}
    is_told, deadline = False, math.inf
    while len(results) < len(processes) and time.monotonic() < deadline:
        if not is_told and (number := told()):
            is_told = True
            processes[0].popen.send_signal(number)
        for number, process in enumerate(processes):
            if number not in results and process.has_ended():
                results[number] = result(process)
                if isinstance(results[number], Failure):
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(TICK_S)
    return results


def result(process: Process) -> Any:
    """What a process that has ended returned, or why it did not: of all reasons, the first."""
    ending = process.ending()
    if ending.error is None:
        return ending.result
    killed = ending.status < 0 and f"killed by {signal.Signals(-ending.status).name}"
    return Failure(killed or ending.error, None, status=1, at_s=0.0)


def first_failure(node: Node, failures: Mapping[int, Failure], store: "Store") -> BaseException:
    """What to raise for the failures of this node's ranks, by number: the first of all nodes.

    Those behind it only follow, because their connections break.
    """
    rank, failure = min(failures.items(), key=lambda item: item[1].at_s)
    if node.index > 0:
        with suppress(RuntimeError):  # the first node has ended
            store.set(f"failure_{node.index}", json.dumps([rank, *failure]))
    elif node.count > 1 and failure.status not in STOPPED:
        time.sleep(GRACE_S)  # the other nodes' ranks end as soon, and say so
        for index in range(1, node.count):
            if store.check([f"failure_{index}"]):
                other, *fields = json.loads(store.get(f"failure_{index}"))
                if fields[-1] < failure.at_s:
                    rank, failure = other, Failure(*fields)
    if failure.status in STOPPED:
        return STOPPED[failure.status](failure.line)
    if failure.trace is not None:
        sys.stderr.write(failure.trace)
    if len(failures) > 1 and len({each.line for each in failures.values()}) == 1:
        return UserError(failure.line)  # what is wrong with all is no rank's own
    return UserError(f"rank {rank}: {failure.line}")
