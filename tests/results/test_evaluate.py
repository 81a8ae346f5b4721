"""An evaluation after training gives what training logged, and loses nothing of what is there."""

import csv
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv

from research.config import build
from research.errors import DamagedFile, UserError
from research.evaluate import main
from research.results.arguments import parse
from research.results.evaluate import EvaluationOptions, evaluate_run
from research.results.history import Evaluated, add_evaluation, read_evaluations
from research.results.load import CheckpointName, load
from tests.conftest import write_examples
from tests.results.small_runs import EXAMPLES, PENDULUM, RL, train_each

RUNS = {
    "td3": PENDULUM,
    "two": [*PENDULUM, "env.num_envs=2", "trainer.ema_decay=0.9", "seed=5"],
    "bf16": [*PENDULUM, "trainer.precision=bf16", "env.num_envs=2", "env.subprocesses=true"],
    "dqn": ["alg=dqn", "trainer.evaluation.episodes=4", *RL],
    "native": ["alg=dqn", "env=native", "env.id=CartPole-v1", "env.num_envs=12", *RL],
    "digits": ["alg=classification", "dataset=digits", *EXAMPLES, "trainer.evaluation.batches=2"],
    "values": ["alg=regression", "dataset.path=examples.npz", *EXAMPLES],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of several kinds."""
    folder = tmp_path_factory.mktemp("runs")
    examples = tmp_path_factory.mktemp("examples") / "examples.npz"
    write_examples(examples)
    written = {
        name: [each.replace("examples.npz", str(examples)) for each in overrides]
        for name, overrides in RUNS.items()
    }
    return train_each(folder, written)


def logged(run: Path, step: int) -> dict[str, float]:
    """The metrics in the row of ``eval.csv`` for a step."""
    with (run / "eval.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if int(row["step"]) == step)
    clock = ("step", "frames", "updates", "epoch", "seconds")
    return {name: float(value) for name, value in row.items() if name not in clock}


@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize("name", RUNS)
def test_by_default_the_numbers_are_those_of_training(
    runs: Path, name: str, checkpoint: CheckpointName
) -> None:
    torch.set_num_threads(1)  # as the runs were trained
    evaluated = evaluate_run(runs / name, EvaluationOptions(checkpoint=checkpoint))
    assert evaluated.results["metrics"] == logged(runs / name, evaluated.settings["step"])


def test_other_episodes_more_of_them_or_another_environment_on_request(runs: Path) -> None:
    default = evaluate_run(runs / "td3", EvaluationOptions()).results
    other = evaluate_run(runs / "td3", EvaluationOptions(seed=1)).results
    more = evaluate_run(runs / "td3", EvaluationOptions(episodes=5)).results
    short = evaluate_run(runs / "td3", EvaluationOptions(env={"max_episode_steps": 7})).results
    assert other["metrics"]["return"] != default["metrics"]["return"]
    assert more["episodes"][:3] == default["episodes"]
    assert len(more["episodes"]) == 5
    assert short["metrics"]["length"] == 7


def test_several_environments_evaluate_in_the_same_episodes(runs: Path) -> None:
    one = evaluate_run(runs / "td3", EvaluationOptions(episodes=7)).results["episodes"]
    four = evaluate_run(runs / "td3", EvaluationOptions(episodes=7, num_envs=4)).results["episodes"]
    for name in ("return", "length"):
        expected = [episode[name] for episode in one]
        np.testing.assert_allclose([episode[name] for episode in four], expected, rtol=1e-4)


def test_the_statistics_are_those_of_the_returns(runs: Path) -> None:
    results = evaluate_run(runs / "dqn", EvaluationOptions(episodes=12)).results
    returns = np.sort([episode["return"] for episode in results["episodes"]])
    found = results["return"]
    assert found["mean"] == pytest.approx(returns.mean())
    assert found["median"] == pytest.approx((returns[5] + returns[6]) / 2)
    assert found["iqm"] == pytest.approx(returns[3:9].mean())
    assert returns[0] <= found["iqm_low"] <= found["iqm"] <= found["iqm_high"] <= returns[-1]


def held_out(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The targets of all examples held out, and what the loaded policy says, one by one."""
    policy = load(run)
    dataset = build(policy.config.dataset, build(policy.config.env), policy.config.seed)
    batches = list(dataset.validation_batches())
    predicted = [policy(obs) for batch in batches for obs in batch.obs.numpy()]
    return np.concatenate([batch.target.numpy() for batch in batches]), np.array(predicted)


def test_the_confusion_matrix_counts_targets_by_prediction(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "digits", tmp_path / "run", symlinks=True)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("batches: 2", "batches: null"))
    results = evaluate_run(run, EvaluationOptions()).results
    expected = np.zeros((10, 10), int)
    for target, predicted in zip(*held_out(run), strict=True):
        expected[target, predicted] += 1
    assert results["confusion"] == expected.tolist()
    assert results["examples"] == expected.sum()
    assert results["metrics"]["accuracy"] == pytest.approx(np.trace(expected) / expected.sum())


