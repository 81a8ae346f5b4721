"""The jobs that a sweeper launches: planned, composed and checked before the first starts."""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from research.differences import LENGTHS
from research.errors import UserError
from research.files import write_whole
from research.launchers.plan.job import (
    HydraJob,
    Shared,
    failed,
    finished,
    hydra_state,
    restore,
    unfinished,
)
from research.launchers.plan.ledger import Job, Plan, planned_jobs
from research.launchers.plan.store import share_config_store
from research.launchers.pool.pool import Outcome, Task
from research.process import Process, make_call
from research.status import BLANK, Status, read_status

log = logging.getLogger(__name__)


@dataclass
class Program:
    """The arguments that Hydra passes to a launcher's ``setup``."""

    config: DictConfig
    context: HydraContext
    task_function: TaskFunction

    @property
    def folder(self) -> Path:
        """The sweep directory."""
        return Path(self.config.hydra.sweep.dir).absolute()


class Batch:
    """The jobs for one call of ``launch``, with their configs.

    Args:
        program: the program whose task function they run.
        overrides: the overrides of each job.
        command: the command that resumes the sweep.

    Raises:
        UserError: the sweep directory holds another sweep, or two jobs share a run directory.

    """

    def __init__(
        self, program: Program, overrides: Sequence[Sequence[str]], command: Sequence[str]
    ) -> None:
        share_config_store()
        self.program = program
        self.composed: dict[int, DictConfig] = {}
        config = OmegaConf.to_container(program.config, resolve=False)
        assert isinstance(config, dict)
        base = {str(key): value for key, value in config.items() if key != "hydra"}
        swept = swept_keys(program)
        self.is_search = "n_trials" in program.config.hydra.sweeper
        # A search compares only jobs of equal length.
        extendable = () if self.is_search else set(LENGTHS) - set(swept)
        self.plan = Plan(program.folder, command=command, config=base, extendable=extendable)
        self.jobs = self.plan.add(overrides, swept=swept, locate=self.locate)
        write_whole(program.folder / "multirun.yaml", OmegaConf.to_yaml(program.config))
        self.configs = {job.number: self.compose(job) for job in self.jobs}

    def locate(self, number: int, name: str, overrides: Sequence[str]) -> str:
        """The run directory of a new job, relative to the sweep's: ``hydra.sweep.subdir``."""
        config = load(self.program, number, name, overrides)
        self.composed[number] = config
        with config_of_task(config):
            return os.path.normpath(str(OmegaConf.select(config, "hydra.sweep.subdir")))

    def compose(self, job: Job) -> DictConfig:
        """The config of a job, with its run directory as planned."""
        config = self.composed.get(job.number)
        if config is None:
            config = load(self.program, job.number, job.name, job.overrides)
        with read_write(config.hydra.sweep):
            config.hydra.sweep.dir = str(self.plan.folder)
            config.hydra.sweep.subdir = os.path.relpath(job.folder, self.plan.folder)
        return config

    def to_do(self) -> list[Job]:
        """The jobs that have not completed, or have become longer."""
        longer = self.plan.is_extended
        return [job for job in self.unique_jobs() if longer or state(job) != "completed"]

    @property
    def score_mode(self) -> Any:
        """Whether a high (``max``) or a low (``min``) score is better, if the config says so."""
        return OmegaConf.select(self.program.config, "trainer.score.mode")

    def unique_jobs(self) -> list[Job]:
        """The jobs, each once."""
        return list({job.number: job for job in self.jobs}.values())

    def tasks(self, jobs: Iterable[Job], results: Path | None = None) -> list[Task]:
        """The jobs with the calls that their processes make; their status becomes ``pending``.

        Args:
            jobs: jobs of this batch.
            results: the folder where they write their results; None: a parent process gets them.

        """
        if self.plan.is_extended:
            for job in planned_jobs(self.plan.folder):
                if state(job) == "completed":
                    Status(job.folder).submit()
            self.plan.extend()
        program = self.program
        shared = Shared(program.task_function, program.context, hydra_state())
        pickled = cloudpickle.dumps(shared)
        tasks = []
        for job in jobs:
            if state(job) != "pending":
                Status(job.folder).submit()
            result_file = results / f"{job.number}.pkl" if results else None
            call = HydraJob(pickled, self.configs[job.number], job.folder, result_file)
            tasks.append(Task(job, make_call(call)))
        return tasks

    def check(self, jobs: Sequence[Job], *, elsewhere: bool = False) -> None:
        """Check the configs in one child process, which may import and build what they name.

        The task function may have these attributes: ``check_config`` checks a config, ``rehearse``
        builds its parts without using them.

        Args:
            jobs: jobs of this batch.
            elsewhere: whether the jobs run on other machines.

        Raises:
            UserError: for the first job that cannot run.

        """
        task_function = self.program.task_function
        check = getattr(task_function, "check_config", None)
        rehearse = getattr(task_function, "rehearse", None)
        if not jobs or check is None:
            return
        if self.is_search:  # a trial may fail
            rehearse = None
        elif rehearse is not None:
            rehearse = partial(rehearse, elsewhere=elsewhere)
        pairs = [(self.configs[job.number], job.folder) for job in jobs]
        checks = Check(check, rehearse, pairs, hydra_state())
        try:
            answers = call_in_process(checks)
        except RuntimeError:
            if not (elsewhere and rehearse):
                raise
            answers = call_in_process(replace(checks, rehearse=None))  # this may have killed it
        refused = [(job, line) for job, line in zip(jobs, answers, strict=True) if line]
        if refused:
            job, line = refused[0]
            others = f", like {len(refused) - 1} more," if len(refused) > 1 else ""
            raise UserError(f"job {job.number} ({job.name}){others} cannot run: {line}")

    def returns(self, outcomes: Mapping[int, Outcome]) -> list[JobReturn]:
        """One ``JobReturn`` per job, in order, whatever happened, as Hydra's sweepers expect."""
        return [self.answer(job, outcomes.get(job.number)) for job in self.jobs]

    def status(self, job: Job) -> Mapping[str, Any]:
        """The fields of a job's status file."""
        return read_status(job.folder) or BLANK

    def answer_later(self, job: Job) -> JobReturn:
        """The ``JobReturn`` of a job that is not waited for; it has no status."""
        return unfinished(self.configs[job.number], job.folder)

    def answer(self, job: Job, outcome: Outcome | None) -> JobReturn:
        """The ``JobReturn`` of one job, from its outcome or else from its status file."""
        config, status = self.configs[job.number], self.status(job)
        if outcome and isinstance(outcome.result, JobReturn):
            return outcome.result
        if status["state"] == "completed":
            return finished(config, job.folder, status["score"])
        reason = outcome.reason if outcome else "not started"
        return failed(config, job.folder, f"job {job.number} ({job.name}): {reason}")


