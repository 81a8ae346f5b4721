"""A data-parallel run: the command starts its ranks, each of which trains as a run of one would."""

import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from research.console import outlive_readers
from research.crash import crash_told
from research.explain import exit_status, log_traceback, one_line
from research.launchers.plan.job import hydra_state, restore
from research.parallel.ranks import Failure, Node, RankAddress, run_ranks
from research.process import error_line
from research.status import Status
from research.training.interruption import StopRequest
from research.training.run import Run

SIGNALS = {None: None, "SIGINT": signal.SIGINT}
"""What rank 0 gets for what this process got; SIGTERM for all others, some of which it ignores."""


def train_in_parallel(task: Callable[[DictConfig, Run], float], run: Run, node: Node) -> float:
    """Run ``task`` in ``trainer.devices`` processes of this node; returns the score.

    Raises:
        UserError: there are fewer GPUs, or a rank failed.
        Preempted: a signal came, and the run saved its work.

    """
    with StopRequest() as stop:
        try:
            return run_ranks(
                partial(Rank, task, run.config, run.folder, hydra_state()),
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
    """What the process of a rank calls.

    Args:
        task: trains what a config names.
        config: the resolved config of the run.
        folder: the run directory.
        state: of Hydra, by ``hydra_state``.
        address: among the ranks.

    """

    task: Callable[[DictConfig, Run], float]
    config: dict[str, Any]
    folder: Path
    state: dict[Any, Any]
    address: RankAddress

    def __call__(self) -> float | Failure:
        """The score, or what came between."""
        outlive_readers()
        restore(self.state)
        if self.address.rank == 0:
            hydra: Any = HydraConfig.get()
            configure_log(hydra.job_logging, hydra.verbose)
        try:
            return self.train()
        except BaseException as error:
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
                if self.address.rank == 0:
                    stack.enter_context(crash_told(self.folder))
                stack.enter_context(connect_ranks(*self.address))
                return self.task(OmegaConf.create(self.config), run)
        finally:
            if self.address.rank == 0:
                run.status.write()  # the last of it may have waited for its second
