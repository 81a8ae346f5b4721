"""``hydra/sweeper=optuna``: an Optuna search that outlives failed trials and its own process."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from research.hydra_versions import REPLACE
from research.status import sole_process

PROVIDER = "research_lightning"


@dataclass
class OptunaConf:
    """Options of the search, named as the stock Optuna sweeper's are.

    Attributes:
        sampler: ``hydra/sweeper/sampler=tpe``, ``random``, ``cmaes`` or ``nsgaii``. Its seed,
            0 unless given, makes the search repeatable.
        direction: ``maximize`` or ``minimize``; the trainer's ``mode`` where there is one.
        n_trials: how many trials the search has, those before a restart included.
        n_jobs: trials per launch, chosen without knowing each other's results; null for as many
            as the local launcher has slots, as one allocation of the SLURM launcher holds, and for
            one with any other launcher.
        max_failure_rate: the search ends when more than this share of a launch fails.
        params: keys and what to search for them, as on the command line.

    """

    _target_: str = "hydra_plugins.research_lightning.optuna.OptunaSweeper"
    _recursive_: bool = False  # the sampler is made anew for every trial
    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"optional sampler": "tpe"}])
    sampler: Any = None
    direction: str = "${oc.select:trainer.score.mode,minimize}"
    n_trials: int = 20
    n_jobs: int | None = None
    max_failure_rate: float = 1.0
    params: dict[str, str] | None = None


class OptunaChoices(SearchPathPlugin):
    """Makes ``hydra/sweeper=optuna`` this sweeper, and the stock one ``optuna_stock``.

    Of two configs of one name the last stored counts, which the order of ``sys.path`` would decide;
    Hydra comes here when it has found all plugins.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Store both configs; the search path stays as it is."""
        store = partial(ConfigStore.instance().store, group="hydra/sweeper")
        with suppress(ConfigLoadError):  # the extra is not installed
            stock = ConfigStore.instance().load("hydra/sweeper/optuna.yaml")
            if stock.provider != PROVIDER:
                store(name="optuna_stock", node=stock.node, provider=stock.provider)
        store(name="optuna", node=OptunaConf, provider=PROVIDER, **REPLACE)


class OptunaSweeper(Sweeper):
    """Launches trials until the study has enough of them."""

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
            UserError: an option is wrong, the sweep directory holds another search or another
                process is at work on it, or too many trials failed.

        """
        from research.launchers.search import Study

        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        (folder / "study").mkdir(parents=True, exist_ok=True)
        with sole_process(folder / "study"):
            study = Study(folder, self.options, arguments)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            batch_size = self.batch_size()
            while batch := study.next_batch(batch_size):
                overrides = [entry["overrides"] for entry in batch]
                answers = self.launcher.launch(overrides, initial_job_idx=batch[0]["number"])
                study.tell(batch, answers)
            study.conclude()

    def batch_size(self) -> int:
        """The trials of one launch."""
        if self.options.n_jobs is not None:
            return self.options.n_jobs
        at_once = getattr(self.launcher, "jobs_at_once", None)  # ours have it
        return at_once() if at_once else 1
