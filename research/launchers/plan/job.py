"""A job of a sweep: the task function, called by Hydra's ``run_job`` with the job's config."""

import copy
import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from research.files import write_whole
from research.process import error_line
from research.status import Status, sole_process


class Shared(NamedTuple):
    """The values that all jobs of a batch have in common.

    Attributes:
        task_function: the program's.
        hydra_context: for Hydra's callbacks.
        state: Hydra's singletons and OmegaConf's resolvers, from ``hydra_state``.

    """

    task_function: TaskFunction
    hydra_context: HydraContext
    state: dict[Any, Any]


@dataclass
class HydraJob:
    """The call that a job's process makes.

    A task function with a true attribute ``keeps_status`` writes its own ``status.json`` and keeps
    other processes out of its run directory, as ``research.app`` does; for others, this call does.

    Args:
        shared: a ``Shared``, pickled once for all jobs.
        config: the job's config, as ``load_sweep_config`` composed it.
        folder: the run directory.
        result_file: where to write the pickled ``JobReturn``; None: the parent process gets it.

    """

    shared: bytes
    config: DictConfig
    folder: Path
    result_file: Path | None = None

    def __call__(self) -> JobReturn:
        """Run the job; raises what the task function raised."""
        self.task_function, self.hydra_context, state = pickle.loads(self.shared)
        restore(state)
        if getattr(self.task_function, "keeps_status", False):
            return self.run()
        with sole_process(self.folder):
            return self.run_with_status()

    def run(self) -> JobReturn:
        """Run the job by ``run_job``, and write its result to ``result_file``, if there is one."""
        answer = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=self.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        if answer.status is not JobStatus.COMPLETED:
            error = answer._return_value
            raise error.with_traceback(error.__traceback__.tb_next)  # as if Hydra were not there
        if self.result_file is not None:
            self.result_file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.result_file, cloudpickle.dumps(answer))
        return answer

    def run_with_status(self) -> JobReturn:
        """Run the job, and write its status file."""
        status = Status(self.folder)
        if status.fields["state"] == "completed":  # meanwhile, by another launcher
            return finished(self.config, self.folder, status.fields["score"])
        status.start()
        try:
            answer = self.run()
        except KeyboardInterrupt:
            status.end("preempted", "interrupted")
            raise
        except BaseException as error:
            status.end("failed", error_line(error))
            raise
        status.update(step=status.fields["step"], score=as_score(answer.return_value))
        status.end("completed", "the task function returned")
        return answer


def hydra_state() -> dict[Any, Any]:
    """The state of this process that jobs need: Hydra's singletons and the registered resolvers."""
    return Singleton.get_state()


def restore(state: dict[Any, Any]) -> None:
    """Restore another process's ``hydra_state``, as Hydra does, but without searching plugins."""
    Singleton._instances = state["instances"]
    BaseContainer._resolvers = state["omegaconf_resolvers"]
    setup_globals()


def as_score(value: Any) -> float | None:
    """The value that a task function returned, if it is a finite number, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def finished(config: DictConfig, folder: Path, score: float | None) -> JobReturn:
    """The ``JobReturn`` of a job that completed earlier, with the score of its status file."""
    answer = unfinished(config, folder)
    answer.status, answer.return_value = JobStatus.COMPLETED, score
    return answer


def failed(config: DictConfig, folder: Path, reason: str) -> JobReturn:
    """The ``JobReturn`` of a job without a result; reading its value raises ``JobError``."""
    answer = unfinished(config, folder)
    answer.status, answer.return_value = JobStatus.FAILED, JobError(reason)
    return answer


def unfinished(config: DictConfig, folder: Path) -> JobReturn:
    """A ``JobReturn`` without status."""
    task_config = copy.deepcopy(config)
    with open_dict(task_config):
        hydra_config = OmegaConf.create({"hydra": task_config.pop("hydra")})
    chdir = hydra_config.hydra.job.chdir
    return JobReturn(
        overrides=list(config.hydra.overrides.task),
        cfg=task_config,
        hydra_cfg=hydra_config,
        working_dir=str(folder) if chdir else os.getcwd(),
        task_name=JobRuntime.instance().get("name"),
    )


class JobError(Exception):
    """A job of a sweep did not complete."""