@dataclass
class Check:
    """Checks the configs of many jobs; returns what is wrong with each, or ""."""

    check: Callable[[DictConfig], object]
    rehearse: Callable[[], AbstractContextManager[Callable[[DictConfig, Path], None]]] | None
    configs: Sequence[tuple[DictConfig, Path]]
    state: dict[Any, Any]

    def __call__(self) -> list[str]:
        """Check them all."""
        begin_quietly(self.state)
        with self.rehearse() if self.rehearse else nullcontext(lambda *_: None) as rehearse:
            return [self.check_one(config, folder, rehearse) for config, folder in self.configs]

    def check_one(
        self, config: DictConfig, folder: Path, rehearse: Callable[[DictConfig, Path], None]
    ) -> str:
        """Check the config of the job whose run directory is ``folder``."""
        try:
            with config_of_task(config) as task_config:
                self.check(task_config)
                rehearse(task_config, folder)
        except UserError as error:
            return str(error)
        return ""


def begin_quietly(state: dict[Any, Any]) -> None:
    """Begin a call in a child process, which tells nothing that the jobs themselves will tell."""
    restore(state)
    logging.disable()
    warnings.simplefilter("ignore")


@contextmanager
def config_of_task(config: DictConfig) -> Iterator[DictConfig]:
    """In this context, the config of a job as its task function gets it, and Hydra's own is set."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    task_config = config.copy()
    with open_dict(task_config):
        del task_config["hydra"]
    try:
        yield task_config
    finally:
        HydraConfig.instance().cfg = before


def state(job: Job) -> str:
    """The state in a job's status file."""
    return (read_status(job.folder) or BLANK)["state"]


def swept_keys(program: Program) -> list[str]:
    """The keys that the command line sweeps or that the sweeper's ``params`` name."""
    config = program.config.hydra
    parser = OverridesParser.create(config_loader=program.context.config_loader)
    overrides = parser.parse_overrides(list(config.overrides.task))
    swept = [str(o.key_or_group) for o in overrides if o.is_sweep_override()]
    params = OmegaConf.select(config, "sweeper.params") or {}
    return [*(str(key).lstrip("+~") for key in params), *swept]


def load(program: Program, number: int, name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a job, as Hydra composes it."""
    config = program.context.config_loader.load_sweep_config(program.config, list(overrides))
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = name
    return config


def call_in_process(
    function: Callable[[], Any],
    *,
    environ: Mapping[str, str] = os.environ,
    cpus: Sequence[int] = (),
    log: int = 2,
    within_s: float = math.inf,
) -> Any:
    """The result of ``function``, called in a child process.

    Args:
        function: without arguments.
        environ: of the process.
        cpus: that it is pinned to, if any.
        log: the file descriptor for what it prints.
        within_s: seconds that it may take.

    Raises:
        RuntimeError: it raised, with the traceback in its log, or its process was killed.
        TimeoutError: it took too long.

    """
    process = Process(make_call(function), log=log, environ=environ, cpus=cpus)
    deadline = process.started + within_s
    try:
        while not process.has_ended():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)
    except BaseException:
        process.kill()
        process.popen.wait()
        raise
    ending = process.ending()
    if ending.status:
        raise RuntimeError(ending.error or f"the process ended with status {ending.status}")
    return ending.result
