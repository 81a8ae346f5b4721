"""The jobs of a grid sweep: the product of the swept values, where paired keys count as one."""

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus

from research.errors import UserError, did_you_mean


def combine(
    overrides: Sequence[Override], paired: Sequence[Sequence[str]], seeds_per_job: int = 1
) -> list[list[str]]:
    """The overrides of each job, in the order of Hydra's basic sweeper, the last key fastest.

    Args:
        overrides: those of the command line; the last one for a key counts.
        paired: groups of swept keys that vary together.
        seeds_per_job: values of ``seed`` that a job gets as a list.

    Raises:
        UserError: a paired key is not swept, is in two groups, or the lengths in a group differ;
            or the seeds of a sweep cannot be divided into such lists.

    """
    values = {override.get_key_element(): expand(override) for override in overrides}
    if seeds_per_job != 1:
        key = next((key for key in values if key.lstrip("+~") == "seed"), "seed")
        values[key] = in_lists(values.get(key, ["seed="]), seeds_per_job)
    names = {key.lstrip("+~"): key for key, choices in values.items() if len(choices) > 1}
    group_of: dict[str, int] = {}
    for index, group in enumerate(paired):
        lengths = {name: len(values[swept_key(name, names)]) for name in group}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {count} values" for name, count in lengths.items())
            raise UserError(
                f"hydra.sweeper.paired={show(group)}: {counts}; paired keys need equally many"
            )
        for name in group:
            if names[name] in group_of:
                raise UserError(f"hydra.sweeper.paired names {name} twice")
            group_of[names[name]] = index
    axes: dict[object, list[str]] = {}
    for key in values:
        axes.setdefault(group_of.get(key, key), []).append(key)
    combinations = itertools.product(
        *(list(zip(*(values[key] for key in keys), strict=True)) for keys in axes.values())
    )
    order = [key for keys in axes.values() for key in keys]
    jobs = (dict(zip(order, itertools.chain(*chosen), strict=True)) for chosen in combinations)
    return [[job[key] for key in values] for job in jobs]


def expand(override: Override) -> list[str]:
    """An override of the command line, once for each of its values."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: a grid needs values, not a range to search; give them, or "
            "choose hydra/sweeper=optuna"
        )
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def in_lists(overrides: Sequence[str], size: int) -> list[str]:
    """Overrides of ``seed`` as those by lists of ``size`` values."""
    key, values = overrides[0].partition("=")[0], [each.partition("=")[2] for each in overrides]
    if size < 1 or len(values) % size or not all(value.isdecimal() for value in values):
        raise UserError(
            f"hydra.sweeper.seeds_per_job={size} must divide the number of seeds of a sweep, such "
            f"as 8 of seed=range(0,8); got {', '.join(overrides)}"
        )
    starts = range(0, len(values), size)
    return [f"{key}=[{','.join(values[start : start + size])}]" for start in starts]


def swept_key(name: str, names: dict[str, str]) -> str:
    """The swept key that a name in ``paired`` refers to."""
    if name not in names:
        allowed = ", ".join(names) or "none, nothing is swept"
        guess = did_you_mean(name, names)
        raise UserError(f"hydra.sweeper.paired: {name} is not swept; swept are {allowed}{guess}")
    return names[name]


def show(group: Sequence[str]) -> str:
    """A group as it is written on the command line."""
    return f"[[{','.join(group)}]]"


def in_batches(jobs: list[list[str]], size: int | None) -> list[list[list[str]]]:
    """The jobs, split into launches of at most ``size``; None launches all at once."""
    if size is not None and size < 1:
        raise UserError(f"hydra.sweeper.max_batch_size must be at least 1, got {size}")
    step = size or max(len(jobs), 1)
    return [jobs[start : start + step] for start in range(0, len(jobs), step)]


def require_completion(answers: Sequence[JobReturn]) -> None:
    """Check that all jobs have completed.

    Raises:
        UserError: some have not; the message says why.

    """
    failed = [answer for answer in answers if answer.status is JobStatus.FAILED]
    if failed:
        reasons = "; ".join(str(answer._return_value) for answer in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise UserError(f"{len(failed)} of {len(answers)} jobs did not complete: {reasons}{more}")
