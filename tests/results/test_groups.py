"""Runs are grouped by what tells them apart; what is missing is there, and says why."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.results.groups import Results, gather, grid_of, on_grid
from research.results.logs import Curve
from tests.commands import train
from tests.results.made_runs import write_log, write_plan, write_run
from tests.results.test_load import RL

CSV = "task,env_steps,mean_return,std_return,n_seeds\n"


def shown(results: Results) -> list[tuple[str, str, int | None]]:
    """Task, group and seed of each run."""
    return [(entry.task, entry.group, entry.seed) for entry in results.entries]


def test_runs_are_grouped_by_task_algorithm_and_seed(tmp_path: Path) -> None:
    for alg in ("td3", "sac"):
        for env in ("walker", "cheetah"):
            write_run(tmp_path / f"{alg}{env}1", [9.0, 6.0], alg=alg, env=env, seed=1)
            write_run(tmp_path / f"{alg}{env}0", [5.0, 7.0], alg=alg, env=env, seed=0)
    results = gather([tmp_path])
    assert results.by == ["alg"]
    assert results.tasks == ["cheetah_run", "walker_walk"]
    assert results.groups == ["sac", "td3"]
    assert shown(results)[:3] == [
        ("cheetah_run", "sac", 0),
        ("cheetah_run", "sac", 1),
        ("cheetah_run", "td3", 0),
    ]
    assert [entry.score for entry in results.select("walker_walk", "td3")] == [7, 6]
    assert (results.metric, results.x, results.mode) == ("eval/return", "step", "max")


def test_what_else_varies_makes_groups_too_in_the_order_of_its_values(tmp_path: Path) -> None:
    for lr in (1e-3, 1e-4, 3e-5):
        for seed in (0, 1):
            write_run(tmp_path / f"{lr}{seed}", lr=lr, seed=seed)
    results = gather([tmp_path])
    assert results.by == ["alg.optim.lr"]
    assert results.groups == ["lr=3e-05", "lr=0.0001", "lr=0.001"]
    assert results.entries[-1].varies == {"alg.optim.lr": "0.001"}
    together = gather([tmp_path], by=["alg"])
    assert together.groups == ["td3"]
    assert len(together.select("cheetah_run", "td3")) == 6


def test_two_algorithms_of_which_one_is_swept(tmp_path: Path) -> None:
    write_run(tmp_path / "a", alg="sac", lr=7e-4)
    write_run(tmp_path / "b", lr=1e-3)
    write_run(tmp_path / "c", lr=1e-4)
    assert gather([tmp_path]).groups == ["sac, lr=0.0007", "td3, lr=0.0001", "td3, lr=0.001"]


def test_a_key_that_follows_from_another_does_not_name_a_group(tmp_path: Path) -> None:
    for seed, network in enumerate(["mlp", "mlp", "cnn", "cnn"]):
        run = write_run(tmp_path / f"{seed}", seed=seed, lr=1e-3 if network == "mlp" else 1e-4)
        path = run / ".hydra" / "hydra.yaml"
        path.write_text(path.read_text().replace("for_td3", network))
    results = gather([tmp_path])
    assert results.groups == ["network=cnn", "network=mlp"]
    assert results.entries[0].varies == {"alg.optim.lr": "0.0001", "network": "cnn"}


def test_a_key_that_a_run_lacks_is_not_in_its_name(tmp_path: Path) -> None:
    write_run(tmp_path / "td3")
    for value in (1, 2):
        run = write_run(tmp_path / f"sac{value}", alg="sac")
        config = run / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("alg:\n", f"alg:\n  temperature: {value}\n"))
    assert gather([tmp_path]).groups == ["sac, temperature=1", "sac, temperature=2", "td3"]
    assert "td3" in gather([tmp_path], by=["temperature"]).groups


def test_a_panel_for_any_key_or_one_for_all(tmp_path: Path) -> None:
    for env in ("walker", "cheetah"):
        write_run(tmp_path / env, env=env)
    assert gather([tmp_path], by=["env"], col="alg").tasks == ["td3"]
    assert gather([tmp_path], by=["env"], col="alg").groups == ["cheetah_run", "walker_walk"]
    assert gather([tmp_path], col="optim.lr").tasks == ["0.001"]
    assert gather([tmp_path], col=None).tasks == [""]


def test_without_hydras_file_the_class_names_the_algorithm(tmp_path: Path) -> None:
    write_run(tmp_path / "a", alg="sac", choices=False)
    write_run(tmp_path / "b", choices=False)
    (tmp_path / "b" / ".hydra" / "hydra.yaml").write_text("hydra: [[[")
    assert gather([tmp_path]).groups == ["sac", "td3"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["alg=td3"], 4),
        (["alg=td3,sac"], 6),
        (["lr=1e-3"], 4),
        (["optim.lr=0.0001", "seed=1"], 1),
        (["seed!=0"], 3),
        (["env=cheetah_run"], 6),
    ],
)
def test_filters_choose_runs(tmp_path: Path, filters: list[str], expected: int) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"sac{seed}", alg="sac", seed=seed)
        for lr in (1e-3, 1e-4):
            write_run(tmp_path / f"{lr}{seed}", lr=lr, seed=seed)
    assert len(gather([tmp_path], filters=filters).entries) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metric": "eval/retrun"}, "no run has logged eval/retrun; .*did you mean 'eval/return'"),
        ({"metric": "train/q"}, "no run has logged train/q; there are eval/return"),
        ({"x": "stpe"}, "did you mean 'step'"),
        ({"by": ["algo"]}, "no run has the key algo; did you mean 'alg'"),
        ({"by": ["metrics"]}, "did you mean 'metric'"),
        ({"col": "evn"}, "no run has the key evn; did you mean 'env'"),
        ({"filters": ["alg=td4"]}, "no run has alg=td4; there are td3; did you mean 'td3'"),
        ({"filters": ["alg"]}, "filter=alg must be KEY=VALUE"),
        ({"filters": ["alg!=td3"]}, "filter=alg!=td3 leaves no run"),
        ({"by": ["lr"]}, "is the end of several keys"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(tmp_path: Path, arguments: dict, words: str) -> None:
    run = write_run(tmp_path / "run")
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("env:\n", "env:\n  lr: 1\n"))
    with pytest.raises(UserError, match=words):
        gather([tmp_path], **arguments)


def test_jobs_of_a_sweep_that_never_began_are_there(tmp_path: Path) -> None:
    jobs = [{"env": env, "seed": str(seed)} for env in ("cheetah", "walker") for seed in range(2)]
    write_plan(tmp_path, jobs)
    write_run(tmp_path / "env=cheetah,seed=0")
    (tmp_path / "env=walker,seed=0").mkdir()
    missing = [entry for entry in gather([tmp_path]).entries if entry.run is None]
    assert [(entry.task, entry.group, entry.seed) for entry in missing] == [
        ("cheetah_run", "td3", 1),
        ("walker", "td3", 0),
        ("walker", "td3", 1),
    ]
    assert {entry.problem for entry in missing} == {"it never began"}
    with pytest.raises(UserError, match=r"no run has a curve of eval/return; .* it never began"):
        gather([tmp_path], filters=["env=walker"])


def test_a_job_that_never_began_is_like_its_nearest_run(tmp_path: Path) -> None:
    jobs = [{"env": env, "seed": str(seed)} for env in ("cheetah", "walker") for seed in range(2)]
    write_plan(tmp_path, jobs)
    for env in ("cheetah", "walker"):
        write_run(tmp_path / f"env={env},seed=0", env=env)
    assert [(entry.task, entry.seed) for entry in gather([tmp_path]).entries if not entry.run] == [
        ("cheetah_run", 1),
        ("walker_walk", 1),
    ]


def test_what_an_algorithm_brings_is_that_of_a_job_that_never_began_too(tmp_path: Path) -> None:
    algs, lrs, seeds = ("td3", "sac"), ("1e-3", "1e-4"), ("0", "1")
    jobs = [
        {"alg": alg, "alg.optim.lr": lr, "seed": seed}
        for alg in algs
        for lr in lrs
        for seed in seeds
    ]
    write_plan(tmp_path, jobs)
    for job in jobs:
        if (job["alg"], job["seed"]) != ("sac", "1") and job != jobs[6]:
            name = ",".join(f"{key}={value}" for key, value in job.items())
            seed, lr = int(job["seed"]), float(job["alg.optim.lr"])
            write_run(tmp_path / name, alg=job["alg"], lr=lr, seed=seed)
    results = gather([tmp_path])
    assert results.by == ["alg", "alg.optim.lr"]
    assert sum(entry.run is None for entry in results.entries) == 3


def test_a_setting_none_of_whose_jobs_began_is_a_group_too(tmp_path: Path) -> None:
    jobs = [{"alg.optim.lr": lr, "seed": str(seed)} for lr in ("1e-3", "1e-4") for seed in (0, 1)]
    write_plan(tmp_path, jobs)
    write_run(tmp_path / "alg.optim.lr=1e-3,seed=0")
    assert shown(gather([tmp_path])) == [
        ("cheetah_run", "lr=0.0001", 0),
        ("cheetah_run", "lr=0.0001", 1),
        ("cheetah_run", "lr=0.001", 0),
        ("cheetah_run", "lr=0.001", 1),
    ]


def test_choices_that_only_some_runs_know_tell_nothing_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", choices=False)
    run = write_run(tmp_path / "b", seed=1)
    path = run / ".hydra" / "hydra.yaml"
    path.write_text(path.read_text().replace("alg: td3", "alg: td3\n      dataset: replay"))
    assert gather([tmp_path]).groups == ["td3"]


def test_a_run_is_there_once_whatever_paths_lead_to_it(tmp_path: Path) -> None:
    write_plan(tmp_path / "sweep", [{"seed": "0"}])
    run = write_run(tmp_path / "sweep" / "seed=0")
    (tmp_path / "link").symlink_to(run)
    assert len(gather([tmp_path, tmp_path / "sweep", run, tmp_path / "link"]).entries) == 1


def test_a_damaged_run_among_others_is_left_out_and_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    write_run(tmp_path / "config", seed=1)
    (tmp_path / "config" / ".hydra" / "config.yaml").write_text("a: [")
    write_run(tmp_path / "nan", [1.0, float("nan")], seed=2)
    write_run(tmp_path / "new", [], seed=3, state="running")
    problems = {entry.folder.name: entry.problem or "" for entry in gather([tmp_path]).entries}
    assert problems["whole"] == ""
    assert "is no config" in problems["config"]
    assert "eval/return is nan at step 2000" in problems["nan"]
    assert "has logged nothing yet" in problems["new"]
    with pytest.raises(UserError, match=r"no run has a curve of eval/return.*is no config"):
        gather([tmp_path / "config"])


@pytest.mark.parametrize(
    "plan", ["[]", "{", '{"command": 0, "folder": 0, "config": 0, "jobs": [{}]}', '{"jobs": [1]}']
)
def test_a_damaged_plan_is_named(tmp_path: Path, plan: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "sweep.json").write_text(plan)
    with pytest.raises(UserError, match=r"sweep.json is not a sweep's plan"):
        gather([tmp_path])


def test_a_config_of_another_shape_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choices=False)
    (run / ".hydra" / "config.yaml").write_text("env: 5\nalg: [1]\ntrainer: x\n")
    assert shown(gather([run])) == [("null", "null", None)]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        gather([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        gather([tmp_path / "absent"])


def test_the_metric_is_the_runs_own_score(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    config = run / ".hydra" / "config.yaml"
    text = config.read_text().replace("eval/return", "eval/loss").replace("mode: max", "mode: min")
    config.write_text(text)
    write_log(run / "eval.csv", [{"step": 1, "loss": 0.5}])
    results = gather([run])
    assert (results.metric, results.mode, results.entries[0].score) == ("eval/loss", "min", 0.5)
    write_run(tmp_path / "b")
    with pytest.raises(UserError, match=r"eval/loss \(1\), eval/return \(1\); name the metric"):
        gather([tmp_path])


def test_published_curves_stand_beside_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", action_repeat=2)
    path = tmp_path / "theirs.csv"
    path.write_text(CSV + "cheetah_run,2000,20,6,9\ncheetah_run,1000,10,,1\nwalker_walk,0,1,2,3\n")
    results = gather([run, path])
    assert results.x == "frames"
    curve, other = results.published
    assert (curve.group, curve.task, curve.num_seeds) == ("theirs", "cheetah_run", 1)
    np.testing.assert_array_equal(curve.frames, [1000, 2000])
    np.testing.assert_array_equal(curve.mean, [10, 20])
    np.testing.assert_array_equal(curve.error, [np.nan, 2])
    assert other.error == pytest.approx(2 / 3**0.5)
    assert results.tasks == ["cheetah_run"]
    assert gather([path]).tasks == ["cheetah_run", "walker_walk"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": "step"}, "published curves are over frames; x=step is something else"),
        ({"x": "seconds"}, "x=seconds is something else"),
        ({"metric": "eval/length"}, "published curves are of returns, not of eval/length"),
    ],
)
def test_published_curves_do_not_stand_beside_others(
    tmp_path: Path, arguments: dict, words: str
) -> None:
    run = write_run(tmp_path / "run", action_repeat=2)
    write_log(run / "eval.csv", [{"step": 1, "return": 1, "length": 2}])
    path = tmp_path / "theirs.csv"
    path.write_text(CSV + "cheetah_run,1000,10,1,3\n")
    with pytest.raises(UserError, match=words):
        gather([run, path], **arguments)


def test_published_curves_are_told_apart_by_their_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "td3.csv").write_text(CSV + "cheetah_run,1,1,1,3\n")
    path = tmp_path / "a" / "td3.csv"
    assert [curve.group for curve in gather([run, path, path]).published] == ["td3.csv"]
    with pytest.raises(UserError, match=r"two files named td3.csv hold a curve of cheetah_run"):
        gather([run, path, tmp_path / "b" / "td3.csv"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "holds no published curves: its columns must be task,env_steps"),
        (CSV, "holds no published curves"),
        (CSV + "x,1,nan,1,3\n", "line 2: mean_return must be finite, got nan"),
        (CSV + "x,1,1,1,3\nx,1,much,1,3\n", "line 3: mean_return must be a number, got 'much'"),
        (CSV + "x,1,1,1\n", "line 2: n_seeds must be a number, got ''"),
        (CSV + "x,1,1,1,0\n", "n_seeds must be at least 1"),
        ("\0", "holds no published curves"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        gather([path])


def curve(*points: tuple[float, float]) -> Curve:
    """A curve through these points."""
    x, y = np.array(points, float).T
    return Curve(x, y)


def test_a_grid_holds_the_points_of_all_curves_if_they_are_few() -> None:
    curves = [curve((1, 10), (3, 30)), curve((1, 1), (2, 2), (5, 5))]
    grid = grid_of(curves)
    np.testing.assert_array_equal(grid, [1, 2, 3, 5])
    expected = [[10, 20, 30, np.nan], [1, 2, 3, 5]]
    np.testing.assert_array_equal(on_grid(curves, grid), expected)
    np.testing.assert_array_equal(grid_of(curves, every=2), [2, 4])
    for every in (1e-4, 6):
        with pytest.raises(UserError, match="1 to 5,000 are allowed"):
            grid_of(curves, every=every)


def test_many_points_that_are_the_same_are_kept_and_others_thinned() -> None:
    long, short = (curve(*((x, x) for x in range(size))) for size in (999, 500))
    assert grid_of([long, short]).size == 999
    other = curve(*((x + 0.5, x) for x in range(999)))
    assert grid_of([long, other]).size == 200


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, unique=True), min_size=1, max_size=4))
def test_a_curve_is_unchanged_at_its_points_and_absent_outside(points: list[list[float]]) -> None:
    curves = [curve(*((x, -x) for x in sorted(xs))) for xs in points]
    grid = grid_of(curves)
    assert len(grid) <= max(200, *map(len, points))
    for each, values in zip(curves, on_grid(curves, grid), strict=True):
        inside = (grid >= each.x[0]) & (grid <= each.x[-1])
        np.testing.assert_array_equal(np.isfinite(values), inside)
        np.testing.assert_array_equal(values[np.isin(grid, each.x)], -grid[np.isin(grid, each.x)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs of training, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        run = folder / f"seed{seed}"
        process = train(
            run, "alg=td3", "env=pendulum", "env.max_episode_steps=20", *RL, f"seed={seed}"
        )
        process.join(120)
        assert process.exitcode == 0, run.with_suffix(".txt").read_text()
    return folder


def test_runs_that_were_trained_are_one_group(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    results = gather([trained])
    assert shown(results) == [("Pendulum-v1", "td3", 0), ("Pendulum-v1", "td3", 1)]
    for entry in results.entries:
        assert entry.run is not None
        assert entry.curve is not None
        assert entry.curve.x.tolist() == [30, 60]
        last = (entry.folder / "eval.csv").read_text().splitlines()[-1].split(",")
        assert entry.score == float(last[5])
        assert entry.state == "completed"
    critic = gather([trained], metric="train/critic_loss", x="updates")
    assert critic.entries[0].curve is not None
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_killed_run_whose_last_row_is_cut_is_read(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "seed0", tmp_path / "run", symlinks=True)
    log = run / "eval.csv"
    log.write_bytes(log.read_bytes()[:-5])
    (entry,) = gather([run]).entries
    assert entry.curve is not None
    assert entry.curve.x.tolist() == [30]
