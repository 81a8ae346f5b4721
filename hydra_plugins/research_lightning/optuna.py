"""``hydra/sweeper=optuna``: an Optuna search that survives failed trials and can be resumed."""

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from research.errors import UserError
from research.hydra_versions import REPLACE
from research.ranges import Fraction, PositiveInt
from research.status import sole_process


@dataclass
class OptunaConf:
    """Options of the search, named as the stock Optuna sweeper's are.

    Attributes:
        sampler: ``hydra/sweeper/sampler=tpe``, ``random``, ``cmaes`` or ``nsgaii``. Its seed,
            0 unless given, makes the search repeatable.
        direction: ``maximize`` or ``minimize``; the trainer's ``mode`` where there is one.
        n_trials: number of trials of the search, those before a restart included.
        n_jobs: trials per launch, chosen without knowing each other's results; null: as many as
            the local launcher has slots or an allocation of the SLURM launcher has jobs, and one
            with any other launcher.
        max_failure_rate: the search ends when more than this share of a launch fails.
        params: keys and what to search for them, as on the command line.

    """

    _target_: str = "hydra_plugins.research_lightning.optuna.OptunaSweeper"
    _recursive_: bool = False  # a sampler is built for every trial
    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"optional sampler": "tpe"}])
    sampler: Any = None
    direction: str = "${oc.select:trainer.score.mode,minimize}"
    n_trials: PositiveInt = 20
    n_jobs: PositiveInt | None = None
    max_failure_rate: Fraction = 1.0
    params: dict[str, str] | None = None


@dataclass
class TPEConf:
    """Options of Optuna's ``TPESampler``; null for Optuna's default, as for all samplers."""

    _target_: str = "optuna.samplers.TPESampler"
    seed: int = 0
    n_startup_trials: int | None = None
    n_ei_candidates: int | None = None
    multivariate: bool | None = None
    group: bool | None = None
    constant_liar: bool | None = None


@dataclass
class RandomConf:
    """Options of Optuna's ``RandomSampler``."""

    _target_: str = "optuna.samplers.RandomSampler"
    seed: int = 0


@dataclass
class CMAESConf:
    """Options of Optuna's ``CmaEsSampler``, which draws categories at random."""

    _target_: str = "optuna.samplers.CmaEsSampler"
    seed: int = 0
    n_startup_trials: int | None = None
    popsize: int | None = None
    use_separable_cma: bool | None = None
    with_margin: bool | None = None
    lr_adapt: bool | None = None
    warn_independent_sampling: bool = False  # else it warns in every trial


@dataclass
class NSGAIIConf:
    """Options of Optuna's ``NSGAIISampler``."""

    _target_: str = "optuna.samplers.NSGAIISampler"
    seed: int = 0
    population_size: int | None = None
    mutation_prob: float | None = None
    crossover_prob: float | None = None
    swapping_prob: float | None = None


SAMPLERS = {"tpe": TPEConf, "random": RandomConf, "cmaes": CMAESConf, "nsgaii": NSGAIIConf}


class OptunaChoices(SearchPathPlugin):
    """Stores the configs when Hydra has found all plugins, which is when it calls this one.

    The last config of a name counts; an old installation may also have ``hydra-optuna-sweeper``.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Store the configs; the search path is not changed."""
        store = partial(ConfigStore.instance().store, provider="research_lightning", **REPLACE)
        store(group="hydra/sweeper", name="optuna", node=OptunaConf)
        for name, node in SAMPLERS.items():
            store(group="hydra/sweeper/sampler", name=name, node=node)


class OptunaSweeper(Sweeper):
    """Launches trials until the study has ``n_trials`` of them."""

    def __init__(self, **options: Any) -> None:
        self.options = OptunaConf(**options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search; the best parameters go to ``optimization_results.yaml``.

        Raises:
            UserError: the extra is not installed, an option is wrong, the sweep directory holds
                another search or another process works in it, or too many trials failed.

        """
        logging.getLogger("alembic").setLevel(logging.WARNING)  # else it logs its plugins
        try:
            from research.launchers.search import Study
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna needs an extra: pip install 'research-lightning[optuna]' "
                f"({error})"
            ) from error
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        (folder / "study").mkdir(parents=True, exist_ok=True)
        with sole_process(folder / "study"):
            study = Study(folder, self.options, arguments)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            batch_size = self.batch_size()
            while batch := study.next_batch(batch_size):
                overrides = [trial.user_attrs["overrides"] for trial in batch]
                first = batch[0].user_attrs["job"]
                job_returns = self.launcher.launch(overrides, initial_job_idx=first)
                study.tell(batch, job_returns)
            study.conclude()

    def batch_size(self) -> int:
        """Number of trials per launch."""
        if self.options.n_jobs is not None:
            return self.options.n_jobs
        at_once = getattr(self.launcher, "jobs_at_once", None)  # only our launchers have it
        return at_once() if at_once else 1
