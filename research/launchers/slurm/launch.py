"""The SLURM launcher: an array of allocations, each of them a pool, on submitit's executor."""

import logging
import os
import pickle
import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
from omegaconf import OmegaConf

from research.errors import UserError
from research.launchers.plan.batch import Batch, Program
from research.launchers.plan.dry_run import is_dry_run, show_plan
from research.launchers.plan.ledger import Job
from research.launchers.plan.snapshot import move_call, take_snapshot
from research.launchers.pool.pool import Outcome, Task
from research.launchers.show.follow import wait_showing
from research.launchers.show.report import NEVER_BEGAN, report, shown
from research.launchers.slurm.allocation import Allocation, state
from research.launchers.slurm.queue import (
    SUBMITIT,
    Submission,
    find_places,
    read_submissions,
    settle,
    write_submissions,
)
from research.machine.slots import allocations
from research.status import sole_process

if TYPE_CHECKING:
    from hydra_plugins.research_lightning.slurm import SlurmConf

log = logging.getLogger(__name__)


def launch(
    program: Program, options: "SlurmConf", overrides: Sequence[Sequence[str]]
) -> Sequence[JobReturn]:
    """Submit the jobs of the batch that have not completed and do not already wait or run.

    Returns:
        the results of the jobs; with ``wait=false``, results without a status.

    Raises:
        UserError: an option or a config is wrong, or SLURM refuses the submission.

    """
    configure_log(program.config.hydra.hydra_logging, program.config.hydra.verbose)
    check_options(options)
    program.folder.mkdir(parents=True, exist_ok=True)
    with sole_process(program.folder):
        batch = Batch(program, overrides, [sys.executable, *sys.orig_argv[1:]])
        in_queue = queued(batch.plan.folder) if batch.to_do() else set()
        to_do = batch.to_do()  # again: a job that has left the queue may have completed
        if batch.plan.is_extended and in_queue:
            raise UserError(
                f"{len(in_queue)} jobs of {batch.plan.folder} are still in SLURM's queue, with "
                "their old length; extend the sweep when they are over, or cancel them: "
                f"python -m research.sweep cancel {shown(batch.plan.folder)}"
            )
        # A job that failed has ended, though its allocation may still run others.
        jobs = [job for job in to_do if job.number not in in_queue or state(job) == "failed"]
        groups = allocations(len(jobs), options.jobs_per_allocation, options.remainder)
        if is_dry_run(batch):
            places = [f"allocation {i}" for i, group in enumerate(groups) for _ in group]
            show_plan(batch, jobs, places, slots=())
            return []
        batch.check(jobs, elsewhere=True)
        if jobs:
            submit(batch, jobs, groups, options)
    announce(batch, jobs, len(to_do) - len(jobs), len(groups))
    if not options.wait:
        return [batch.answer_later(job) for job in batch.jobs]
    try:
        wait_showing(batch.plan.folder, batch.unique_jobs())
    except KeyboardInterrupt:
        log.info("the jobs continue without this command")
        raise
    report(batch.plan.folder, batch.unique_jobs(), mode=batch.score_mode)
    return batch.returns({job.number: outcome(batch, job) for job in batch.jobs})


def check_options(options: "SlurmConf") -> None:
    """Refuse options that are wrong on any cluster."""
    if options.tasks_per_node != 1:
        raise UserError(
            f"hydra.launcher.tasks_per_node={options.tasks_per_node} must be 1; several jobs share "
            "an allocation by jobs_per_allocation, several processes a job by trainer.devices"
        )
    if options.nodes > 1 and options.jobs_per_allocation != 1:
        raise UserError(
            f"hydra.launcher.nodes={options.nodes} is for a job that is trained on all of them, so "
            f"jobs_per_allocation must be 1, got {options.jobs_per_allocation}"
        )
    if options.signal_delay_s >= 60 * options.timeout_min:
        raise UserError(
            f"hydra.launcher.signal_delay_s={options.signal_delay_s} leaves no time to run in "
            f"timeout_min={options.timeout_min}"
        )


def queued(sweep: Path) -> set[int]:
    """The jobs of a sweep that wait or run under SLURM.

    Raises:
        UserError: some were submitted, and SLURM does not answer.

    """
    settle(sweep)
    places = find_places(read_submissions(sweep))
    if places is None:
        raise UserError(f"SLURM does not answer, so the jobs of {sweep} may be running; try later")
    return set(places)


