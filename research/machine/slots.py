"""Who gets which CPUs and which share of which GPU, decided from numbers alone."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from research.errors import UserError, did_you_mean

Remainder = Literal["spread", "new"]


class Slot(NamedTuple):
    """A place for one job at a time.

    Attributes:
        cpus: the logical CPUs a job is pinned to; empty: it is not pinned.
        threads: the cap on a job's threads, the same in every slot, so that the same job computes
            the same numbers wherever it lands.
        gpu: for CUDA_VISIBLE_DEVICES, "0,1" if the job has several; "" hides every GPU, None leaves
            the variable alone.

    """

    number: int
    cpus: tuple[int, ...]
    threads: int
    gpu: str | None


def make_slots(
    *,
    cpus: Sequence[int],
    gpus: Sequence[str] | None,
    gpus_per_job: int,
    jobs_per_gpu: int,
    cpus_per_job: int | None,
    max_jobs: int | None,
) -> list[Slot]:
    """The slots of a machine; the first ones lie as far apart as they can, for a short sweep.

    Args:
        cpus: those to use, neighbours (threads of a core, cores of a socket) side by side.
        gpus: those to share, neighbours in this order too; None: none found, []: none wanted.
        gpus_per_job: GPUs in a slot, neighbours; without GPUs neither this nor the next counts.
        jobs_per_gpu: slots on each GPU; 1 if a slot has several.
        cpus_per_job: CPUs in a slot; None: the CPUs are divided evenly, or are a slot each where
            there are no GPUs and no ``max_jobs`` below their number.
        max_jobs: at most so many slots.

    Raises:
        UserError: a number is below 1, a single job needs more CPUs or GPUs than there are, or jobs
            that need several GPUs would share them.

    """
    check_positive("gpus_per_job", gpus_per_job)
    check_positive("jobs_per_gpu", jobs_per_gpu)
    check_positive("cpus_per_job", cpus_per_job)
    check_positive("max_jobs", max_jobs)
    if not cpus:
        raise UserError("hydra.launcher.cpus must name at least one CPU, got []")
    if (cpus_per_job or 0) > len(cpus):
        raise UserError(
            f"hydra.launcher.cpus_per_job={cpus_per_job} is more than the CPUs to use, {len(cpus)}"
        )
    if gpus_per_job > 1 and jobs_per_gpu > 1:
        raise UserError(
            f"hydra.launcher.gpus_per_job={gpus_per_job} needs hydra.launcher.jobs_per_gpu=1,"
            f" got {jobs_per_gpu}"
        )
    if gpus and gpus_per_job > len(gpus):
        raise UserError(
            f"hydra.launcher.gpus_per_job={gpus_per_job} is more than the GPUs to use, {len(gpus)}"
        )
    names = gpu_groups(gpus, gpus_per_job) if gpus else [None if gpus is None else ""]
    limits = [] if max_jobs is None else [max_jobs]
    if gpus:
        limits.append(len(names) * jobs_per_gpu)
    if cpus_per_job or not gpus:
        limits.append(len(cpus) // (cpus_per_job or 1))
    num_slots = min(limits)
    threads = cpus_per_job or max(1, len(cpus) // num_slots)
    return [
        Slot(
            number, pins(cpus, place, num_slots, cpus_per_job), threads, names[number % len(names)]
        )
        for number, place in enumerate(places(num_slots, len(names)))
    ]


def check_positive(key: str, value: int | None) -> None:
    """Refuse a launcher's setting below 1; None is no number and passes."""
    if value is not None and value < 1:
        raise UserError(f"hydra.launcher.{key} must be at least 1, got {value}")


def gpu_groups(gpus: Sequence[str], size: int) -> list[str]:
    """As many groups of neighbours as there can be, for CUDA_VISIBLE_DEVICES.

    GPUs that fill no group are left out all along the list, not at its end, so that each group
    stays at the height of its CPUs.
    """
    count = len(gpus) // size
    starts = [number * len(gpus) // count for number in range(count)]
    return [",".join(gpus[start : start + size]) for start in starts]


def pins(
    cpus: Sequence[int], place: int, num_places: int, cpus_per_job: int | None
) -> tuple[int, ...]:
    """The CPUs of one place of many; places share CPUs only where they outnumber them."""
    first, end = (number * len(cpus) // num_places for number in (place, place + 1))
    if cpus_per_job:
        first -= first % cpus_per_job  # no pin of two CPUs holds halves of two cores
        end = first + cpus_per_job
    return tuple(cpus[first : max(end, first + 1)])


def places(num_slots: int, num_gpus: int) -> list[int]:
    """Where on the line of CPUs each slot lies; ``num_gpus`` counts groups if slots have several.

    Slots of one GPU lie side by side, in the order of the GPUs, because a GPU is mostly nearest to
    the CPUs at its own height in the list.
    """
    taken, result = 0, [0] * num_slots
    for gpu in range(num_gpus):
        numbers = range(gpu, num_slots, num_gpus)
        for number, place in zip(numbers, far_apart(len(numbers)), strict=True):
            result[number] = taken + place
        taken += len(numbers)
    return result


def far_apart(num: int) -> list[int]:
    """The numbers below ``num``, ordered so that those at the beginning are far apart.

    Read backwards in base 2, even numbers come before odd ones, multiples of 4 before both: few
    jobs get a core each before two of them share one.
    """
    return sorted(range(num), key=lambda number: f"{number:064b}"[::-1])


def allocations(num_jobs: int, jobs_per_allocation: int, remainder: str) -> list[range]:
    """The jobs of each allocation, consecutive numbers, every job in one of them.

    Args:
        num_jobs: 0 or more.
        jobs_per_allocation: the size of an allocation.
        remainder: where the jobs go that fill no allocation: ``spread`` over the full ones, whose
            sizes then differ by at most one, or in a ``new``, smaller one.

    Raises:
        UserError: the size is below 1 or there is no such rule.

    """
    check_positive("jobs_per_allocation", jobs_per_allocation)
    if remainder not in get_args(Remainder):
        hint = did_you_mean(remainder, get_args(Remainder))
        raise UserError(f"hydra.launcher.remainder must be spread or new, got '{remainder}'{hint}")
    if remainder == "new":
        starts = range(0, num_jobs, jobs_per_allocation)
        return [range(start, min(start + jobs_per_allocation, num_jobs)) for start in starts]
    count = max(num_jobs // jobs_per_allocation, min(num_jobs, 1))
    return [range(i * num_jobs // count, (i + 1) * num_jobs // count) for i in range(count)]
