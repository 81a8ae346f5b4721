"""The memory of a run is known before it starts."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import train
from benchmarks.measure import read_rows
from research import config
from research.config import build
from research.forecast import Memory, forecast_memory, shorten, size
from research.training.run import Run
from tests.conftest import Load, algs, small

ROOT = Path(__file__).parent.parent


def task(cfg: DictConfig, run: Run) -> float:
    return train.main.__wrapped__(cfg, run)  # type: ignore[attr-defined]


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "overrides",
    [
        ["alg=td3", "env=pendulum", "trainer.total_steps=512"],
        ["alg=ppo", "env=cartpole_gym", "trainer.pace.horizon=256", "trainer.total_steps=512"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_run_takes_what_was_forecast(tmp_path: Path, overrides: Sequence[str]) -> None:
    common = [*overrides, "device=cpu", "trainer.evaluation.episodes=2"]
    dry = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweeper.dry_run=true"]
    told = command("-m", *common, *dry)
    (row,) = (line for line in told.splitlines() if line.startswith("0 "))
    (forecast,) = re.findall(r"([\d.]+) GB  -$", row)
    command(*common, f"hydra.run.dir={tmp_path / 'run'}")
    used = float(read_rows(tmp_path / "run" / "time.csv")[-1]["memory_gb"])
    assert float(forecast) == pytest.approx(used, rel=0.1)


@pytest.mark.parametrize("alg", algs())
def test_every_algorithm_can_be_tried(load: Load, tmp_path: Path, alg: str) -> None:
    (tmp_path / "run").mkdir()
    overrides = small(alg, tmp_path, batch_size=16, capacity=5000)
    cfg = load(*overrides, "trainer.execution=eager")
    if "max_episode_steps" in cfg.env:
        cfg.env.max_episode_steps = 40
    memory = forecast_memory(task, cfg, tmp_path / "run")
    assert memory.host > 10**8
    assert memory.gpu == 0
    assert config.builder is config.construct_part


def test_a_trial_is_short_and_keeps_the_length_of_the_run(load: Load) -> None:
    cfg = load("env=cheetah", "trainer.total_steps=5000", "logger.trackers=[csv,wandb]")
    shorten(cfg)
    assert cfg.trainer.total_steps == 5000
    assert cfg.trainer.pace.warmup_steps == 64
    assert cfg.trainer.evaluation.episodes == 1
    assert cfg.logger.trackers == ["csv"]
    for num_envs, episodes in ((4, 4), (64, 10)):
        many = load("env=native", "env.id=CartPole-v1", f"env.num_envs={num_envs}", "alg=dqn")
        shorten(many)
        assert many.trainer.evaluation.episodes == episodes
    short = load("trainer.pace.warmup_steps=7", "trainer.total_steps=20")
    shorten(short)
    assert short.trainer.pace.warmup_steps == 7
    supervised = load("alg=classification")
    before = set(supervised.trainer)
    shorten(supervised)
    assert set(supervised.trainer) == before
    assert supervised.trainer.pace is None


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("seed=7", True),
        ("seed=[1,2]", False),
        ("alg.optim.lr=3e-3", True),
        ("dataset.batch_size=512", False),
        ("trainer.total_steps=2000", False),
        ("network.hidden_dims=[64,64]", False),
    ],
)
def test_runs_that_differ_in_rates_alone_take_as_much(
    load: Load, override: str, *, is_same: bool
) -> None:
    assert (size(load()) == size(load(override))) is is_same


class Parts:
    """A dataset and a trainer of known sizes."""

    capacity, memory_bytes = 1000, 10**6
    total_steps = 250

    class policy:
        device = torch.device("cpu")

    def __init__(self) -> None:
        self.dataset = self

    def train(self, max_updates: int) -> float:
        assert max_updates < 100
        return 0.0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_will_be_stored_is_added_and_ranks_share_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_ranks: int
) -> None:
    monkeypatch.setattr("research.machine.memory.peak_bytes", lambda: 10**9)
    monkeypatch.setattr("research.forecast.construct_part", lambda *_: Parts())
    trainer = {"num_seeds": 1, "devices": num_ranks, "total_steps": 250}
    cfg = OmegaConf.create({"seed": 0, "trainer": trainer})

    def build_and_train(cfg: DictConfig, run: Run) -> float:
        return config.build(cfg.trainer).train()

    expected = num_ranks * (10**9 + 250_000)
    assert forecast_memory(build_and_train, cfg, tmp_path) == Memory(expected, 0)


def test_seeds_are_tried_together(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each stores as much as one; what the process takes is counted once."""
    monkeypatch.setattr("research.machine.memory.peak_bytes", lambda: 10**9)
    common = "env=pendulum", "trainer.execution=eager", "trainer.total_steps=500_000"
    stored = build(load(*common).dataset, build(load(*common).env), 0).memory_bytes
    for name, seed, count in (("one", "seed=3", 1), ("two", "seed=[3,5]", 2)):
        (tmp_path / name).mkdir()
        memory = forecast_memory(task, load(*common, seed), tmp_path / name)
        assert memory.host == 10**9 + count * (stored // 2)
    assert (tmp_path / "two" / "seed=5" / "status.json").exists()


def test_jobs_for_other_machines_are_tried_on_a_device_of_this_one(
    load: Load, tmp_path: Path
) -> None:
    cfg = load("env=pendulum", "device=cuda:7", "trainer.execution=eager")
    assert forecast_memory(task, cfg, tmp_path, elsewhere=True).host > 10**8


def test_a_trial_that_ends_with_an_evaluation_makes_no_second(load: Load, tmp_path: Path) -> None:
    every = "trainer.evaluation.every=4", "trainer.checkpoints.every=null"
    forecast_memory(task, load("env=pendulum", "trainer.execution=eager", *every), tmp_path)
    steps = [int(row["step"]) for row in read_rows(tmp_path / "eval.csv")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 72


def test_ranks_are_tried_as_they_will_run(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They run eagerly where one alone would be compiled."""
    tried = []

    def look(cfg: DictConfig, run: Run) -> float:
        tried.append((cfg.trainer.devices, cfg.trainer.execution))
        return 0.0

    for ranks in (1, 2):
        forecast_memory(look, load(f"trainer.devices={ranks}"), tmp_path)
    assert tried == [(1, "auto"), (1, "eager")]


def test_a_job_that_fails_within_its_trial_is_told_in_a_dry_run(tmp_path: Path) -> None:
    """What no check can know before: an update that runs out of memory, a loss that is NaN."""
    dry = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweeper.dry_run=true"]
    arguments = ["-m", "env=pendulum", "device=cpu", "trainer.total_steps=2000", "seed=0,1", *dry]
    broken = ["alg.optim.lr=1e30"]
    done = subprocess.run(
        [sys.executable, "train.py", *arguments, *broken], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"train\.py: job 0 \(seed=0\) cannot run: .* reward of nan", line), line
