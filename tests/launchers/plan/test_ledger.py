"""The plan of a sweep: made once, never renumbered, of one base config."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.launchers.plan.ledger import Job, Plan, planned_jobs


def add(
    folder: Path, *batch: str, config: Any = None, subdir: str = "name", extend: bool = False
) -> list[Job]:
    plan = Plan(
        folder,
        command=["train.py", "-m"],
        config={"a": 1} if config is None else config,
        extendable=["t.steps", "t.epochs"],
    )

    def locate(number: int, name: str, overrides: Sequence[str]) -> str:
        return {"name": name, "number": str(number), "same": "same"}[subdir]

    jobs = plan.add([job.split() for job in batch], swept=["seed"], locate=locate)
    if extend:
        assert plan.is_extended
        plan.extend()
    return jobs


def test_jobs_are_named_by_what_varies_seed_last(tmp_path: Path) -> None:
    jobs = add(tmp_path, "x=1 seed=0 env=a", "x=1 seed=0 env=b")
    assert [job.folder for job in jobs] == [tmp_path / "env=a,seed=0", tmp_path / "env=b,seed=0"]
    assert [job.number for job in jobs] == [0, 1]
    assert jobs[1].varies == {"env": "b", "seed": "0"}


def test_a_single_job_is_named_by_its_number(tmp_path: Path) -> None:
    assert add(tmp_path, "x=1")[0].folder == tmp_path / "0"


def test_the_same_jobs_keep_their_numbers_and_new_ones_come_after(tmp_path: Path) -> None:
    before = add(tmp_path, "seed=0", "seed=2")
    after = add(tmp_path, "seed=0", "seed=1", "seed=2")
    assert [job.number for job in after] == [0, 2, 1]
    assert [after[0], after[2]] == before
    assert len({job.folder for job in after}) == 3
    assert planned_jobs(tmp_path) == [after[0], after[2], after[1]]


def test_the_order_of_overrides_does_not_make_another_job(tmp_path: Path) -> None:
    assert add(tmp_path, "a=1 seed=0") == add(tmp_path, "seed=0 a=1")


def test_the_same_job_twice_is_one(tmp_path: Path) -> None:
    first, second = add(tmp_path, "seed=0", "seed=0")
    assert first == second


def test_a_changed_base_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    add(tmp_path, "seed=0", config={"alg": {"lr": 0.1, "tau": 1}})
    with pytest.raises(UserError, match=r"another base config: alg\.lr: 0\.1 -> 0\.2; choose"):
        add(tmp_path, "seed=0", config={"alg": {"lr": 0.2, "tau": 1}})


def test_a_larger_length_extends_the_same_jobs(tmp_path: Path) -> None:
    short, long = ({"a": 1, "t": {"steps": steps}} for steps in (10, 20))
    before = add(tmp_path, "t.steps=10 seed=0", "t.steps=10 seed=1", config=short)
    batch = ("seed=0 t.steps=20", "seed=2 t.steps=20")
    after = add(tmp_path, *batch, config=long)
    assert after[0] == before[0]._replace(overrides=("seed=0", "t.steps=20"))
    assert (after[1].number, after[1].name, after[1].varies) == (2, "seed=2", {"seed": "2"})
    assert planned_jobs(tmp_path) == before  # it may still be refused
    assert add(tmp_path, *batch, config=long, extend=True) == after
    assert add(tmp_path, "t.steps=20 seed=1", config=long)[0].folder == before[1].folder
    with pytest.raises(UserError, match=r"another base config: t\.steps: 20 -> 10; choose"):
        add(tmp_path, "seed=0", config=short)
    assert [job.overrides[-1] for job in planned_jobs(tmp_path)] == ["t.steps=20"] * 3


@pytest.mark.parametrize("steps", [None, 5, "20"])
def test_a_length_that_is_not_larger_is_another_config(tmp_path: Path, steps: Any) -> None:
    add(tmp_path, "seed=0", config={"t": {"steps": 10}})
    with pytest.raises(UserError, match=r"another base config: t\.steps: 10 -> "):
        add(tmp_path, "seed=0", config={"t": {"steps": steps}})


def test_a_length_that_varied_does_not_grow(tmp_path: Path) -> None:
    plan = Plan(tmp_path, command=[], config={"t": {"steps": 30}}, extendable=["t.steps"])
    batch = [["t.steps=1"], ["t.steps=2"]]
    assert len(plan.add(batch, swept=["t.steps"], locate=lambda number, *_: str(number))) == 2
    with pytest.raises(UserError, match=r"another base config: t\.steps: 30 -> 50"):
        add(tmp_path, "t.steps=50", config={"t": {"steps": 50}})


def test_jobs_that_would_share_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jobs 0 and 1 would share the run directory same"):
        add(tmp_path, "seed=0", "seed=1", subdir="same")
    assert not (tmp_path / "sweep.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"jobs": []}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="is not a sweep's plan"):
        add(tmp_path, "seed=0")


def test_a_directory_without_a_plan_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        planned_jobs(tmp_path)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4))
def test_numbers_count_the_jobs_however_they_come(batches: list[list[int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers: dict[int, int] = {}
        for batch in batches:
            for value, job in zip(batch, add(folder, *(f"x={v}" for v in batch)), strict=True):
                assert numbers.setdefault(value, job.number) == job.number
        assert sorted(numbers.values()) == list(range(len(numbers)))
        if numbers:
            content = json.loads((folder / "sweep.json").read_text())
            assert [entry["number"] for entry in content["jobs"]] == list(range(len(numbers)))
            assert len({entry["folder"].lower() for entry in content["jobs"]}) == len(numbers)
