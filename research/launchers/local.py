"""The local launcher: a pool of processes on this machine."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from math import inf
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log
from omegaconf import OmegaConf

from research.errors import UserError
from research.launchers.plan.batch import Batch, Program
from research.launchers.plan.dry_run import is_dry_run, show_plan
from research.launchers.plan.ledger import Job, planned_jobs
from research.launchers.pool.mps import mps_daemon
from research.launchers.pool.pool import Outcome, Pool
from research.launchers.show.progress import Progress, name_slot
from research.launchers.show.report import report
from research.launchers.show.screen import Screen
from research.machine.cpus import cpu_quota, usable_cpus
from research.machine.gpus import gpu_uuids, usable_gpus
from research.machine.slots import Slot, make_slots
from research.status import sole_process

if TYPE_CHECKING:
    from hydra_plugins.research_lightning.local import LocalConf

log = logging.getLogger(__name__)


def launch(
    program: Program, options: "LocalConf", overrides: Sequence[Sequence[str]]
) -> Sequence[JobReturn]:
    """Run the jobs of the batch that have not completed, and return the results of all its jobs.

    Raises:
        UserError: an option or a config is wrong, or another launcher is running the sweep.
        KeyboardInterrupt: a signal ended the sweep.

    """
    configure_log(program.config.hydra.hydra_logging, program.config.hydra.verbose)
    slots = slots_for(options)
    program.folder.mkdir(parents=True, exist_ok=True)
    with sole_process(program.folder):
        batch = Batch(program, overrides, [sys.executable, *sys.orig_argv[1:]])
        to_do = batch.to_do()
        if is_dry_run(batch):
            places = [name_slot(slots[i % len(slots)]) for i in range(len(to_do))]
            show_plan(batch, to_do, places, slots)
            return []
        batch.check(to_do)
        outcomes, interrupted = run(batch, to_do, slots, options)
    if interrupted:
        raise KeyboardInterrupt
    return batch.returns(outcomes)


def slots_for(options: "LocalConf") -> list[Slot]:
    """The slots into which the options divide this machine.

    Raises:
        UserError: an option asks for more than there is.

    """
    cpus, gpus = usable_cpus(plain(options.cpus)), usable_gpus(plain(options.gpus))
    migs = [name for name in gpus or () if name.startswith("MIG-")]
    if options.gpus_per_job > 1 and migs:
        # CUDA shows a process only one: https://docs.nvidia.com/datacenter/tesla/mig-user-guide.
        raise UserError(
            f"hydra.launcher.gpus_per_job={options.gpus_per_job} needs whole GPUs, got"
            f" {', '.join(migs)}; name others by hydra.launcher.gpus"
        )
    if options.mps:
        if not gpus:
            raise UserError("hydra.launcher.mps=true needs a GPU, and none is here")
        gpus = gpu_uuids(gpus)  # the daemon renumbers the GPUs it serves
    slots = make_slots(
        cpus=cpus,
        gpus=gpus,
        gpus_per_job=options.gpus_per_job,
        jobs_per_gpu=options.jobs_per_gpu,
        cpus_per_job=options.cpus_per_job,
        max_jobs=options.max_jobs,
    )
    if options.cpus == "auto" and (cpu_quota() or inf) < len(os.sched_getaffinity(0)):
        # Containers on one host all see all of its CPUs: they would pin jobs to the same ones.
        return [slot._replace(cpus=()) for slot in slots]
    return slots


def run(
    batch: Batch, to_do: Sequence[Job], slots: Sequence[Slot], options: "LocalConf"
) -> tuple[dict[int, Outcome], bool]:
    """Run and show jobs; returns their outcomes, and whether a signal ended the sweep."""
    progress = Progress(batch.jobs, Screen(sys.stderr))
    with ExitStack() as stack:
        stack.callback(progress.close)
        environ = stack.enter_context(mps_for(slots)) if options.mps and to_do else {}
        pool = Pool(
            slots,
            stagger_s=options.stagger_s,
            retries=options.retries,
            fail_fast=options.fail_fast,
            timeout_s=options.timeout_s,
            environ=environ,
            watch=progress,
        )
        done = len(batch.jobs) - len(to_do)
        log.info(
            "%s: %d jobs%s, %d at once",
            batch.plan.folder,
            len(to_do),
            f" ({done} completed earlier)" if done else "",
            min(len(slots), len(to_do)),
        )
        outcomes = pool.run(batch.tasks(to_do))
    report(batch.plan.folder, planned_jobs(batch.plan.folder), mode=batch.score_mode)
    return outcomes, bool(pool.received)


def mps_for(slots: Sequence[Slot]) -> AbstractContextManager[dict[str, str]]:
    """NVIDIA's Multi-Process Service for the GPUs of the slots."""
    names = [name for slot in slots if slot.gpu for name in slot.gpu.split(",")]
    return mps_daemon(list(dict.fromkeys(names)))


def plain(value: Any) -> Any:
    """``value``, with a container of OmegaConf's turned into a plain one."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
