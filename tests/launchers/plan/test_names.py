"""What varies, and directory names that show it and never collide."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.launchers.plan.names import folder_names, labels, varying

KEYS = ["env", "seed", "alg.lr", "network.lr", "alg.optim.eps", "hydra/launcher"]
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["cheetah", "Cheetah", "0", "0-2", "[1,2]", "${a}", "../x", "1.", "x" * 200]),
)
JOBS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=8)


def names_of(jobs: list[dict[str, str]], taken: list[str] | None = None) -> list[str]:
    return folder_names(jobs, varying(jobs, KEYS), taken or [])


@given(JOBS)
def test_names_differ_on_any_disk_and_fit_and_are_safe(jobs: list[dict[str, str]]) -> None:
    names = names_of(jobs)
    assert len({name.lower() for name in names}) == len(jobs)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=,-]{0,149}", name) for name in names)
    assert not any(name.endswith(".") for name in names)


@given(JOBS, JOBS)
def test_taken_names_are_left_alone(jobs: list[dict[str, str]], more: list[dict[str, str]]) -> None:
    taken = [name.upper() for name in names_of(jobs)]
    names = names_of([*jobs, *more], taken)
    assert not {name.lower() for name in names} & {name.lower() for name in taken}


@given(JOBS, JOBS)
def test_later_jobs_change_no_name(jobs: list[dict[str, str]], more: list[dict[str, str]]) -> None:
    assert folder_names([*jobs, *more], KEYS, [])[: len(jobs)] == folder_names(jobs, KEYS, [])


def test_a_name_reads_like_the_overrides_with_the_seed_last() -> None:
    jobs = [
        {"seed": seed, "env": env, "alg.optim.lr": "1e-3"} for env in ("a", "b") for seed in "01"
    ]
    keys = varying(jobs, ["alg.optim.lr"])
    assert keys == ["env", "alg.optim.lr", "seed"]
    assert folder_names(jobs, keys, [])[-1] == "env=b,lr=1e-3,seed=1"


def test_only_what_is_declared_or_differs_varies() -> None:
    jobs = [{"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "2", "c": "4", "d": "5"}]
    assert varying(jobs, ["b", "never given"]) == ["b", "c", "d"]
    assert varying(jobs[:1], []) == []


def test_two_keys_with_the_same_last_part_are_written_in_full() -> None:
    short = labels(["alg.lr", "network.lr", "alg.tau", "lr"])
    assert list(short.values()) == ["alg.lr", "network.lr", "tau", "lr"]
    assert len({*labels(["lr", "alg.lr"]).values()}) == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("dmc/cheetah", "dmc-cheetah"),
        ("[256,256]", "256-256"),
        ("'two words'", "two-words"),
        ("${oc.env:HOME}", "oc.env-HOME"),
        ("-0.5", "-0.5"),
        ("1e+5", "1e+5"),
        ("caf\u00e9", "cafe"),
        ("", ""),
    ],
)
def test_values_lose_what_a_shell_or_hydra_would_read(value: str, shown: str) -> None:
    assert folder_names([{"x": value}], ["x"], []) == [f"x={shown}"]


def test_the_second_of_a_name_is_numbered() -> None:
    jobs = [{"env": "A"}, {"env": "a"}, {"env": "a"}]
    assert folder_names(jobs, ["env"], []) == ["env=A", "env=a-2", "env=a-3"]
    assert folder_names(jobs[:1], ["env"], ["ENV=a"]) == ["env=A-2"]


def test_a_long_name_is_cut_but_keeps_its_seed_and_differs() -> None:
    jobs = [
        {"env": "x" * 200 + end, "seed": str(seed), "lr": "1"} for end in "ab" for seed in range(2)
    ]
    names = names_of(jobs) + folder_names(jobs, ["env", "lr", "seed"], [])
    assert {len(name) for name in names} == {150}
    assert names[1].endswith(",seed=1")
    assert names[0].removesuffix("0") == names[1].removesuffix("1")
    assert len(set(names_of(jobs))) == 4


def test_many_jobs_of_one_name_are_named_quickly() -> None:
    names = folder_names([{"env": "x" * 300}] * 5000, ["env"], [])
    assert len(set(names)) == 5000
    assert max(map(len, names)) == 150


def test_a_job_without_any_key_is_called_by_its_place() -> None:
    assert folder_names([{}, {}], [], ["1"]) == ["0", "1-2"]
