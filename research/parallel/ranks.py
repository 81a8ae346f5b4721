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
"""The variable of each node's process in a run on several: ``<index>/<count>:<host>:<port>``."""

GRACE_S = 2.0
"""How long the other ranks may take to end after one has failed."""

TICK_S = 0.02

STOPPED = {PREEMPTED: Preempted, 130: KeyboardInterrupt}
"""Exit statuses of a run that a signal ended, and the exceptions to raise for them."""


class Node(NamedTuple):
    """A machine of a run.

    Attributes:
        index: of this node; node 0 has rank 0.
        count: number of nodes.
        host: name or address of the first node.
        port: of the first node, where the ranks connect; 0 for any free port.

    """

    index: int
    count: int
    host: str = "localhost"
    port: int = 0


class TorchrunRank(NamedTuple):
    """The rank of a process that torchrun started.

    Attributes:
        rank: of this process.
        num_ranks: of the run.
        local_rank: of this process among those of its node.
        num_local: ranks of its node.

    """

    rank: int
    num_ranks: int
    local_rank: int
    num_local: int


class Failure(NamedTuple):
    """Why a rank did not return.

    Attributes:
        line: the error message.
        trace: the traceback; None for an error that the user can mend.
        status: exit status of a command that ends so.
        at_s: time of the failure, in seconds since 1970.

    """

    line: str
    trace: str | None
    status: int
    at_s: float


def this_node(environ: Mapping[str, str] = os.environ) -> Node:
    """The node that this process runs on, as the launcher set it."""
    if NODE not in environ:
        return Node(0, 1)
    place, _, address = environ[NODE].partition(":")
    index, count = map(int, place.split("/"))
    host, _, port = address.rpartition(":")
    return Node(index, count, host, int(port))


def torchrun_rank(environ: Mapping[str, str] = os.environ) -> TorchrunRank | None:
    """The rank of this process, if torchrun started it as one of several; else None.

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
    """Run the ranks of this node until they end; if one fails, the others are ended.

    Args:
        rank: called in the process of each rank; returns its result, or a ``Failure``.
        devices: ranks of each node.
        device: ``auto``, ``cpu`` or ``cuda``; each rank sees one GPU, if there are any.
        node: this node.
        log_folder: gets ``rank_<number>.log`` with the output of each rank except 0.
        told: returns the signal that asked the run to end, to be sent to rank 0, or None.

    Returns:
        the result of this node's first rank.

    Raises:
        UserError: there are fewer GPUs than devices; or a rank failed, with its reason.
        Preempted: a signal ended rank 0, which saved its work.
        KeyboardInterrupt: a signal ended rank 0 before it could.

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
        UserError: there are too few whole GPUs, or ``device`` names a single one.

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
        "TORCHELASTIC_USE_AGENT_STORE": True,  # torch's name for a store that no rank hosts
        "TORCHELASTIC_RESTART_COUNT": 0,
    }
    variables = {name: str(value) for name, value in places.items()}
    return {**os.environ, **slot_environment(slot, os.environ), **variables}


def start(call: Call, environ: dict[str, str], log_folder: Path) -> Process:
    """Start the process of a rank.

    Rank 0 prints where this process does. Only rank 0 handles the signals that ask a run to end: a
    batch system sends them to every process, but all ranks must end at the same step.
    """
    rank = int(environ["RANK"])
    if rank == 0:
        err, out = sys.stderr.fileno(), sys.stdout.fileno()
        return Process(call, log=err, out=out, environ=environ)
    with (log_folder / f"rank_{rank}.log").open("a") as log:
        return Process(call, log=log.fileno(), environ=environ, obeys=False)


def wait(processes: Sequence[Process], told: Callable[[], int | None]) -> dict[int, Any]:
    """The processes' results, by number; after a failure, of those that end within ``GRACE_S``.

    The first process gets the signal that ``told`` returns.
    """
    results: dict[int, Any] = {}
    is_sent, deadline = False, math.inf
    while len(results) < len(processes) and time.monotonic() < deadline:
        if not is_sent and (number := told()):
            is_sent = True
            processes[0].popen.send_signal(number)
        for number, process in enumerate(processes):
            if number not in results and process.has_ended():
                results[number] = result(process)
                if isinstance(results[number], Failure):
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(TICK_S)
    return results


def result(process: Process) -> Any:
    """The result of a process that has ended, or a ``Failure``, dated before all others."""
    ending = process.ending()
    if ending.error is None:
        return ending.result
    killed = ending.status < 0 and f"killed by {signal.Signals(-ending.status).name}"
    return Failure(killed or ending.error, None, status=1, at_s=0.0)


def first_failure(node: Node, failures: Mapping[int, Failure], store: "Store") -> BaseException:
    """The exception for the first failure on all nodes; ``failures`` are this node's, by rank.

    The later failures follow from the first, because connections break.
    """
    rank, failure = min(failures.items(), key=lambda item: item[1].at_s)
    if node.index > 0:
        with suppress(RuntimeError):  # the first node has ended
            store.set(f"failure_{node.index}", json.dumps([rank, *failure]))
    elif node.count > 1 and failure.status != PREEMPTED:  # torchrun interrupts a failure's others
        time.sleep(GRACE_S)  # the other nodes' ranks fail in this time, and report it
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
        return UserError(failure.line)  # an error of all ranks, not of one
    return UserError(f"rank {rank}: {failure.line}")
