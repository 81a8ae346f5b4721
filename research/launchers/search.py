"""An Optuna search: its trials are noted before they start, so that it goes on where it was."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from research.differences import differences
from research.errors import UserError
from research.files import write_whole
from research.hydra_versions import execution_whitelist
from research.launchers.plan.job import JobError
from research.process import error_line

if TYPE_CHECKING:
    from hydra_plugins.research_lightning.optuna import OptunaConf

log = logging.getLogger(__name__)
DIRECTIONS = {"max": "maximize", "min": "minimize", "maximize": "maximize", "minimize": "minimize"}


class Study:
    """An Optuna study in memory, made after a restart from ``study/trials.json``.

    The file has an entry for every trial: ``number``, ``batch`` (the number of the first trial
    chosen with it), ``params``, ``overrides``, ``state`` (``waiting``, ``complete`` or ``failed``),
    ``value`` and the ``reason`` of a failure. It is written before trials start and after they
    end. Every trial has a sampler of its own, seeded by the trial's number, so that a search that
    was interrupted is the same as one that was not.

    Args:
        folder: the sweep directory.
        options: of the sweeper.
        arguments: the overrides of the command line.

    Raises:
        UserError: an option is wrong, or the file holds another search.

    """

    def __init__(self, folder: Path, options: "OptunaConf", arguments: Sequence[str]) -> None:
        create_study, parse = import_optuna()
        check(options)
        self.folder, self.options = folder, options
        self.path = folder / "study" / "trials.json"
        params = [f"{key}={value}" for key, value in (options.params or {}).items()]
        self.space, self.fixed = parse([*params, *arguments])
        if not self.space:
            raise UserError(
                "there is nothing to search; give a key an interval, a range or several values: "
                "'alg.optim.lr=tag(log,interval(1e-4,1e-2))'"
            )
        self.search = {
            "direction": DIRECTIONS[options.direction],
            "sampler": OmegaConf.to_container(options.sampler),
            "space": {key: str(values) for key, values in self.space.items()},
            "fixed": self.fixed,
        }
        self.study = create_study(direction=DIRECTIONS[options.direction])
        self.trials: list[Any] = []
        self.entries = self.read()
        for _, batch in groupby(list(self.entries), key=itemgetter("batch")):
            self.repeat(list(batch))

    def read(self) -> list[dict[str, Any]]:
        """The entries in the file; once the search is over, those that failed wait for another try.

        As long as no trial is over there is no search yet, and another may take its place.
        """
        try:
            content = json.loads(self.path.read_text())
            search, entries = content["search"], content["trials"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} does not hold a search: {error}") from error
        over = sum(entry["state"] != "waiting" for entry in entries)
        changes = [line for _, line in differences(search, self.search)]
        if changes and over:
            raise UserError(
                f"{self.folder} holds another search: {'; '.join(changes)}; "
                "choose another hydra.sweep.dir"
            )
        if changes:
            return []
        log.info("%s: %d of %d trials are over", self.folder, over, self.options.n_trials)
        if over == len(entries) >= self.options.n_trials:
            for entry in entries:
                if entry["state"] == "failed":
                    entry["state"] = "waiting"
        return entries

    def write(self) -> None:
        """Replace the file."""
        content = {"search": self.search, "trials": self.entries}
        write_whole(self.path, json.dumps(content, indent=1) + "\n")

    def next_batch(self, size: int) -> list[dict[str, Any]]:
        """The next trials to launch, at most ``size``; none when the search is over.

        Their numbers are consecutive, because launchers that are not ours count from the first.
        """
        waiting = [entry for entry in self.entries if entry["state"] == "waiting"]
        if not waiting:
            return self.ask(min(size, self.options.n_trials - len(self.entries)))
        pairs = enumerate(waiting, waiting[0]["number"])
        run = takewhile(lambda pair: pair[0] == pair[1]["number"], pairs)
        return [entry for _, entry in run][:size]

    def ask(self, count: int) -> list[dict[str, Any]]:
        """New trials, in the file already."""
        first = len(self.entries)
        for number in range(first, first + count):
            params = self.start().params
            overrides = as_overrides({**params, **self.fixed})
            entry = {"number": number, "batch": first, "params": params, "overrides": overrides}
            self.entries.append({**entry, "state": "waiting", "value": None, "reason": None})
        self.write()
        return self.entries[first:]

    def start(self, params: Mapping[str, Any] | None = None) -> Any:
        """Optuna's next trial, with ``params`` if it had them before a restart."""
        self.study.sampler = make_sampler(self.options.sampler, len(self.trials))
        if params is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is called experimental
                self.study.enqueue_trial(params)
        self.trials.append(self.study.ask(self.space))
        return self.trials[-1]

    def repeat(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Bring Optuna to where it was after a batch, of which no trial knew another's result."""
        for entry in batch:
            self.start(entry["params"])
        for entry in batch:
            self.pass_on(entry)

    def tell(self, batch: Sequence[dict[str, Any]], answers: Sequence[JobReturn]) -> None:
        """Take what a launcher returned for a batch.

        Raises:
            UserError: it has no results yet, or more than ``max_failure_rate`` of them failed.

        """
        for entry, answer in zip(batch, answers, strict=True):
            value, reason = score_of(answer)
            entry |= {"state": "failed" if reason else "complete", "value": value, "reason": reason}
            self.pass_on(entry)
            log.info("trial %d: %s", entry["number"], reason or value)
        self.write()
        self.write_best()
        reasons = [entry["reason"] for entry in batch if entry["state"] == "failed"]
        if len(reasons) > self.options.max_failure_rate * len(batch):
            raise UserError(
                f"{len(reasons)} of {len(batch)} trials failed, more than hydra.sweeper."
                f"max_failure_rate={self.options.max_failure_rate:g} allows; {reasons[0]}"
            )

    def pass_on(self, entry: Mapping[str, Any]) -> None:
        """Tell Optuna the result of a trial, if there is one."""
        from optuna.trial import TrialState

        trial = self.trials[entry["number"]]
        if entry["state"] == "complete":
            self.study.tell(trial, entry["value"])
        elif entry["state"] == "failed":
            self.study.tell(trial, state=TrialState.FAIL)

    def write_best(self) -> None:
        """Write the best parameters so far, as the stock sweeper does at its end."""
        for best in self.study.best_trials[:1]:
            results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
            write_whole(self.folder / "optimization_results.yaml", OmegaConf.to_yaml(results))

    def conclude(self) -> None:
        """Say what came of the search.

        Raises:
            UserError: every trial failed.

        """
        reasons = [entry["reason"] for entry in self.entries if entry["state"] == "failed"]
        if len(reasons) == len(self.entries):
            raise UserError(f"all {len(reasons)} trials failed; the first: {reasons[0]}")
        best = self.study.best_trial
        overrides = " ".join(as_overrides(best.params))
        log.info("%d trials completed, %d failed", len(self.entries) - len(reasons), len(reasons))
        log.info("best: trial %d, %s: %.6g", best.number, overrides, best.value)


def import_optuna() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes a study, and what makes a search space of overrides.

    Raises:
        UserError: the extra is not installed.

    """
    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it tells of its plugins
    try:
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
    except ImportError as error:
        raise UserError(
            "hydra/sweeper=optuna needs an extra: pip install 'research-lightning[optuna]' "
            f"({error})"
        ) from error
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna.create_study, create_params_from_overrides


def check(options: "OptunaConf") -> None:
    """Check the options.

    Raises:
        UserError: one is out of range, or no sampler is chosen.

    """
    for name in ("n_trials", "n_jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"hydra.sweeper.{name} must be at least 1, got {value}")
    if not 0 <= options.max_failure_rate <= 1:
        raise UserError(
            f"hydra.sweeper.max_failure_rate must be in [0, 1], got {options.max_failure_rate}"
        )
    if options.direction not in DIRECTIONS:
        raise UserError(
            f"hydra.sweeper.direction must be maximize or minimize, got {options.direction}"
        )
    if options.sampler is None or options.sampler.get("_partial_"):
        raise UserError(
            "hydra/sweeper/sampler must be tpe, random, cmaes or nsgaii; for a grid choose "
            "hydra/sweeper=grid"
        )


def make_sampler(options: DictConfig, number: int) -> Any:
    """The sampler for a trial: its own stream of random numbers, always the same."""
    from numpy.random import SeedSequence

    seeds = SeedSequence([options.get("seed") or 0, number])
    seed = {"seed": int(seeds.generate_state(1)[0])} if "seed" in options else {}
    with execution_whitelist(["optuna.samplers"]):
        return instantiate(options, **seed)


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Parameters as on the command line."""
    return [f"{key}={value}" for key, value in params.items()]


def score_of(answer: JobReturn) -> tuple[float | None, str | None]:
    """A trial's value, or why it has none.

    Raises:
        UserError: the launcher returned before the job did.

    """
    if answer.status is JobStatus.UNKNOWN:
        raise UserError("a search needs the results of its trials: its launcher must wait for them")
    result = answer._return_value
    if answer.status is JobStatus.FAILED:
        return None, str(result) if isinstance(result, JobError) else error_line(result)
    try:
        value = float(result)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        return None, f"returned {result}, not a finite number"
    return value, None
