"""``hydra/sweeper=grid``: Hydra's basic sweeper, with paired parameters and a dry run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf


@dataclass
class GridConf(BasicSweeperConf):
    """Options of the grid sweeper, in addition to Hydra's own ``params`` and ``max_batch_size``.

    Attributes:
        paired: groups of keys that vary together, first value with first value, instead of being
            multiplied: ``[[alg.optim.lr,network.hidden_dims]]``.
        seeds_per_job: seeds of ``seed=0,1,...`` that one process trains together, each in a run
            directory of its own.
        dry_run: check and print every job, start none.

    """

    _target_: str = "hydra_plugins.research_lightning.grid.GridSweeper"
    paired: list[list[str]] = field(default_factory=list)
    seeds_per_job: int = 1
    dry_run: bool = False


ConfigStore.instance().store(
    group="hydra/sweeper", name="grid", node=GridConf, provider="research_lightning"
)


class GridSweeper(BasicSweeper):
    """Launches every combination of the swept values, where paired keys vary together."""

    def __init__(
        self,
        *,
        paired: Sequence[Sequence[str]],
        seeds_per_job: int,
        dry_run: bool,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.paired = paired
        self.seeds_per_job = seeds_per_job
        self.dry_run = dry_run

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch the jobs; the launcher composes their configs, and checks them before any starts.

        Raises:
            UserError: ``paired`` is wrong, or a job did not complete.

        """
        from research.launchers.plan.combinations import combine, in_batches, require_completion

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = combine(overrides, self.paired, self.seeds_per_job)
        self.overrides = in_batches(jobs, self.max_batch_size)
        sweep_dir = Path(self.config.hydra.sweep.dir)
        sweep_dir.mkdir(parents=True, exist_ok=True)
        # Our launchers replace it, once they have accepted the command.
        if not (sweep_dir / "multirun.yaml").exists():
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        for batch in self.overrides:
            first = sum(map(len, returns))
            returns.append(self.launcher.launch(batch, initial_job_idx=first))
        require_completion([answer for batch in returns for answer in batch])
        return returns