def submit(
    batch: Batch, jobs: Sequence[Job], groups: Sequence[range], options: "SlurmConf"
) -> None:
    """Submit an allocation for each group of jobs.

    The submission is recorded before SLURM gets it, with a mark that its tasks carry, and again
    when their names are known: even if the launcher is killed in between, no job runs twice.

    Raises:
        UserError: SLURM refuses it, or submitit does not know an option.

    """
    import submitit
    from submitit.core.utils import FailedJobError

    sweep = batch.plan.folder
    tasks, code = snapshot(batch, jobs, options)
    members = [[tasks[index] for index in group] for group in groups]
    mark = f"sweep-{secrets.token_hex(6)}"
    size = max(map(len, groups))
    work = [
        Allocation(member, size, options.max_requeues, sweep, mark, os.getcwd())
        for member in members
    ]
    parameters = slurm_parameters(options, mark, code)
    noted = read_submissions(sweep)
    folder = os.path.abspath(parameters.pop("folder"))
    numbers = [[task.job.number for task in member] for member in members]
    write_submissions(sweep, [*noted, Submission(mark, folder, [], numbers)])
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**parameters)
        submitted = executor.map_array(Allocation.__call__, work)
    except (FailedJobError, NameError, RuntimeError, OSError, AssertionError) as error:
        write_submissions(sweep, noted)
        raise UserError(f"SLURM did not take the jobs: {' '.join(str(error).split())}") from error
    names = [job.job_id for job in submitted]
    write_submissions(sweep, [*noted, Submission(mark, folder, names, numbers)])


def snapshot(
    batch: Batch, jobs: Sequence[Job], options: "SlurmConf"
) -> tuple[list[Task], Path | None]:
    """The jobs' tasks, and the snapshot of the code that they import from, if there is one."""
    tasks = batch.tasks(jobs, results=batch.plan.folder / SUBMITIT / "results")
    if not options.snapshot:
        return tasks, None
    root, code = take_snapshot(Path(sys.argv[0]).resolve(), batch.plan.folder / "code")
    return [task._replace(call=move_call(task.call, root, code)) for task in tasks], code


def slurm_parameters(options: "SlurmConf", mark: str, code: Path | None) -> dict[str, Any]:
    """The parameters of submitit's executor, under its names."""
    own = {field.name for field in fields(SlurmQueueConf)} - {"_target_", "max_num_timeout"}
    given = {name: plain(getattr(options, name)) for name in own}
    shared = {field.name for field in fields(BaseQueueConf)}
    comment = " ".join(filter(None, [given["comment"], mark]))
    given |= {"comment": comment, "setup": setup_lines(given["setup"], code)}
    given["additional_parameters"] = {"requeue": True, **given["additional_parameters"]}
    if options.nodes > 1:  # a node that fails ends the others
        given["srun_args"] = ["--kill-on-bad-exit=1"]
    folder = given.pop("submitit_folder")
    named = {name if name in shared else f"slurm_{name}": value for name, value in given.items()}
    return {"folder": folder, **{name: value for name, value in named.items() if value is not None}}


def setup_lines(lines: Sequence[str] | None, code: Path | None) -> list[str]:
    """The shell lines before each task: the user's, or one that enters our environment.

    Python first imports from the folder it starts in, so with a snapshot it starts there.
    """
    script = Path(__file__).parents[3] / "setup_shell.sh"
    if lines is None and script.exists():
        lines = [f". {shlex.quote(str(script))} || exit 1"]
    if code is not None:
        path = shlex.quote(str(code))
        enter = [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}", f"cd {path} || exit 1"]
        lines = [*(lines or []), *enter]
    return list(lines or [])


def announce(batch: Batch, jobs: Sequence[Job], num_queued: int, num_groups: int) -> None:
    """Log what was submitted, and how to follow it."""
    sweep = batch.plan.folder
    completed = len(batch.unique_jobs()) - len(jobs) - num_queued
    earlier = [
        f"{count} {what}"
        for count, what in ((completed, "completed earlier"), (num_queued, "submitted earlier"))
        if count
    ]
    told = f" ({', '.join(earlier)})" if earlier else ""
    log.info("%s: %d jobs in %d allocations%s", sweep, len(jobs), num_groups, told)
    for verb in ("status", "wait", "cancel", "retry") if jobs or num_queued else ():
        log.info("  python -m research.sweep %-6s %s", verb, shown(sweep))


def outcome(batch: Batch, job: Job) -> Outcome:
    """The outcome of a job that ran elsewhere."""
    status = batch.status(job)
    path = batch.plan.folder / SUBMITIT / "results" / f"{job.number}.pkl"
    result = None
    if status["state"] == "completed" and path.exists():
        result = pickle.loads(path.read_bytes())
    return Outcome(status["state"], result, status["exit_reason"] or NEVER_BEGAN)


def plain(value: Any) -> Any:
    """``value``, with a container of OmegaConf's turned into a plain one."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
