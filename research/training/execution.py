"""How updates are executed: as they are written, compiled, or captured."""

import logging
import os
import shutil
from typing import Literal, TypeAlias

import torch

from research.algs.base import Algorithm
from research.parallel.sums import is_parallel
from research.training.precision import Precision

Execution: TypeAlias = Literal["auto", "eager", "graph", "compile"]

MANY_UPDATES = 100_000
"""For so many a compiler, which takes 20 s to a minute, pays for itself a few times over."""

log = logging.getLogger(__name__)


def choose_execution(
    execution: Execution, device: torch.device, total_updates: int, *, is_alone: bool
) -> Execution:
    """How updates are executed where that is left open: fast, if it is known to be.

    On a GPU they are captured, unless several seeds compute them together. On a CPU they are
    compiled in long runs, if there is a compiler.

    Raises:
        ValueError: CUDA graphs are asked for, but not on a GPU, or for several seeds.

    """
    if execution == "graph" and device.type != "cuda":
        raise ValueError(
            f"trainer.execution=graph needs device=cuda, this run is on {device.type}; try auto"
        )
    if execution == "graph" and not is_alone:
        raise ValueError(
            "trainer.execution=graph is of one seed, not of several in a process; try auto"
        )
    if execution != "auto":
        return execution
    if device.type == "cuda":
        return "graph" if is_alone else "eager"
    if device.type == "cpu" and total_updates >= MANY_UPDATES and has_compiler():
        told = "%s updates are enough for torch.compile; without it: trainer.execution=eager"
        log.info(told, f"{total_updates:,}")
        return "compile"
    return "eager"


def has_compiler() -> bool:
    """Whether torch.compile finds what compiles C++ for a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def refuse_own_update(
    alg: Algorithm, precision: Precision, accumulate: int, execution: str
) -> None:
    """Raise a ValueError for what needs objectives, if the algorithm has an update of its own."""
    wanted = {
        f"trainer.precision={precision}": precision != "fp32",
        f"trainer.accumulate={accumulate}": accumulate > 1,
        f"trainer.execution={execution}": execution != "eager",
        "several ranks": is_parallel(),
    }
    for setting, is_wanted in wanted.items():
        if is_wanted:
            raise ValueError(
                f"{setting} needs objectives, but {type(alg).__name__} has an update of its own"
            )
