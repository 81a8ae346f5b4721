"""The CPUs and the share of a GPU that each job gets, computed from numbers alone."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from research.errors import UserError, did_you_mean

Remainder = Literal["spread", "new"]


class Slot(NamedTuple):
    """A place for one job at a time.

    Attributes:
        cpus: the logical CPUs a job is pinned to; empty: it is not pinned.
        threads: the limit on a job's threads, the same in every slot, so that the same job computes
            the same numbers in any of them.
        gpu: the value of CUDA_VISIBLE_DEVICES, such as "0,1" if the job has several; "" hides every
            GPU, None leaves the variable unchanged.

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
    """The slots of a machine; the first ones are as far apart as possible, for a short sweep.

    Args:
        cpus: the CPUs to use, with the threads of a core and the cores of a socket adjacent.
        gpus: the GPUs to share, with neighbours adjacent; None: none found, []: none wanted.
        gpus_per_job: adjacent GPUs in a slot; ignored without GPUs.
        jobs_per_gpu: slots on each GPU, 1 if a slot has several GPUs; ignored without GPUs.
        cpus_per_job: CPUs in a slot; None divides them evenly among the slots, which without GPUs
            are as many as the CPUs, or ``max_jobs`` if that is lower.
        max_jobs: the largest number of slots, or None.

    Raises:
        UserError: a single job needs more CPUs or GPUs than there are, or jobs that need several
            GPUs would share them.

    """
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


def gpu_groups(gpus: Sequence[str], size: int) -> list[str]:
    """As many groups of ``size`` neighbours as possible, as values of CUDA_VISIBLE_DEVICES.

    GPUs that are left over are spread along the list, not all at its end, so that each group keeps
    the same relative position in its list as its CPUs in theirs.
    """
    count = len(gpus) // size
    starts = [number * len(gpus) // count for number in range(count)]
    return [",".join(gpus[start : start + size]) for start in starts]


def pins(
    cpus: Sequence[int], place: int, num_places: int, cpus_per_job: int | None
) -> tuple[int, ...]:
    """The CPUs of one place; places share CPUs only if there are more places than CPUs."""
    first, end = (number * len(cpus) // num_places for number in (place, place + 1))
    if cpus_per_job:
        first -= first % cpus_per_job  # so that two CPUs are one core, not halves of two
        end = first + cpus_per_job
    return tuple(cpus[first : max(end, first + 1)])


def places(num_slots: int, num_gpus: int) -> list[int]:
    """The place of each slot along the list of CPUs; ``num_gpus`` may count groups of GPUs.

    Slots of one GPU are adjacent, in the order of the GPUs, because a GPU is mostly nearest to the
    CPUs at the same relative position in their list.
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

    They are sorted by their binary digits in reverse: multiples of 4 come first, then other even
    numbers, then odd ones. So a few jobs get a core each before two of them share one.
    """
    return sorted(range(num), key=lambda number: f"{number:064b}"[::-1])


def allocations(num_jobs: int, jobs_per_allocation: int, remainder: str) -> list[range]:
    """The numbers of the jobs in each allocation: consecutive, each in one allocation.

    Args:
        num_jobs: 0 or more.
        jobs_per_allocation: the size of an allocation.
        remainder: where the jobs go that do not fill an allocation: ``spread`` over the full ones,
            whose sizes then differ by at most one, or in a ``new``, smaller one.

    Raises:
        UserError: ``remainder`` is unknown.

    """
    if remainder not in get_args(Remainder):
        hint = did_you_mean(remainder, get_args(Remainder))
        raise UserError(f"hydra.launcher.remainder must be spread or new, got '{remainder}'{hint}")
    if remainder == "new":
        starts = range(0, num_jobs, jobs_per_allocation)
        return [range(start, min(start + jobs_per_allocation, num_jobs)) for start in starts]
    count = max(num_jobs // jobs_per_allocation, min(num_jobs, 1))
    return [range(i * num_jobs // count, (i + 1) * num_jobs // count) for i in range(count)]
