"""Slots use what there is, fairly and the same way every time; allocations lose no job."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.machine.slots import Slot, allocations, make_slots

MACHINES = st.fixed_dictionaries(
    {
        "cpus": st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True),
        "gpus": st.none() | st.lists(st.sampled_from("01234567"), max_size=8, unique=True),
        "gpus_per_job": st.just(1),
        "jobs_per_gpu": st.integers(1, 9),
        "max_jobs": st.none() | st.integers(1, 50),
    }
)
REMAINDERS = st.sampled_from(["spread", "new"])


def slots_of(num_cpus: int, gpus: list[str] | None = None, **settings: Any) -> list[Slot]:
    """The slots of a machine with CPUs 0 to ``num_cpus - 1``."""
    defaults = {"gpus_per_job": 1, "jobs_per_gpu": 1, "cpus_per_job": None, "max_jobs": None}
    return make_slots(cpus=range(num_cpus), gpus=gpus, **{**defaults, **settings})


@given(MACHINES)
def test_every_cpu_is_used_and_shared_only_when_there_are_too_few(machine: dict[str, Any]) -> None:
    slots = make_slots(**machine, cpus_per_job=None)
    cpus = machine["cpus"]
    pinned = [cpu for slot in slots for cpu in slot.cpus]
    assert set(pinned) == set(cpus)
    if len(slots) <= len(cpus):
        assert sorted(pinned) == sorted(cpus)
    else:
        users = [pinned.count(cpu) for cpu in cpus]
        assert max(users) - min(users) <= 1


@given(MACHINES)
def test_uneven_division_differs_by_at_most_one_cpu_and_not_in_threads(
    machine: dict[str, Any],
) -> None:
    slots = make_slots(**machine, cpus_per_job=None)
    sizes = [len(slot.cpus) for slot in slots]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert {slot.threads for slot in slots} == {min(sizes)}


@given(MACHINES, st.integers(1, 40))
def test_cpus_per_job_is_exact_and_never_shared(machine: dict[str, Any], cpus_per_job: int) -> None:
    cpus = machine["cpus"]
    if cpus_per_job > len(cpus):
        with pytest.raises(UserError, match=rf"^hydra\.launcher\.cpus_per_job={cpus_per_job} is"):
            make_slots(**machine, cpus_per_job=cpus_per_job)
        return
    slots = make_slots(**machine, cpus_per_job=cpus_per_job)
    pinned = [cpu for slot in slots for cpu in slot.cpus]
    assert {(len(slot.cpus), slot.threads) for slot in slots} == {(cpus_per_job, cpus_per_job)}
    assert len(set(pinned)) == len(pinned)
    assert set(pinned) <= set(cpus)


@given(MACHINES, st.none() | st.integers(1, 3))
def test_number_of_slots_is_the_tightest_limit(
    machine: dict[str, Any], cpus_per_job: int | None
) -> None:
    cpus, gpus, max_jobs = len(machine["cpus"]), machine["gpus"], machine["max_jobs"]
    if (cpus_per_job or 0) > cpus:
        return
    slots = make_slots(**machine, cpus_per_job=cpus_per_job)
    num_slots = cpus // (cpus_per_job or 1) if cpus_per_job or not gpus else 10**9
    num_slots = min(num_slots, len(gpus) * machine["jobs_per_gpu"] if gpus else 10**9)
    assert len(slots) == min(num_slots, max_jobs or 10**9)
    assert [slot.number for slot in slots] == list(range(len(slots)))
    assert slots == make_slots(**machine, cpus_per_job=cpus_per_job)


@given(MACHINES)
def test_gpus_are_shared_equally_neighbours_in_the_list_on_different_ones(
    machine: dict[str, Any],
) -> None:
    slots = make_slots(**machine, cpus_per_job=None)
    gpus = machine["gpus"] or [None if machine["gpus"] is None else ""]
    assert [slot.gpu for slot in slots] == [gpus[i % len(gpus)] for i in range(len(slots))]
    if machine["gpus"] and machine["max_jobs"] is None:
        shares = [sum(slot.gpu == gpu for slot in slots) for gpu in gpus]
        assert shares == [machine["jobs_per_gpu"]] * len(gpus)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_gpus_of_a_job_are_neighbours_that_no_other_job_has(
    num_gpus: int, gpus_per_job: int, num_cpus: int
) -> None:
    gpus = [f"GPU-{number}" for number in range(num_gpus)]
    if gpus_per_job > num_gpus:
        line = rf"^hydra\.launcher\.gpus_per_job={gpus_per_job} is more than .* {num_gpus}$"
        with pytest.raises(UserError, match=line):
            slots_of(num_cpus, gpus, gpus_per_job=gpus_per_job)
        return
    slots = slots_of(num_cpus, gpus, gpus_per_job=gpus_per_job)
    assert len(slots) == num_gpus // gpus_per_job
    groups = [[gpus.index(name) for name in (slot.gpu or "").split(",")] for slot in slots]
    assert all(group == list(range(group[0], group[0] + gpus_per_job)) for group in groups)
    taken = [gpu for group in groups for gpu in group]
    assert len(set(taken)) == len(taken)


def test_gpus_of_a_job_lie_at_the_height_of_its_cpus() -> None:
    two_sockets = [str(number) for number in range(8)]
    assert slots_of(8, two_sockets, gpus_per_job=3) == [
        Slot(0, (0, 1, 2, 3), 4, "0,1,2"),
        Slot(1, (4, 5, 6, 7), 4, "4,5,6"),
    ]


@given(MACHINES, st.integers(1, 9))
def test_without_gpus_nothing_depends_on_their_number(
    machine: dict[str, Any], gpus_per_job: int
) -> None:
    machine |= {"gpus": machine["gpus"] and [], "jobs_per_gpu": 1, "cpus_per_job": None}
    slots = make_slots(**machine)
    assert make_slots(**{**machine, "gpus_per_job": gpus_per_job}) == slots


@pytest.mark.parametrize("gpus", [None, ["0", "1"]])
def test_jobs_that_need_several_gpus_share_none(gpus: list[str] | None) -> None:
    line = r"^hydra\.launcher\.gpus_per_job=2 needs hydra\.launcher\.jobs_per_gpu=1, got 3$"
    with pytest.raises(UserError, match=line):
        slots_of(4, gpus, gpus_per_job=2, jobs_per_gpu=3)


def test_jobs_of_a_gpu_lie_on_neighbouring_cpus_at_the_height_of_that_gpu() -> None:
    slots = slots_of(8, ["0", "1"], jobs_per_gpu=2)
    assert slots == [
        Slot(0, (0, 1), 2, "0"),
        Slot(1, (4, 5), 2, "1"),
        Slot(2, (2, 3), 2, "0"),
        Slot(3, (6, 7), 2, "1"),
    ]


@pytest.mark.parametrize("gpus", [None, ["0"]])
def test_few_jobs_share_no_core(gpus: list[str] | None) -> None:
    slots = slots_of(12, gpus, jobs_per_gpu=12)  # CPUs 0 and 1 are one core, 2 and 3 the next
    assert {slot.cpus[0] // 2 for slot in slots[:6]} == set(range(6))


def test_few_jobs_share_no_cpu_when_slots_do() -> None:
    slots = slots_of(4, ["0"], jobs_per_gpu=16)
    assert {slot.cpus for slot in slots[:4]} == {(0,), (1,), (2,), (3,)}


def test_pins_begin_at_a_whole_core_whatever_the_number_of_slots() -> None:
    slots = slots_of(16, cpus_per_job=2, max_jobs=5)
    assert all(slot.cpus[0] % 2 == 0 and slot.cpus[1] == slot.cpus[0] + 1 for slot in slots)


def test_max_jobs_below_the_cpus_divides_them() -> None:
    assert {slot.cpus for slot in slots_of(5, max_jobs=2)} == {(0, 1), (2, 3, 4)}


def test_no_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"^hydra\.launcher\.cpus must name at least one CPU"):
        slots_of(0)


@given(st.integers(0, 300), st.integers(1, 40), REMAINDERS)
def test_every_job_is_in_exactly_one_allocation_in_order(
    num_jobs: int, size: int, remainder: Literal["spread", "new"]
) -> None:
    groups = allocations(num_jobs, size, remainder)
    assert [job for group in groups for job in group] == list(range(num_jobs))
    assert all(len(group) > 0 for group in groups)


@given(st.integers(1, 300), st.integers(1, 40))
def test_spread_makes_no_small_allocation(num_jobs: int, size: int) -> None:
    sizes = [len(group) for group in allocations(num_jobs, size, "spread")]
    assert len(sizes) == max(1, num_jobs // size)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 300), st.integers(1, 40))
def test_new_keeps_to_the_size_and_puts_the_rest_last(num_jobs: int, size: int) -> None:
    *full, last = [len(group) for group in allocations(num_jobs, size, "new")]
    assert set(full) <= {size}
    assert 1 <= last <= size


@pytest.mark.parametrize("remainder", ["spread", "new"])
def test_no_jobs_need_no_allocation(remainder: Literal["spread", "new"]) -> None:
    assert allocations(0, 4, remainder) == []


def test_a_wrong_remainder_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"got 'spred'; did you mean 'spread'\?$"):
        allocations(3, 2, "spred")  # pyright: ignore[reportArgumentType]
