"""An Optuna search; trials are recorded before they start, so that it can be resumed."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from numpy.random import SeedSequence
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from research.annotations import check_numbers
from research.differences import differences
from research.errors import UserError
from research.files import flush_folder, write_whole
from research.hydra_versions import execution_whitelist
from research.launchers.plan.job import JobError
from research.launchers.search_space import parse
from research.process import error_line

if TYPE_CHECKING:
    from hydra_plugins.research_lightning.optuna import OptunaConf

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(logging.WARNING)
DIRECTIONS = {"max": "maximize", "min": "minimize", "maximize": "maximize", "minimize": "minimize"}


class Study:
    """The Optuna study in ``study/journal.log`` of a sweep directory, its only record.

    A new trial is one line of the journal, written before it starts, with its ``overrides``, the
    number of its ``job`` and that of its ``batch`` as user attributes. A failed job is retried as a
    further trial with the same overrides and job.

    The samplers work on a copy of the study in memory; the attributes that they store there, some
    of them pickled, are not in the journal. Each trial has its own sampler, seeded by the trial's
    number. After a restart the copy is rebuilt by asking for the same trials, batch by batch, so
    that an interrupted search chooses the same parameters as an uninterrupted one.

    Args:
        folder: the sweep directory.
        options: of the sweeper.
        arguments: the overrides of the command line.

    Raises:
        UserError: an option is wrong, or the file holds another search.

    """

    def __init__(self, folder: Path, options: "OptunaConf", arguments: Sequence[str]) -> None:
        check(options)
        self.folder, self.options = folder, options
        params = [f"{key}={value}" for key, value in (options.params or {}).items()]
        self.space, self.fixed = parse([*params, *arguments])
        self.study = self.open()
        self.memory = optuna.create_study(direction=self.study.direction)
        self.take_up()
        self.repeat()

    def open(self) -> optuna.Study:
        """The study in the journal; replaces that of another search if no trial of it has ended."""
        search = {
            "direction": DIRECTIONS[self.options.direction],
            "sampler": OmegaConf.to_container(self.options.sampler),
            "space": {key: str(values) for key, values in self.space.items()},
            "fixed": self.fixed,
        }
        path = self.folder / "study" / "journal.log"
        lock = JournalFileOpenLock(str(path))
        repair(path, lock)
        try:
            storage = JournalStorage(JournalFileBackend(str(path), lock))
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(f"{path} does not hold a search: {error_line(error)}") from error
        named = {"study_name": "search", "storage": storage}
        study = optuna.create_study(**named, direction=search["direction"], load_if_exists=True)
        changes = [line for _, line in differences(study.user_attrs.get("search", search), search)]
        if changes and any(trial.state.is_finished() for trial in study.trials):
            raise UserError(
                f"{self.folder} holds another search: {'; '.join(changes)}; "
                "choose another hydra.sweep.dir"
            )
        if changes:
            optuna.delete_study(**named)
            study = optuna.create_study(**named, direction=search["direction"])
        if "search" not in study.user_attrs:
            study.set_user_attr("search", search)
        return study

    def take_up(self) -> None:
        """Resume after a restart; once the search is over, retry the jobs that failed."""
        for trial in self.waiting():
            if "reason" in trial.user_attrs:  # the process was killed while recording it
                self.study.tell(trial.number, state=TrialState.FAIL)
        jobs, waiting = self.jobs(), self.waiting()
        if jobs:
            over = len(jobs) - len(waiting)
            log.info("%s: %d of %d trials are over", self.folder, over, self.options.n_trials)
        ended = {trial.user_attrs["job"] for trial in self.trials() if trial.state.is_finished()}
        if len(ended) < max(len(jobs), self.options.n_trials):
            return
        for trial in jobs.values():
            if trial.state == TrialState.FAIL:
                trial.state = TrialState.RUNNING
                trial.datetime_start, trial.datetime_complete = datetime.now(), None
                trial.user_attrs["batch"] = len(ended)
                del trial.user_attrs["reason"]
                self.study.add_trial(trial)

    def trials(self) -> list[FrozenTrial]:
        """The trials of this search; others may have been added to the study by hand."""
        return [trial for trial in self.study.trials if "job" in trial.user_attrs]

    def jobs(self) -> dict[int, FrozenTrial]:
        """The latest trial of every job, by the job's number."""
        return {trial.user_attrs["job"]: trial for trial in self.trials()}

    def waiting(self) -> list[FrozenTrial]:
        """The trials without a result."""
        return [trial for trial in self.jobs().values() if not trial.state.is_finished()]

    def next_batch(self, size: int) -> list[FrozenTrial]:
        """The next trials to launch, at most ``size``; none when the search is over.

        Their jobs' numbers are consecutive, since launchers number jobs from the first one on.
        """
        num_jobs = len(self.jobs())
        if not self.waiting():
            self.study.set_user_attr("asked", num_jobs + size)
        # If a process was killed before it had added them all, none was launched yet.
        asked = min(self.study.user_attrs["asked"], self.options.n_trials)
        self.ask(asked - num_jobs)
        waiting = self.waiting()
        numbers = enumerate(waiting, waiting[0].user_attrs["job"] if waiting else 0)
        run = takewhile(lambda pair: pair[0] == pair[1].user_attrs["job"], numbers)
        return [trial for _, trial in run][:size]

    def repeat(self) -> None:
        """Bring the copy in memory up to date with the journal."""
        for _, trials in groupby(self.trials(), lambda trial: trial.user_attrs["batch"]):
            batch = list(trials)  # none of its trials knew the result of another
            first = len(self.memory.trials)
            for trial in batch:
                self.start(trial.params)
            for number, trial in enumerate(batch, first):
                if trial.state.is_finished():
                    self.memory.tell(number, trial.value, trial.state)

    def start(self, params: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Begin the next trial in memory, with ``params`` of the journal if given; returns them."""
        self.memory.sampler = make_sampler(self.options.sampler, len(self.memory.trials))
        chosen = self.memory.ask(self.space).params
        if params is None or params == chosen:
            return chosen
        known = self.memory.trials[:-1]  # another version of Optuna chose these
        self.memory = optuna.create_study(direction=self.study.direction)
        self.memory.add_trials([*known, self.running(params)])
        return params

    def running(self, params: Mapping[str, Any], **attrs: Any) -> FrozenTrial:
        """A trial without a result, to be added to a study."""
        return create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=self.space,
            user_attrs=attrs,
        )

    def ask(self, count: int) -> None:
        """Add ``count`` new trials, each with one line of the journal."""
        waiting = self.waiting()
        batch = waiting[0].user_attrs["batch"] if waiting else len(self.memory.trials)
        first = len(self.jobs())
        for job in range(first, first + count):
            params = self.start()
            overrides = as_overrides({**params, **self.fixed})
            self.study.add_trial(self.running(params, job=job, batch=batch, overrides=overrides))

    def tell(self, batch: Sequence[FrozenTrial], job_returns: Sequence[JobReturn]) -> None:
        """Record the results that a launcher returned for a batch.

        Raises:
            UserError: the launcher did not wait for its jobs, or more than ``max_failure_rate`` of
                them failed.

        """
        scores = [score_of(job_return) for job_return in job_returns]
        for trial, (value, reason) in zip(batch, scores, strict=True):
            if reason:
                self.study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
            state = TrialState.FAIL if reason else TrialState.COMPLETE
            numbers = [known.number for known in self.trials()]
            self.memory.tell(numbers.index(trial.number), value, state)
            self.study.tell(trial.number, value, state)
            log.info("trial %d: %s", trial.number, reason or value)
        self.write_best()
        reasons = [reason for _, reason in scores if reason]
        if len(reasons) > self.options.max_failure_rate * len(batch):
            raise UserError(
                f"{len(reasons)} of {len(batch)} trials failed, more than hydra.sweeper."
                f"max_failure_rate={self.options.max_failure_rate:g} allows; {reasons[0]}"
            )

    def write_best(self) -> None:
        """Write the best parameters so far, as Hydra's Optuna sweeper does at its end."""
        for best in self.study.best_trials[:1]:
            results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
            write_whole(self.folder / "optimization_results.yaml", OmegaConf.to_yaml(results))

    def conclude(self) -> None:
        """Log the result of the search.

        Raises:
            UserError: every trial failed.

        """
        jobs = self.jobs()
        reasons = [trial.user_attrs["reason"] for trial in jobs.values() if trial.value is None]
        if len(reasons) == len(jobs):
            raise UserError(f"all {len(reasons)} trials failed; the first: {reasons[0]}")
        self.write_best()  # an earlier process may have been killed before it could
        best = self.study.best_trial
        overrides = " ".join(as_overrides(best.params))
        log.info("%d trials completed, %d failed", len(jobs) - len(reasons), len(reasons))
        log.info("best: trial %d, %s: %.6g", best.number, overrides, best.value)


def check(options: "OptunaConf") -> None:
    """Check the options.

    Raises:
        UserError: one is out of range, or no sampler is chosen.

    """
    check_numbers(options, "hydra.sweeper")
    if options.direction not in DIRECTIONS:
        raise UserError(
            f"hydra.sweeper.direction must be maximize or minimize, got {options.direction}"
        )
    if options.sampler is None or options.sampler.get("_partial_"):  # the stock plugin's grid
        raise UserError(
            "hydra/sweeper/sampler must be tpe, random, cmaes or nsgaii; for a grid choose "
            "hydra/sweeper=grid"
        )
    try:
        make_sampler(options.sampler, 0)
    except (InstantiationException, TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.sampler: {error.__cause__ or error}") from error


def make_sampler(options: DictConfig, number: int) -> Any:
    """The sampler of a trial, whose random numbers depend only on ``options`` and ``number``."""
    seed = SeedSequence([options.get("seed") or 0, number]).generate_state(1)[0]
    given = {name: value for name, value in options.items() if value is not None}
    with execution_whitelist(["optuna.samplers"]):
        return instantiate(given, seed=int(seed))


def repair(path: Path, lock: JournalFileOpenLock) -> None:
    """Create the journal, or remove what a killed process left: its lock, and a line cut short.

    ``optuna-dashboard`` may also write to the journal; it holds the lock only for a moment.
    """
    if os.path.lexists(left := f"{path}.lock"):
        time.sleep(1.0)
        Path(left).unlink(missing_ok=True)
    lock.acquire()
    try:
        path.touch()
        flush_folder(path.parent)
        *_, last = [b"", *path.read_bytes().splitlines(keepends=True)]
        with suppress(ValueError):
            if last.endswith(b"\n") and json.loads(last):
                return
        os.truncate(path, path.stat().st_size - len(last))
    finally:
        lock.release()


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Parameters as on the command line."""
    return [f"{key}={value}" for key, value in params.items()]


def score_of(job_return: JobReturn) -> tuple[float | None, str | None]:
    """A trial's value, or the reason why it has none.

    Raises:
        UserError: the launcher returned before the job ended.

    """
    if job_return.status is JobStatus.UNKNOWN:
        raise UserError("a search needs the results of its trials: its launcher must wait for them")
    result = job_return._return_value
    if job_return.status is JobStatus.FAILED:
        return None, str(result) if isinstance(result, JobError) else error_line(result)
    try:
        value = float(result)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        return None, f"returned {result}, not a finite number"
    return value, None
