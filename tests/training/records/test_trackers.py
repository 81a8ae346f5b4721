"""wandb (offline), Trackio (SQLite) and MLflow (SQLite): the real ones, killed and resumed."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from research.errors import UserError
from research.training.records.clock import Clock
from research.training.records.hyperparameters import hyperparameters_of
from research.training.records.table import read_points
from research.training.records.trackers.base import NOWHERE, AppendOnly, Position, run_id
from research.training.records.trackers.choice import make_logger
from research.training.records.trackers.mlflow import MLflow
from research.training.records.trackers.tensorboard import TensorBoard
from research.training.records.trackers.trackio import Trackio
from research.training.records.trackers.wandb import WandB, read_history
from tests.commands import run, start
from tests.test_kill import wait_for_step

Points = dict[tuple[int, float], dict[str, float]]

NAMES = ("wandb", "trackio", "mlflow")
CONFIG = {"alg": {"_target_": "research.algs.td3.TD3", "tau": 0.01}, "seed": 1}


def clock(step: int, seconds: float) -> Clock:
    return Clock(step=step, frames=2 * step, updates=step, epoch=0, seconds=seconds)


def make(name: str, run_dir: Path) -> AppendOnly:
    """A tracker whose data goes to a folder beside the run directory."""
    pytest.importorskip(name)
    if name == "wandb":
        return WandB(run_dir, project="test", entity=None, group="all", mode="offline")
    if name == "trackio":
        return Trackio(run_dir, project="test", group="all")
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    return MLflow(run_dir, experiment="test", tracking_uri=uri)


@pytest.fixture(autouse=True)
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep all that the packages write in the test's folder."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def stored_by_wandb(run_dir: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        yield from read_history(path)


def stored_by_trackio(run_dir: Path) -> Iterator[dict[str, Any]]:
    with sqlite3.connect(run_dir.parent / "trackio" / "test.db") as database:
        for step, text in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            if "seconds" in (row := json.loads(text)):
                yield {"step": step, **row}


def stored_by_mlflow(run_dir: Path) -> Iterator[dict[str, Any]]:
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    with sqlite3.connect(run_dir.parent / "mlflow.db") as database:
        query = "SELECT key, value, step, timestamp, is_nan FROM metrics WHERE key != 'best/score'"
        for key, value, step, time_ms, is_nan in database.execute(query):
            row = rows.setdefault((step, time_ms), {"step": step})
            assert key not in row, "a point is there twice"
            row[key] = float("nan") if is_nan else value
    yield from (rows[key] for key in sorted(rows))


STORED: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    "wandb": stored_by_wandb,
    "trackio": stored_by_trackio,
    "mlflow": stored_by_mlflow,
}


def stored(name: str, run_dir: Path) -> list[tuple[Clock, dict[str, float]]]:
    """All that a tracker's own files hold, in its order."""
    points = []
    for row in STORED[name](run_dir):
        found = Clock(*(row[field] for field in Clock._fields))
        points.append((found, {key: float(row[key]) for key in row if "/" in key}))
    return points


