"""``hydra/launcher=slurm``: the jobs of a sweep, several to an allocation, on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import DictConfig

from research.ranges import NonNegativeInt, PositiveInt


@dataclass
class SlurmConf(SlurmQueueConf):
    """Options of the SLURM launcher, in addition to those of ``hydra-submitit-launcher``.

    Attributes:
        jobs_per_allocation: jobs that share the GPUs of an allocation and divide its CPUs.
        remainder: where the jobs go that do not fill an allocation: ``spread`` over the others, or
            in a ``new``, smaller one.
        snapshot: run the code as it is now, from a copy in the sweep directory.
        wait: wait until all jobs have ended, and return their results.
        max_requeues: how often an allocation that ran out of time is requeued; its unfinished jobs
            resume from their last checkpoints.

    """

    _target_: str = "hydra_plugins.research_lightning.slurm.SlurmLauncher"
    jobs_per_allocation: PositiveInt = 1
    remainder: str = "spread"
    snapshot: bool = False
    wait: bool = True
    max_requeues: NonNegativeInt = 10


ConfigStore.instance().store(
    group="hydra/launcher", name="slurm", node=SlurmConf, provider="research_lightning"
)


class SlurmLauncher(Launcher):
    """Submits an array of allocations, in each of which a pool runs some of the jobs."""

    def __init__(self, **options: Any) -> None:
        self.options = SlurmConf(**options)

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
        """Submit the jobs; see ``research.launchers.slurm.launch``."""
        from research.launchers.slurm.launch import launch

        return launch(self.program, self.options, job_overrides)

    def jobs_at_once(self) -> int:
        """How many jobs are sure to run at once: those of one allocation."""
        return self.options.jobs_per_allocation
