"""A line is a statistic of seeds with its interval, where all of them have a value."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.results.groups import gather
from research.results.lines import Line, lines_of, smoothed
from research.results.logs import Curve
from research.results.notes import notes_on
from research.results.statistics import iqm, mean, stratified_bootstrap
from tests.results.made_runs import write_log, write_plan, write_run


def line(*paths: Path, **options: object) -> Line:
    """The only line of these runs."""
    (only,) = lines_of(gather(paths, col=None), **options)  # type: ignore[arg-type]
    return only


def test_a_line_is_the_statistic_at_every_point_with_the_interval_of_whole_runs(
    tmp_path: Path,
) -> None:
    returns = np.random.default_rng(0).normal(size=(5, 3))
    for seed, values in enumerate(returns):
        write_run(tmp_path / str(seed), values.tolist(), seed=seed)
    for statistic in (mean, iqm):
        found = line(tmp_path, statistic=statistic)
        for index in range(3):
            expected = stratified_bootstrap([returns[:, index]], statistic)
            shown = found.low[index], found.estimate[index], found.high[index]
            assert shown == pytest.approx(expected)
    assert found.x.tolist() == [1000, 2000, 3000]
    assert (found.num_envs, found.num_runs, found.is_interpolated) == (1, 5, False)


def test_where_a_run_has_ended_there_is_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [1.0, 2.0, 30.0], seed=0)
    write_run(tmp_path / "1", [3.0, 4.0], seed=1)
    found = line(tmp_path)
    assert found.is_whole.tolist() == [True, True, False]
    np.testing.assert_array_equal(found.estimate, [2, 3, 30])
    np.testing.assert_array_equal(np.isnan(found.low), [False, False, True])
    assert (found.low[0], found.high[0]) == (1, 3)


def test_runs_with_other_points_are_interpolated_which_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [10.0, 20.0, 30.0], seed=0, every=1000)
    write_run(tmp_path / "1", [15.0, 30.0], seed=1, every=1500)
    results = gather([tmp_path])
    (found,) = lines_of(results)
    assert found.is_interpolated
    assert found.x.tolist() == [1000, 1500, 2000, 3000]
    np.testing.assert_allclose(found.estimate, [10, 15, 20, 30])
    (note,) = notes_on(results, [found])
    assert note.startswith("td3 on cheetah_run: interpolated linearly between points of step")
    (coarse,) = lines_of(results, every=1500)
    assert coarse.x.tolist() == [1500, 3000]


def test_several_tasks_in_one_line_are_strata_of_one_weight(tmp_path: Path) -> None:
    for seed, value in enumerate((1.0, 2.0, 3.0)):
        write_run(tmp_path / f"c{seed}", [value], seed=seed)
    for seed, value in enumerate((100.0, 200.0)):
        write_run(tmp_path / f"w{seed}", [value], env="walker", seed=seed)
    found = line(tmp_path)
    expected = stratified_bootstrap([np.array([1.0, 2, 3]), np.array([100.0, 200])], mean)
    assert (found.low[0], found.estimate[0], found.high[0]) == pytest.approx(expected)
    assert found.estimate[0] == 76
    assert (found.num_envs, found.num_runs) == (2, 2)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    found = line(tmp_path)
    assert np.isnan(found.low).all()
    np.testing.assert_array_equal(found.estimate, [1, 2, 3])


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12),
    width=st.floats(0.5, 20),
)
def test_a_moving_average_is_that_of_the_points_in_its_window(
    values: list[float], width: float
) -> None:
    x, y = np.cumsum(np.linspace(1, 3, len(values))), np.array(values)
    for at, value in zip(x, smoothed(Curve(x, y), width).y, strict=True):
        inside = (x >= at - width / 2) & (x <= at + width / 2)
        assert value == pytest.approx(y[inside].mean(), abs=1e-8)


def test_the_window_of_a_moving_average_has_both_its_ends() -> None:
    curve = Curve(np.array([0.0, 1, 2, 4]), np.array([0.0, 3, 9, 1]))
    assert smoothed(curve, 2).y.tolist() == [1.5, 4, 6, 1]


def notes(*paths: Path, **options: object) -> list[str]:
    """What is odd about the runs at these paths."""
    results = gather(paths, **options)  # type: ignore[arg-type]
    return notes_on(results, lines_of(results))


def test_nothing_is_odd_about_whole_sweeps(tmp_path: Path) -> None:
    for env in ("cheetah", "walker"):
        for seed in (0, 1):
            write_run(tmp_path / f"{env}{seed}", env=env, seed=seed)
    assert notes(tmp_path) == []


def test_what_is_odd_is_told_in_a_line_each(tmp_path: Path) -> None:
    jobs = [{"env": env, "seed": str(seed)} for env in ("cheetah", "walker") for seed in range(3)]
    write_plan(tmp_path, jobs)
    for env, seed in (("cheetah", 0), ("cheetah", 1), ("walker", 0), ("walker", 1), ("walker", 2)):
        write_run(tmp_path / f"env={env},seed={seed}", env=env, seed=seed)
    (tmp_path / "env=walker,seed=1" / "status.json").unlink()
    write_run(tmp_path / "short", [1.0], env="walker", seed=3, state="failed")
    write_run(tmp_path / "again", env="walker", seed=0, lr=5.0)
    write_run(tmp_path / "nan", [1.0, float("inf")], env="walker", seed=4)
    found = notes(tmp_path, by=["alg"])
    expected = [
        "left out: .*env=cheetah,seed=2: it never began",
        "left out: .*nan: eval/return is inf at step 2000",
        r"2 of 7 runs have not completed: .*seed=1 \(pending, - steps\), .*\(failed, 1000/5000",
        "td3 on walker_walk has seed 0 more than once: .*again, .* differ in alg.optim.lr",
        "td3 on cheetah_run has no run of seed 3, 4, unlike other tasks",
        "td3 on walker_walk: all 5 runs reach step 1000, where .*short ends; the longest reaches",
    ]
    assert len(found) == len(expected)
    for note, words in zip(found, expected, strict=True):
        assert re.match(words, note), (words, note)
        assert "\n" not in note


def test_many_runs_of_one_kind_are_a_line(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", seed=9)
    for seed in range(6):
        write_run(tmp_path / f"run{seed}", seed=seed, state="running")
    (note,) = notes(tmp_path)
    assert note.startswith("6 of 7 runs have not completed: ")
    assert note.endswith("and 3 more")


def test_a_published_curve_of_another_task_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "theirs.csv"
    path.write_text("task,env_steps,mean_return,std_return,n_seeds\nhopper_hop,1,1,1,3\n")
    assert notes(tmp_path / "run", path) == [
        "theirs has no curve of cheetah_run; it has hopper_hop"
    ]


def test_a_run_that_ends_a_little_early_is_not_odd(tmp_path: Path) -> None:
    for seed, frames in enumerate((1000, 996)):
        run = write_run(tmp_path / str(seed), seed=seed)
        rows = [{"frames": frames * index, "return": 1.0} for index in range(1, 4)]
        write_log(run / "eval.csv", rows)
    (note,) = notes(tmp_path, x="frames")
    assert "interpolated" in note
