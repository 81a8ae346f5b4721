"""``hydra/launcher=local``: the jobs of a sweep in the slots of this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from research.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass
class LocalConf:
    """Options of the local launcher.

    Attributes:
        gpus: ``auto`` (those here, or those that CUDA_VISIBLE_DEVICES names), a list of indices,
            UUIDs or MIG names, or ``[]`` for none.
        gpus_per_job: adjacent GPUs in the list for each job; ignored without GPUs.
        jobs_per_gpu: jobs that share a GPU, 1 if each job has several; ignored without GPUs.
        cpus: ``auto`` (those this process may use), a number of them, or a list of them.
        cpus_per_job: CPUs of each job; null divides them evenly among the jobs, which without GPUs
            are as many as the CPUs, or ``max_jobs`` if that is lower.
        max_jobs: the largest number of jobs at once, or null.
        stagger_s: minimum seconds between two starts.
        retries: further attempts for a job that does not complete; it resumes from its last
            checkpoint.
        fail_fast: stop the others when a job has failed for good.
        timeout_s: seconds that an attempt may take; null for no limit.
        mps: run the jobs under NVIDIA's Multi-Process Service.

    """

    _target_: str = "hydra_plugins.research_lightning.local.LocalLauncher"
    gpus: Any = "auto"
    gpus_per_job: PositiveInt = 1
    jobs_per_gpu: PositiveInt = 1
    cpus: Any = "auto"
    cpus_per_job: PositiveInt | None = None
    max_jobs: PositiveInt | None = None
    stagger_s: NonNegativeFloat = 0.2
    retries: NonNegativeInt = 0
    fail_fast: bool = False
    timeout_s: NonNegativeFloat | None = None
    mps: bool = False


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalConf, provider="research_lightning"
)


class LocalLauncher(Launcher):
    """Runs each job as a process of its own, several at once."""

    def __init__(self, **options: Any) -> None:
        self.options = LocalConf(**options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check the options, and store the program that ``launch`` runs."""
        from research.annotations import check_numbers
        from research.launchers.plan.batch import Program

        check_numbers(self.options, "hydra.launcher")
        self.program = Program(config, hydra_context, task_function)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; see ``research.launchers.local``."""
        from research.launchers.local import launch

        return launch(self.program, self.options, job_overrides)

    def jobs_at_once(self) -> int:
        """How many jobs run at once."""
        from research.launchers.local import slots_for

        return len(slots_for(self.options))