def test_the_errors_of_values_are_those_of_the_policys_predictions(runs: Path) -> None:
    results = evaluate_run(runs / "values", EvaluationOptions()).results
    target, predicted = held_out(runs / "values")
    error = predicted - target
    assert results["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)
    assert results["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-5)
    share = np.sum(error**2) / np.sum((target - target.mean()) ** 2)
    assert results["r2"] == pytest.approx(1 - share, rel=1e-4)


def test_every_evaluation_is_kept_and_the_same_one_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Evaluated({"step": 10, "seed": 0}, {"metrics": {"return": 1.5}})
    other = Evaluated({"step": 10, "seed": 1}, {"metrics": {"return": float("nan")}})
    for evaluated in (first, other, first):
        add_evaluation(tmp_path, evaluated)
    assert [each["settings"]["seed"] for each in read_evaluations(tmp_path)] == [0, 1]
    assert read_evaluations(tmp_path)[1]["results"]["metrics"]["return"] is None
    assert "differ" not in caplog.text
    add_evaluation(tmp_path, first._replace(results={"metrics": {"return": 2.5}}))
    assert "differ" in caplog.text
    returns = [each["results"]["metrics"]["return"] for each in read_evaluations(tmp_path)]
    assert returns == [1.5, None, 2.5]


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 2, "evaluations": []}', "\0"])
def test_a_file_that_holds_no_evaluations_is_never_overwritten(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(DamagedFile, match="move it away"):
        add_evaluation(tmp_path, Evaluated({}, {}))
    assert path.read_text() == content


def test_evaluations_that_end_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for seed in range(40):
            pool.submit(add_evaluation, tmp_path, Evaluated({"seed": seed}, {"metrics": {}}))
    assert {each["settings"]["seed"] for each in read_evaluations(tmp_path)} == {*range(40)}


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as to a file: pytest's workers set a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


def command(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of the command, and what it printed."""
    try:
        status = main(words)
    except SystemExit as error:
        status = int(error.code or 0)
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_one_run_that_cannot_be_evaluated_does_not_keep_the_others(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("td3", "two"):
        shutil.copytree(runs / name, tmp_path / name, symlinks=True)
    (tmp_path / "td3" / "checkpoints" / "best" / "weights.pt").write_bytes(b"x")
    status, printed = command(str(tmp_path), "episodes=1", capsys=capsys)
    assert status == 1
    assert "weights.pt is damaged" in printed
    assert f"{tmp_path / 'two'}  " in printed
    assert len(read_evaluations(tmp_path / "two")) == 1
    assert read_evaluations(tmp_path / "td3") == []
    status, printed = command(str(tmp_path / "two"), "seed=3", capsys=capsys)
    assert status == 0
    assert "median" in printed


def test_a_bug_in_an_environment_is_told_with_its_traceback(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Any, action: Any) -> None:
        raise ZeroDivisionError("in the environment")

    monkeypatch.setattr(PendulumEnv, "step", step)
    status, printed = command(str(runs / "td3"), str(runs / "dqn"), capsys=capsys)
    assert status == 1
    assert "ZeroDivisionError: in the environment" in printed
    assert "Traceback" in printed
    assert "dqn" in printed


def test_training_left_is_as_it_was(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "digits", tmp_path / "run", symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main([str(run)]) == 0
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert after.keys() - before.keys() == {run / "evaluation.json"}
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["epsiodes=3"],
            "epsiodes is not an option; allowed: checkpoint, .* did you mean 'episodes'",
        ),
        (["episodes=0"], "episodes must be an integer of at least 1 or null, got 0"),
        (["checkpoint=bets"], "must be one of best, last, got 'bets'; did you mean 'best'"),
        (["seed=-1"], "seed must be an integer in"),
        (["env=3"], "env must be"),
        (["seed=[1"], "cannot be parsed"),
    ],
)
def test_an_option_that_is_wrong_is_told_before_anything_is_loaded(
    words: list[str], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        parse(["run", *words], EvaluationOptions)


def test_a_directory_is_told_from_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("seed=1", "env=cheetah,seed=0", "lr=0.1"):
        Path(name).mkdir()
    paths, options = parse(["env=cheetah,seed=0", "lr=0.1", "seed=1"], EvaluationOptions)
    assert paths == [Path("env=cheetah,seed=0"), Path("lr=0.1")]
    assert options.seed == 1
    assert parse(["./seed=1"], EvaluationOptions)[0] == [Path("./seed=1")]
    with pytest.raises(UserError, match=r"only options; the directory is \./seed=1"):
        parse(["seed=1"], EvaluationOptions)


def test_options_of_the_environment_are_nested() -> None:
    words = ["run", "env.max_episode_steps=5", "env.kwargs.gravity=9.5", "trusted_modules=[a,b]"]
    options = parse(words, EvaluationOptions)[1]
    assert options.env == {"max_episode_steps": 5, "kwargs": {"gravity": 9.5}}
    assert options.trusted_modules == ["a", "b"]


@pytest.mark.parametrize("word", ["episodes=3", "num_envs=2"])
def test_an_option_without_effect_is_refused(
    runs: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = command(str(runs / "digits"), word, capsys=capsys)
    assert status == 1
    assert "has no meaning for a run that is evaluated on examples" in printed