@pytest.mark.parametrize("name", NAMES)
def test_points_and_their_end_are_in_the_trackers_own_files(tmp_path: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tracker = make(name, run_dir)
    assert tracker.start(CONFIG) == NOWHERE
    tracker.log({"train/q": 0.1, "train/nan": float("nan")}, clock(1, 0.5))
    tracker.log({"eval/return": 2.0}, clock(1, 0.75))
    tracker.finish({"best/score": 3.0})
    (first, scalars), (second, others) = stored(name, run_dir)
    assert (first, second) == (clock(1, 0.5), clock(1, 0.75))
    assert scalars["train/q"] == 0.1
    assert scalars["train/nan"] != scalars["train/nan"]
    assert others == {"eval/return": 2.0}
    again = make(name, run_dir)
    assert again.start(CONFIG) == Position(1, 0.75)
    again.log({"train/q": 0.2}, clock(2, 1.0))
    again.close()
    assert len(stored(name, run_dir)) == 3


def run_here(folder: Path, overrides: tuple[str, ...], environment: dict[str, str]) -> None:
    """Do in this process what the command does in its own, in this test's environment."""
    os.environ.update(environment)
    os.chdir(folder.parent)
    run(folder, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_killed_and_resumed_has_every_point_once(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    run_dir = tmp_path / "run"
    settings = {
        "wandb": ["logger.wandb.project=test", "logger.wandb.mode=offline"],
        "trackio": ["logger.trackio.project=test"],
        "mlflow": ["logger.mlflow.experiment=test"],
    }
    overrides = [
        *("alg=td3", "env=pendulum", f"logger.trackers=[csv,tensorboard,{name}]", *settings[name]),
        *("trainer.total_steps=800", "trainer.log_every=20", "trainer.evaluation.every=400"),
        *("trainer.evaluation.episodes=1", "trainer.checkpoints.every=100"),
        *("network.hidden_dims=[8]", "dataset.batch_size=8", "dataset.capacity=800"),
    ]
    for step, signal in ((350, "kill"), (530, "terminate")):
        process = start(run_here, run_dir, tuple(overrides), dict(os.environ))
        wait_for_step(run_dir, step, process)
        getattr(process, signal)()
        process.join(60)
    process = start(run_here, run_dir, tuple(overrides), dict(os.environ))
    process.join(120)
    output = run_dir.with_suffix(".txt").read_text()
    assert process.exitcode == 0, output
    assert output.count("resumed at step") == 2
    points = read_points(run_dir)
    assert len(points) == 40 + 2
    assert stored(name, run_dir) == points


def factories() -> dict[str, Any]:
    return {
        "tensorboard": TensorBoard,
        "wandb": lambda run_dir: make("wandb", run_dir),
        "trackio": lambda run_dir: make("trackio", run_dir),
        "mlflow": lambda run_dir: make("mlflow", run_dir),
    }


@pytest.mark.parametrize("name", [*NAMES, "tensorboard"])
def test_a_logger_that_is_not_started_writes_nothing(tmp_path: Path, name: str) -> None:
    if name in NAMES:
        pytest.importorskip(name)
    before = set(tmp_path.rglob("*"))
    make_logger(tmp_path, trackers=["csv", name], **factories())
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_one_line_that_names_the_extra(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{name} needs .*: pip install -e '\.\[{name}\]'"):
        make_logger(
            tmp_path,
            trackers=["csv", name],
            tensorboard=TensorBoard,
            wandb=lambda run_dir: WandB(run_dir, project="p", entity=None, group=None, mode=None),
            trackio=lambda run_dir: Trackio(run_dir, project="p", group=None),
            mlflow=lambda run_dir: MLflow(run_dir, experiment="e", tracking_uri=None),
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandb", "W&B could not start a run in project 'a/b'"),
        ("trackio", "Trackio could not start a run in project 'registry-a'"),
        ("mlflow", "MLflow could not start a run in experiment 'e' at logger.mlflow.tracking_uri="),
    ],
)
def test_a_refusal_is_one_line(tmp_path: Path, name: str, words: str) -> None:
    pytest.importorskip(name)
    wrong = {
        "wandb": lambda: WandB(tmp_path, project="a/b", entity=None, group=None, mode="offline"),
        "trackio": lambda: Trackio(tmp_path, project="registry-a", group=None),
        "mlflow": lambda: MLflow(tmp_path, experiment="e", tracking_uri="http://127.0.0.1:1"),
    }
    with pytest.raises(UserError) as error:
        wrong[name]().start(CONFIG)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_trackio_is_refused_where_it_would_log_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID is set; unset it"):
        Trackio(tmp_path, project="p", group=None)


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file_of_wandb_is_read_up_to_the_damage(tmp_path: Path, size: int) -> None:
    tracker = make("wandb", tmp_path)
    tracker.start(CONFIG)
    for step in range(2000):  # several blocks
        tracker.log({"train/q": step / 7}, clock(step, step / 3))
    tracker.finish({})
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = list(read_history(path))
    assert [row["train/q"] for row in rows] == [step / 7 for step in range(2000)]
    path.write_bytes(path.read_bytes()[: 40_000 + size])
    cut = list(read_history(path))
    assert 0 < len(cut) < 2000
    assert cut == rows[: len(cut)]
    again = make("wandb", tmp_path)
    assert again.start(CONFIG) == Position(len(cut) - 1, (len(cut) - 1) / 3)
    again.close()


def test_the_identity_of_a_run_stays_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    identity = run_id(tmp_path)
    assert run_id(tmp_path) == identity
    (tmp_path / "tracking_id").write_text("a b\n")
    with pytest.raises(UserError, match="tracking_id is damaged"):
        run_id(tmp_path)


def test_hyperparameters_name_parts_by_their_class_and_leave_hydras_keys_out() -> None:
    config = {
        "alg": {
            "_target_": "research.algs.td3.TD3",
            "_partial_": True,
            "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3},
        },
        "logger": {"trackers": ["csv"]},
        "device": "cpu",
        "seed": 3,
    }
    flat = {"alg": "TD3", "alg.optim": "Adam", "alg.optim.lr": 1e-3, "seed": 3}
    assert hyperparameters_of(config) == flat
