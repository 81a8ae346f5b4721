"""The one loop: exact, resumable, the same every time, and never disturbed by evaluation."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

from research.algs.base import Algorithm, Loss, Metrics, Objective, OptimFactory
from research.batches import Step, Transition
from research.datasets.base import OnlineDataset
from research.datasets.replay.buffer import ReplayBuffer
from research.envs.spaces import DeclaredSpaces
from research.envs.vector import vectorize
from research.errors import Preempted, UserError
from research.processors.base import Identity, Processor
from research.status import Status
from research.training.collector import Collector
from research.training.evaluation import Evaluation
from research.training.pace import OffPolicy, OnPolicy, Pace
from research.training.records.clock import Clock
from research.training.records.logger import Logger
from research.training.run import Run
from research.training.saving.checkpoint import load_checkpoint
from research.training.saving.checkpoints import Checkpoints
from research.training.score import Score
from research.training.seed import seed_everything
from research.training.trainer import Trainer
from tests.training.toys import (
    ACTION_SPACE,
    OBS_SPACE,
    Count,
    Points,
    Regression,
    Tape,
    Toy,
    make_policy,
    rows,
    vector,
)

SPACES = DeclaredSpaces(observation_space=OBS_SPACE, action_space=ACTION_SPACE)
SGD = partial(torch.optim.SGD, lr=1.0)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_trainer(
    folder: Path,
    alg: Algorithm,
    dataset: Any,
    env: Any,
    *,
    total_steps: int | None = None,
    total_epochs: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    make_env: Callable[..., VectorEnv] = vector,
    processor: Processor | None = None,
    pace: Pace | None = None,
    overlap: bool | None = None,
    infos: Mapping[str, Sequence[int]] | None = None,
    schedule: Callable[..., LRScheduler] | None = None,
    max_grad_norm: float | None = None,
    prefetch: bool | None = None,
    profile: bool = False,
    log_every: int = 10,
    eval_every: int | None = 10,
    eval_episodes: int = 2,
    eval_batches: int | None = None,
    video_every: int | None = None,
    checkpoint_every: int | None = 10,
    checkpoint_minutes: float | None = None,
    keep_last: int = 2,
    metric: str = "eval/return",
    mode: Literal["max", "min"] = "max",
) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(
        alg,
        processor or Identity(OBS_SPACE, ACTION_SPACE),
        dataset,
        env,
        make_env,
        Logger(folder, []),
        Run(folder, Status(folder), seed, {}),
        total_steps=total_steps,
        total_epochs=total_epochs,
        pace=pace,
        collector=partial(Collector, overlap=overlap),
        infos=infos,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        precision="fp32",
        accumulate=1,
        ema_decay=None,
        execution="eager",
        prefetch=prefetch,
        profile=profile,
        log_every=log_every,
        evaluation=Evaluation(every=eval_every, episodes=eval_episodes, batches=eval_batches),
        video_every=video_every,
        score=Score(metric=metric, mode=mode, patience=patience),
        checkpoints=Checkpoints(
            every=checkpoint_every, minutes=checkpoint_minutes, keep_last=keep_last
        ),
        devices=1,
        num_seeds=1,
    )


def off_policy(
    warmup_steps: int | None = 4, updates_per_step: int = 1, steps_per_update: int = 1
) -> OffPolicy:
    return OffPolicy(
        warmup_steps=warmup_steps,
        updates_per_step=updates_per_step,
        steps_per_update=steps_per_update,
    )


def make_online(
    folder: Path,
    *,
    num_envs: int = 1,
    seed: int = 0,
    alg: Algorithm | None = None,
    pace: Pace | None = None,
    dataset: Any = None,
    env: VectorEnv | None = None,
    **options: Any,
) -> Trainer:
    """Toy on ``Count`` with a replay buffer."""
    seed_everything(seed)
    env = env or vector(num_envs)
    if dataset is None:
        numbers: Any = {"capacity": 60, "batch_size": 8, "discount": 0.9, "n_step": 2}
        dataset = ReplayBuffer(env, seed, **numbers, storage="ram", device="cpu")
    return make_trainer(
        folder,
        alg or Toy(),
        dataset,
        env,
        seed=seed,
        pace=pace or off_policy(),
        **options,
    )


def subprocesses(make_env: Callable[[], Count], *, num_envs: int = 1) -> VectorEnv:
    """Environments in a process each."""
    return vectorize(
        make_env, num_envs=num_envs, subprocesses=True, action_repeat=1, flatten_obs=False
    )


def make_supervised(
    folder: Path, *, alg: Algorithm | None = None, seed: int = 0, **options: Any
) -> Trainer:
    """A regression, without an environment."""
    seed_everything(seed)
    alg = alg or Regression()
    options = {"metric": "eval/error", "mode": "min", **options}
    return make_trainer(folder, alg, Points(seed), SPACES, seed=seed, **options)


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in rows(path)]


def logged(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Every row of every log but for the times of this machine."""
    return {
        path.name: [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path)]
        for path in folder.glob("*.csv")
        if path.name != "time.csv"
    }


def checkpoint_step(folder: Path, name: str) -> int:
    return load_checkpoint(folder / "checkpoints" / name).state["step"]


# How far a run goes


@pytest.mark.parametrize(("num_envs", "total_steps"), [(1, 25), (3, 27)])
def test_a_run_takes_exactly_the_steps_asked_for(
    tmp_path: Path, num_envs: int, total_steps: int
) -> None:
    tape = Tape()
    trainer = make_online(tmp_path, num_envs=num_envs, dataset=tape, total_steps=total_steps)
    trainer.train()
    assert len(tape) == trainer.step == total_steps
    assert checkpoint_step(tmp_path, "last") == total_steps
    assert steps(tmp_path / "train.csv")[-1] == steps(tmp_path / "eval.csv")[-1] == total_steps


def test_steps_that_environments_cannot_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"total_steps must be a multiple of .*=3, got 25"):
        make_online(tmp_path, num_envs=3, total_steps=25)


@pytest.mark.parametrize(
    ("updates_per_step", "steps_per_update", "updates"),
    [(1, 1, 26), (3, 1, 78), (1, 4, 6), (2, 3, 17)],
)
def test_updates_come_in_the_ratio_asked_for_once_the_warmup_is_over(
    tmp_path: Path, updates_per_step: int, steps_per_update: int, updates: int
) -> None:
    pace = off_policy(4, updates_per_step, steps_per_update)
    trainer = make_online(tmp_path, pace=pace, total_steps=30)
    trainer.train()
    assert trainer.learner.updates == updates
    assert rows(tmp_path / "train.csv")[-1]["updates"] == updates


class Clocked(Toy):
    """Notes the steps at which it explored, and those at which it was updated."""

    def __init__(self) -> None:
        super().__init__()
        self.explored: list[float] = []
        self.updated: list[float] = []

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        if explore:
            self.explored.append(step.item())
        return super().act(obs, step, explore)

    def draw(self, batch: Transition, step: Tensor) -> None:
        assert self.training
        self.updated.append(step.item())


@pytest.mark.parametrize(
    ("warmup_steps", "explored", "updated"),
    [
        (0, [0, 3, 6], [3, 3, 3, 3, 3, 3, 6, 6, 6]),
        (3, [3, 6], [3, 3, 3, 6, 6, 6]),
        (4, [6], [3, 3, 6, 6, 6]),
    ],
)
def test_acting_and_updating_know_the_steps_before_them(
    tmp_path: Path, warmup_steps: int, explored: list[float], updated: list[float]
) -> None:
    alg, pace = Clocked(), off_policy(warmup_steps)
    make_online(tmp_path, alg=alg, num_envs=3, pace=pace, total_steps=9).train()
    assert alg.explored == explored
    assert alg.updated == updated


class Diary(Tape):
    """Notes when a step came, how many did before, and when a batch was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def add(self, step: Step) -> None:
        super().add(step)
        self.events.append(f"step {len(self)}")

    def sample(self) -> Transition:
        self.events.append("update")
        return super().sample()


class Acting(Toy):
    """Notes in a diary when it explores."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        if explore:
            self.diary.events.append("action")
        return super().act(obs, step, explore)


def test_off_policy_updates_come_before_the_step_of_their_action(tmp_path: Path) -> None:
    diary = Diary()
    pace = off_policy(2, updates_per_step=3, steps_per_update=2)
    make_online(tmp_path, alg=Acting(diary), dataset=diary, pace=pace, total_steps=4).train()
    assert diary.events == [
        *("step 1", "step 2"),
        *("action", "update", "step 3"),
        *("action", "update", "update", "step 4"),
    ]


def test_on_policy_updates_come_after_a_rollout_and_before_the_next_action(
    tmp_path: Path,
) -> None:
    diary = Diary()
    pace = OnPolicy(horizon=2, epochs=1, minibatches=3)
    make_online(
        tmp_path, alg=Acting(diary), dataset=diary, num_envs=2, pace=pace, total_steps=10
    ).train()
    rollout = [*("action", "step 2", "action", "step 4"), *["update"] * 3]
    again = [event.replace("2", "6").replace("4", "8") for event in rollout]
    assert diary.events == [*rollout, *again, "action", "step 10"]


def test_every_minibatch_counts_in_logs_and_schedules(tmp_path: Path) -> None:
    told = []

    def schedule(optim: torch.optim.Optimizer, total_updates: int) -> LRScheduler:
        told.append(total_updates)
        return StepLR(optim, 6, gamma=0.5)

    pace = OnPolicy(horizon=5, epochs=2, minibatches=3)
    options: Any = {"dataset": Tape(), "pace": pace, "schedule": schedule, "log_every": 5}
    trainer = make_online(tmp_path, total_steps=20, **options)
    trainer.train()
    assert told == [24]
    log = rows(tmp_path / "train.csv")
    assert [row["updates"] for row in log] == [6, 12, 18, 24]
    assert [row["lr"] for row in log] == [0.05 * 0.5**count for count in (1, 2, 3, 4)]


def test_an_interrupted_on_policy_run_ends_as_one_that_was_not(
    tmp_path: Path, signals_are_heard: None
) -> None:
    def make(folder: Path) -> Trainer:
        pace = OnPolicy(horizon=5, epochs=2, minibatches=3)
        options: Any = {"log_every": 5, "eval_every": 20, "pace": pace}
        env = vectorize(
            CountFrames, num_envs=1, subprocesses=False, action_repeat=1, flatten_obs=False
        )
        return make_online(folder, env=env, total_steps=40, **options)

    make(tmp_path / "whole").train()
    for at in (13, 25):
        trainer = make(tmp_path / "told")
        interrupt(trainer, at=at)
        with pytest.raises(Preempted):
            trainer.train()
        assert checkpoint_step(tmp_path / "told", "last") == at
    make(tmp_path / "told").train()
    assert logged(tmp_path / "told") == logged(tmp_path / "whole")


def interrupt(trainer: Trainer, *, at: int) -> None:
    """Ask the process to end during the step to ``at``."""
    assert trainer.collector is not None
    end_step = trainer.collector.end_step

    def end_step_and_be_told() -> list[dict[str, float]]:
        if trainer.step + trainer.step_size == at:
            signal.raise_signal(signal.SIGTERM)
        return end_step()

    trainer.collector.end_step = end_step_and_be_told


def test_periods_that_environments_jump_over_come_at_the_first_step_behind(tmp_path: Path) -> None:
    make_online(
        tmp_path,
        num_envs=3,
        pace=off_policy(warmup_steps=0),
        total_steps=33,
        log_every=4,
        eval_every=10,
        checkpoint_every=100,
    ).train()
    assert steps(tmp_path / "eval.csv") == [12, 21, 30, 33]
    assert steps(tmp_path / "train.csv") == [6, 9, 12, 18, 21, 24, 30, 33]


def test_periods_are_exact_and_the_end_is_always_evaluated_logged_and_saved(tmp_path: Path) -> None:
    make_supervised(
        tmp_path, total_steps=23, log_every=5, eval_every=10, checkpoint_every=100
    ).train()
    assert steps(tmp_path / "train.csv") == [5, 10, 15, 20, 23]
    assert steps(tmp_path / "eval.csv") == [10, 20, 23]
    assert checkpoint_step(tmp_path, "last") == 23


def test_some_validation_batches_take_turns_at_the_evaluations(tmp_path: Path) -> None:
    trainer = make_supervised(tmp_path, total_steps=23, eval_every=10, eval_batches=1)
    data: Any = trainer.dataset
    asked = []
    take = data.validation_batches
    data.validation_batches = lambda *turns: (asked.append(turns), take(*turns))[1]
    trainer.train()
    trial = (0, 1)
    assert asked == [trial, (0, 1), (1, 1), (2, 1)]


def test_checkpoints_come_between_evaluations(tmp_path: Path) -> None:
    trainer = make_supervised(tmp_path, total_steps=30, eval_every=20, checkpoint_every=7)
    saved = []
    save = trainer.save
    trainer.save = lambda *, is_best: (saved.append(trainer.step), save(is_best=is_best))[1]
    trainer.train()
    assert saved == [7, 14, 20, 21, 28, 30]


def test_rows_count_steps_frames_updates_and_epochs(tmp_path: Path) -> None:
    env = vector()
    env.metadata = {**env.metadata, "action_repeat": 4}
    make_online(tmp_path, env=env, total_steps=20).train()
    row = rows(tmp_path / "train.csv")[-1]
    assert (row["step"], row["frames"], row["updates"], row["epoch"]) == (20, 80, 16, 0)
    make_supervised(tmp_path / "b", total_steps=24).train()
    row = rows(tmp_path / "b" / "train.csv")[-1]
    # five batches are an epoch, and no environment has made a frame
    assert (row["step"], row["frames"], row["updates"], row["epoch"]) == (24, 0, 24, 4)


class CountFrames(Count):
    """Knows how many frames all of its kind have simulated."""

    frames = 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        type(self).frames += 1
        return super().step(action)

    def observe(self) -> np.ndarray:
        return super().observe() * np.array([1, 0, 1, 1], np.float32)  # the same in another process


def test_frames_are_those_that_were_simulated_also_after_a_resumption(tmp_path: Path) -> None:
    def train(folder: Path, total_steps: int) -> int:
        repeated: Any = {"subprocesses": False, "action_repeat": 3, "flatten_obs": False}
        env = vectorize(CountFrames, num_envs=2, **repeated)
        CountFrames.frames = 0
        make_online(folder, env=env, total_steps=total_steps, log_every=2).train()
        return CountFrames.frames

    frames = train(tmp_path / "whole", 40)
    table = rows(tmp_path / "whole" / "time.csv")
    assert 40 < table[-1]["frames"] == frames < 120
    assert set(rows(tmp_path / "whole" / "env.csv")[-1]) == {
        *Clock._fields,
        "return",
        "length",
        "bonus",
    }
    for total_steps in (20, 40):
        train(tmp_path / "resumed", total_steps)
    assert [row["frames"] for row in rows(tmp_path / "resumed" / "time.csv")] == [
        row["frames"] for row in table
    ]


@pytest.mark.parametrize("updates", [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_batches_that_are_prefetched_change_no_number(
    tmp_path: Path, updates: tuple[int, int]
) -> None:
    for name, prefetch in (("with", True), ("without", False)):
        make_online(
            tmp_path / name,
            pace=off_policy(4, *updates),
            total_steps=40,
            log_every=1,
            prefetch=prefetch,
        ).train()
    assert logged(tmp_path / "with") == logged(tmp_path / "without")


def test_environments_in_subprocesses_change_no_number(tmp_path: Path) -> None:
    for name, overlap in (("here", None), ("overlapped", True), ("by turns", False)):
        trainer = make_online(
            tmp_path / name,
            env=vector(2) if name == "here" else subprocesses(Count, num_envs=2),
            overlap=overlap,
            total_steps=40,
            log_every=1,
        )
        trainer.train()
        assert logged(tmp_path / name) == logged(tmp_path / "here")


class Waiting(Count):
    """After its first steps, does none unless a file appears while it waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(length=100)
        self.path = path

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        deadline = time.monotonic() + 30
        while self.total_steps >= 4 and not self.path.exists():
            assert time.monotonic() < deadline, "no update was made meanwhile"
            time.sleep(0.01)
        return super().step(action)


class Telling(Toy):
    """Makes a file when it is updated."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def draw(self, batch: Transition, step: Tensor) -> None:
        self.path.touch()


def test_updates_are_made_while_environments_in_subprocesses_step(tmp_path: Path) -> None:
    path = tmp_path / "updated"
    env = subprocesses(partial(Waiting, path))
    trainer = make_online(tmp_path, alg=Telling(path), env=env, total_steps=6, log_every=1)
    trainer.train()
    assert trainer.step == 6


def test_environments_of_this_process_cannot_overlap(tmp_path: Path) -> None:
    message = "overlap is true, .*; try env.subprocesses=true"
    with pytest.raises(ValueError, match=message):
        make_online(tmp_path, overlap=True, total_steps=6)


def test_without_warm_up_the_first_updates_wait_for_a_transition(tmp_path: Path) -> None:
    trainer = make_online(tmp_path, pace=off_policy(warmup_steps=0), total_steps=30)
    trainer.train()
    assert trainer.learner.updates == 30


def test_every_episode_is_logged_once(tmp_path: Path) -> None:
    tape = Tape()
    trainer = make_online(tmp_path, dataset=tape, total_steps=40, log_every=1, eval_every=100)
    trainer.train()
    lengths = [step.next_obs[2] for step in tape.steps if step.terminated]
    assert [row["length"] for row in rows(tmp_path / "env.csv")] == lengths


def test_time_is_divided_among_the_phases(tmp_path: Path) -> None:
    make_online(tmp_path, total_steps=20).train()
    first, second = rows(tmp_path / "time.csv")
    names = {"environment", "sample", "update", "other"}
    for row, expected in [(first, names), (second, names | {"evaluate", "checkpoint"})]:
        shares = {name: row[name] for name in expected}
        assert all(share > 0 for share in shares.values())
        assert sum(shares.values()) == pytest.approx(1.0)


def test_seconds_go_on_in_a_resumed_run_and_speed_is_since_the_row_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Regression):
        def draw(self, batch: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
            now[0] += 2.0
            return super().draw(batch, step)

    for total_steps in (20, 40):
        trainer = make_supervised(tmp_path, alg=Slow(), total_steps=total_steps, log_every=4)
        trainer.train()
        now[0] += 500.0
    log = rows(tmp_path / "time.csv")
    assert [row["seconds"] for row in log] == [2 * row["step"] for row in log]
    assert {row["steps_per_s"] for row in log} == {0.5}
    assert trainer.run.status.fields["speed"] == 0.5


# What is kept


class Scripted(Regression):
    """Its validation error is what the script says for the updates made; else 0."""

    def __init__(self, script: dict[int, float]) -> None:
        super().__init__()
        self.script = script
        self.register_buffer("updates", torch.tensor(0))

    def draw(self, batch: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
        self.updates += 1
        return super().draw(batch, step)

    def validate(self, batch: tuple[Tensor, Tensor]) -> Metrics:
        return {
            "error": torch.tensor(self.script.get(int(self.updates), 0.0)),
            "size": torch.tensor(1.0),
        }


@pytest.mark.parametrize(("mode", "step", "score"), [("min", 20, -3.0), ("max", 30, 5.0)])
def test_the_best_checkpoint_is_the_best_by_metric_and_mode(
    tmp_path: Path, mode: str, step: int, score: float
) -> None:
    alg = Scripted({10: 4.0, 20: -3.0, 30: 5.0, 40: 1.0})
    assert make_supervised(tmp_path, alg=alg, mode=mode, total_steps=40).train() == score
    assert checkpoint_step(tmp_path, "best") == step
    assert checkpoint_step(tmp_path, "last") == 40


def test_of_equal_scores_the_first_is_the_best(tmp_path: Path) -> None:
    make_supervised(tmp_path, alg=Scripted({10: 1.0, 20: 1.0}), total_steps=20).train()
    assert checkpoint_step(tmp_path, "best") == 10


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("eval/retrun", r"metric=eval/retrun .*; did you mean 'eval/return'\?$"),
        ("eval/success", r"allowed: eval/return, eval/length, eval/bonus, eval/return_std"),
    ],
)
def test_an_unknown_metric_stops_before_the_first_step_and_names_the_nearest(
    tmp_path: Path, metric: str, words: str
) -> None:
    trainer = make_online(tmp_path, metric=metric, total_steps=40)
    with pytest.raises(UserError, match=words):
        trainer.train()
    assert trainer.step == 0


def test_looking_for_a_metric_of_the_environment_changes_no_number(tmp_path: Path) -> None:
    for metric in ("return", "bonus"):
        make_online(tmp_path / metric, metric=f"eval/{metric}", total_steps=40).train()
    assert logged(tmp_path / "return") == logged(tmp_path / "bonus")


def test_a_metric_of_another_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation's, eval/\.\.\., got train/loss"):
        make_online(tmp_path, metric="train/loss", total_steps=40)


@pytest.mark.parametrize(
    ("pace", "words"),
    [
        (off_policy(40), r"total_steps=40 lies within .* trainer\.pace\.warmup_steps=40 steps,"),
        (off_policy(39, steps_per_update=2), "total_steps=40 is too short for a single update"),
        (OnPolicy(horizon=41, epochs=1, minibatches=1), r"trainer\.pace\.horizon=41 steps in each"),
    ],
)
def test_a_run_that_would_learn_nothing_is_refused(tmp_path: Path, pace: Pace, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_online(tmp_path, pace=pace, total_steps=40)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_stops_the_run(tmp_path: Path, mode: str, score: float) -> None:
    alg = Scripted({10: 1.0, 20: score})
    trainer = make_supervised(tmp_path, alg=alg, mode=mode, total_steps=40)
    with pytest.raises(UserError, match=f"eval/error became {score} at step 20; training stopped"):
        trainer.train()
    assert checkpoint_step(tmp_path, "last") == checkpoint_step(tmp_path, "best") == 10


class Exploding(Regression):
    """The gradient of its loss, and perhaps the loss, is not finite in the update at a step."""

    def __init__(self, *, at: int, value: float) -> None:
        super().__init__()
        self.at = at
        self.value = value

    def draw(self, batch: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
        self.explodes = step.item() == self.at
        return super().draw(batch, step)

    def loss(self, batch: tuple[Tensor, Tensor], noise: Tensor) -> Loss:
        infinitely_steep = (0 * self.line.weight.sum()).sqrt()
        return Loss(self.value + infinitely_steep) if self.explodes else super().loss(batch, noise)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_reaches_no_checkpoint(
    tmp_path: Path, loss: float, log_every: int
) -> None:
    alg = Exploding(at=12, value=loss)
    trainer = make_supervised(tmp_path, alg=alg, total_steps=40, log_every=log_every)
    with pytest.raises(UserError, match=f"^train/loss became {loss} at step 12;"):
        trainer.train()
    weights, state = load_checkpoint(tmp_path / "checkpoints" / "last")
    assert state["step"] == 10
    assert all(value.isfinite().all() for value in weights["alg"].values())


def test_a_weight_that_no_loss_shows_yet_reaches_no_checkpoint(tmp_path: Path) -> None:
    alg = Exploding(at=19, value=0.5)
    trainer = make_supervised(tmp_path, alg=alg, total_steps=40, eval_every=100)
    with pytest.raises(UserError, match=r"^weight line.weight became NaN or infinite by step 20;"):
        trainer.train()
    assert checkpoint_step(tmp_path, "last") == 10


# Without an environment, or without collecting


def test_a_regression_is_learned_by_the_same_loop(tmp_path: Path) -> None:
    error = make_supervised(tmp_path, total_steps=200, eval_every=50).train()
    errors = [row["error"] for row in rows(tmp_path / "eval.csv")]
    assert errors[0] > 0.02
    assert error == min(errors) < 0.002


def test_the_processor_learns_from_training_batches_alone(tmp_path: Path) -> None:
    seen = []

    class Noting(Processor):
        def forward(self, batch: Any) -> Any:
            seen.append((len(batch[0]), self.training))
            return batch

    processor = Noting(OBS_SPACE, ACTION_SPACE)
    make_supervised(tmp_path, processor=processor, total_steps=2, eval_every=2).train()
    trial = (3, False)
    assert seen == [trial, (4, True), (4, True), (3, False), (1, False)]


def test_every_rank_draws_numbers_of_its_own_at_every_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Drawing(Regression):
        def draw(self, batch: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
            drawn.append(torch.rand(()).item())
            return super().draw(batch, step)

    drawn: list[float] = []
    monkeypatch.setattr("research.training.trainer.copy_from_first", lambda alg: None)
    for rank in (0, 1):
        trainer = make_supervised(tmp_path / str(rank), alg=Drawing(), total_steps=5)
        trainer.rank, trainer.num_ranks = rank, 2
        trainer.train()
    assert len(set(drawn)) == len(drawn) == 10


def test_offline_learning_evaluates_in_an_environment_and_never_trains_in_it(
    tmp_path: Path,
) -> None:
    tape = Tape()
    make_online(tmp_path / "online", dataset=tape, total_steps=30).train()
    env, eval_env = vector(3), vector()
    trainer = make_trainer(
        tmp_path / "offline", Toy(), tape, env, make_env=lambda: eval_env, total_steps=25
    )
    trainer.train()
    train_env, evaluated = env.envs[0], eval_env.envs[0]
    assert isinstance(train_env, Count)
    assert isinstance(evaluated, Count)
    assert len(tape) == 30
    assert train_env.episodes == 0
    assert evaluated.episodes == 3 * 2
    row = rows(tmp_path / "offline" / "eval.csv")[-1]
    assert (row["step"], row["frames"], row["updates"]) == (25, 0, 25)
    assert "return" in row


class WideTape(Tape):
    """Steps with two actions."""

    action_space = Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"env": vector(), "dataset": WideTape()}, r"takes actions of .*\(1,\).*are of .*\(2,\)"),
        ({"dataset": Tape()}, "nothing to evaluate on.* such as 0.2"),
        ({"alg": Toy()}, "Toy is evaluated in environments alone"),
        ({"pace": off_policy()}, "a collector needs an environment to step"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    options: Any = {"alg": Regression(), "dataset": Points(), "env": SPACES, "total_steps": 10}
    with pytest.raises(ValueError, match=reason):
        make_trainer(tmp_path, **{**options, **changes})


# Learning rates and gradients


class Falling(Regression):
    """Two weights whose losses have the gradients 1 and ``slope`` everywhere."""

    def __init__(self, slope: float = 10.0, *, optim: OptimFactory = SGD) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
        self.slope = slope
        self.optim = optim

    def objectives(self) -> Sequence[Objective]:
        first, second = self.weights
        return [
            Objective(name="first", loss=self.fall, trains=[first], optim=self.optim),
            Objective(name="second", loss=self.fall_fast, trains=[second], optim=self.optim),
        ]

    def fall(self, batch: tuple[Tensor, Tensor], noise: Tensor) -> Loss:
        return Loss(self.weights[0].sum())

    def fall_fast(self, batch: tuple[Tensor, Tensor], noise: Tensor) -> Loss:
        return Loss(self.slope * self.weights[1].sum())


@pytest.mark.parametrize(
    "schedule",
    [
        partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=8),
        partial(CosineAnnealingLR, T_max=12),
        partial(ExponentialLR, gamma=0.7),
        partial(OneCycleLR, max_lr=0.5, total_steps=13, cycle_momentum=False),
    ],
)
def test_each_update_has_the_rate_that_torchs_own_schedule_gives_it(
    tmp_path: Path, schedule: Callable[[torch.optim.Optimizer], LRScheduler]
) -> None:
    optim = SGD([nn.Parameter(torch.zeros(1))])
    reference = schedule(optim)
    rates = []
    for _ in range(12):
        rates.append(optim.param_groups[0]["lr"])
        optim.step()
        reference.step()
    alg = Falling()
    make_supervised(tmp_path, alg=alg, schedule=schedule, total_steps=12, log_every=1).train()
    log = rows(tmp_path / "train.csv")
    weights = [*(row["first_loss"] for row in log), alg.weights[0].item()]
    assert weights == pytest.approx([0.0, *-np.cumsum(rates)], rel=1e-5)
    following = [*rates[1:], optim.param_groups[0]["lr"]]
    assert [row["first_lr"] for row in log] == following
    assert [row["second_lr"] for row in log] == following


def test_gradients_are_bounded_for_each_optimizer_and_small_ones_left_alone(
    tmp_path: Path,
) -> None:
    alg = Falling(slope=10.0)
    make_supervised(tmp_path, alg=alg, max_grad_norm=2.5, total_steps=4).train()
    assert alg.weights[0].item() == pytest.approx(-4 * 1.0)
    assert alg.weights[1].item() == pytest.approx(-4 * 2.5)


# Randomness


@pytest.mark.parametrize("make", [make_online, make_supervised])
def test_the_same_seed_gives_the_same_numbers_to_the_last_bit(
    tmp_path: Path, make: Callable[..., Trainer]
) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, total_steps=40).train()
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert len(logged(tmp_path / "a")["train.csv"]) == 4


def test_seeds_differ_in_the_first_action_and_the_first_state(tmp_path: Path) -> None:
    tapes = Tape(), Tape()
    for seed, tape in enumerate(tapes):
        pace = off_policy(warmup_steps=20)
        make_online(
            tmp_path / str(seed), seed=seed, dataset=tape, pace=pace, total_steps=21
        ).train()
    first, second = (tape.steps[0] for tape in tapes)
    assert first.action != second.action
    assert first.obs[0] != second.obs[0]
    assert logged(tmp_path / "0")["eval.csv"] != logged(tmp_path / "1")["eval.csv"]


class Careless(Count):
    """Uses and seeds the global generators."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
            seed_generator(0)
        return super().reset(seed=seed, options=options)


def make_careless() -> SyncVectorEnv:
    random.random()
    np.random.rand()
    torch.rand(1)
    return SyncVectorEnv([Careless], autoreset_mode=AutoresetMode.DISABLED)


def test_training_is_the_same_however_often_it_is_evaluated(tmp_path: Path) -> None:
    for name, eval_every in [("seldom", 24), ("often", 3)]:
        make_online(
            tmp_path / name,
            make_env=make_careless,
            eval_every=eval_every,
            checkpoint_every=24,
            log_every=1,
            total_steps=24,
        ).train()
    for log in ("train.csv", "env.csv"):
        assert logged(tmp_path / "seldom")[log] == logged(tmp_path / "often")[log]


# Stopping and going on


class Killed(Exception):
    """Stands for whatever ends a process."""


def kill(trainer: Trainer, *, at: int) -> None:
    """Train until the update at this step."""
    draw = trainer.alg.draw

    def mortal(batch: Any, step: Tensor) -> Any:
        if step == at:
            raise Killed
        return draw(batch, step)

    trainer.alg.draw = mortal  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train()


@pytest.mark.parametrize("at", [5, 14, 23, 35])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, at: int) -> None:
    """Weights, optimizer, schedule, generators and every row, although no period fits another."""
    periods: Any = {"log_every": 7, "eval_every": 15, "checkpoint_every": 9, "total_steps": 40}
    schedule = partial(StepLR, step_size=8, gamma=0.5)
    whole = make_supervised(tmp_path / "whole", schedule=schedule, **periods)
    score = whole.train()
    kill(make_supervised(tmp_path / "killed", schedule=schedule, **periods), at=at)
    # another seed shows that everything comes from the checkpoint, if there was one
    seed = 0 if at == 5 else 1
    resumed = make_supervised(tmp_path / "killed", schedule=schedule, seed=seed, **periods)
    resumed.run = resumed.run._replace(seed=0)
    assert resumed.train() == score
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    for name, value in whole.alg.state_dict().items():
        assert value.equal(resumed.alg.state_dict()[name])
    assert checkpoint_step(tmp_path / "killed", "best") == checkpoint_step(
        tmp_path / "whole", "best"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [13, 20])
def test_a_signal_ends_a_run_behind_its_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, at: int, signals_are_heard: None
) -> None:
    trainer = make_supervised(tmp_path, total_steps=30)
    learn = trainer.learn

    def learn_and_be_told(step: int) -> None:
        learn(step)
        if step == at:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)  # batch systems say it twice

    trainer.learn = learn_and_be_told
    with pytest.raises(KeyboardInterrupt, match=f"^{number.name}: "):
        trainer.train()
    assert trainer.step == checkpoint_step(tmp_path, "last") == at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    make_supervised(tmp_path, total_steps=30).train()
    make_supervised(tmp_path / "whole", total_steps=30).train()
    folders = (tmp_path, tmp_path / "whole")
    ends = [load_checkpoint(folder / "checkpoints" / "last") for folder in folders]
    torch.testing.assert_close(ends[0].weights, ends[1].weights, rtol=0, atol=0)


def test_an_ignored_signal_stays_ignored(tmp_path: Path, signals_are_heard: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = make_supervised(tmp_path, total_steps=30)
    learn = trainer.learn

    def learn_and_be_told(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        learn(step)

    trainer.learn = learn_and_be_told
    trainer.train()
    assert trainer.step == 30


def test_a_second_interruption_does_not_wait_for_the_step(
    tmp_path: Path, signals_are_heard: None
) -> None:
    trainer = make_supervised(tmp_path, total_steps=30)

    def hang(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still there")

    trainer.learn = hang
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_longer_run_goes_on_from_a_complete_one(tmp_path: Path) -> None:
    periods: Any = {"log_every": 10, "eval_every": 10, "checkpoint_every": 10}
    make_supervised(tmp_path / "whole", total_steps=40, **periods).train()
    make_supervised(tmp_path / "parts", total_steps=20, **periods).train()
    trainer = make_supervised(tmp_path / "parts", total_steps=40, **periods)
    trainer.train()
    assert trainer.learner.updates == 40
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_a_resumed_collector_takes_the_steps_that_are_left(tmp_path: Path) -> None:
    kill(make_online(tmp_path, num_envs=3, total_steps=60, checkpoint_every=12), at=45)
    assert checkpoint_step(tmp_path, "last") == 42
    saved = load_checkpoint(tmp_path / "checkpoints" / "last").state
    trainer = make_online(tmp_path, num_envs=3, total_steps=60, checkpoint_every=12)
    trainer.train()
    counts = [env.total_steps for env in trainer.env.envs]
    assert counts == [6, 6, 6]
    assert trainer.step == 60
    assert trainer.learner.updates == 60 - 4
    assert steps(tmp_path / "train.csv") == sorted(set(steps(tmp_path / "train.csv")))
    assert steps(tmp_path / "eval.csv") == [12, 21, 30, 42, 51, 60]
    assert isinstance(trainer.collector, Collector)
    # an episode each was cut, and its successor has a number of its own
    assert all(trainer.collector.num_episodes > saved["collector"]["num_episodes"])
    assert trainer.seconds > saved["seconds"]


def test_a_resumed_run_remembers_its_best(tmp_path: Path) -> None:
    script = {10: 1.0, 20: 3.0, 30: 2.0}
    kill(make_supervised(tmp_path, alg=Scripted(script), total_steps=30), at=25)
    assert make_supervised(tmp_path, alg=Scripted(script), total_steps=30).train() == 1.0
    assert checkpoint_step(tmp_path, "best") == 10


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_rows_behind(
    tmp_path: Path,
) -> None:
    kill(make_supervised(tmp_path, total_steps=20, log_every=2), at=9)
    make_supervised(tmp_path, total_steps=20, log_every=2).train()
    assert steps(tmp_path / "train.csv") == list(range(2, 21, 2))


def test_a_run_that_was_only_not_finished_officially_is_evaluated_and_returns(
    tmp_path: Path,
) -> None:
    """A checkpoint between evaluations may be where a shortened run ends."""
    kill(make_supervised(tmp_path, total_steps=40, eval_every=15, checkpoint_every=10), at=12)
    trainer = make_supervised(tmp_path, total_steps=10, eval_every=15, checkpoint_every=10)
    trainer.train()
    assert steps(tmp_path / "eval.csv") == [10]
    assert checkpoint_step(tmp_path, "best") == checkpoint_step(tmp_path, "last") == 10


def test_a_complete_run_returns_its_score_and_does_nothing(tmp_path: Path) -> None:
    score = make_supervised(tmp_path, total_steps=25).train()
    before = logged(tmp_path), sorted(os.listdir(tmp_path / "checkpoints"))
    assert make_supervised(tmp_path, total_steps=25).train() == score
    assert (logged(tmp_path), sorted(os.listdir(tmp_path / "checkpoints"))) == before


def test_an_end_that_is_passed_is_refused(tmp_path: Path) -> None:
    make_supervised(tmp_path, total_steps=30).train()
    before = (tmp_path / "train.csv").read_text()
    with pytest.raises(UserError, match=r"trainer.total_steps=20 is below the 30 steps"):
        make_supervised(tmp_path, total_steps=20).train()
    assert (tmp_path / "train.csv").read_text() == before


def test_a_checkpoint_that_is_lost_or_of_other_code_is_refused_and_nothing_overwritten(
    tmp_path: Path,
) -> None:
    make_supervised(tmp_path, total_steps=10).train()
    with pytest.raises(
        UserError, match=r"0000000010 does not fit this code or config: .*weights\.0"
    ):
        make_supervised(tmp_path, alg=Falling(), total_steps=20).train()
    (tmp_path / "checkpoints" / "0000000010").rename(tmp_path / "checkpoints" / "moved")
    with pytest.raises(UserError, match=r"no checkpoint of .* can be resumed from: there is none"):
        make_supervised(tmp_path, total_steps=20).train()
    assert steps(tmp_path / "train.csv") == [10]


@pytest.mark.parametrize("fails", [False, True])
def test_environments_are_closed_however_the_run_ends(tmp_path: Path, fails: bool) -> None:
    made: list[SyncVectorEnv] = []

    def make_env() -> SyncVectorEnv:
        made.append(vector())
        return made[-1]

    trainer = make_online(tmp_path, make_env=make_env, total_steps=30)
    kill(trainer, at=25) if fails else trainer.train()
    assert trainer.env.closed
    assert [env.closed for env in made] == [True]


def test_environments_are_closed_when_a_run_cannot_even_start(tmp_path: Path) -> None:
    make_online(tmp_path, total_steps=20).train()
    trainer = make_online(tmp_path, total_steps=10)
    with pytest.raises(UserError):
        trainer.train()
    assert trainer.env.closed


def test_the_status_tells_step_and_score(tmp_path: Path) -> None:
    trainer = make_supervised(tmp_path, alg=Scripted({10: 4.0, 20: 3.0}), total_steps=20)
    trainer.train()
    assert trainer.run.status.fields["step"] == 20
    assert trainer.run.status.fields["score"] == 3.0


def test_a_status_that_lags_its_checkpoint_is_put_right(tmp_path: Path) -> None:
    trainer = make_supervised(tmp_path, total_steps=20)
    score = trainer.train()
    (tmp_path / "status.json").unlink()  # it is written once a second at most
    resumed = make_supervised(tmp_path, total_steps=20)
    resumed.train()
    assert resumed.run.status.fields["step"] == 20
    assert resumed.run.status.fields["score"] == score


def test_the_policy_acts_for_the_weights_that_are_trained(tmp_path: Path) -> None:
    trainer = make_online(tmp_path, total_steps=10)
    trainer.train()
    obs = np.ones((1, 4), np.float32)
    action = trainer.policy(obs, step=0, explore=False)
    assert action == make_policy(trainer.alg)(obs, step=0, explore=False)


def test_no_step_asks_whether_a_part_keeps_a_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as sampling a batch."""
    kind, asked = type(OnlineDataset), []
    is_instance: Any = kind.__instancecheck__

    def note(protocol: Any, part: Any) -> bool:
        asked.append((protocol, part))
        return is_instance(protocol, part)

    monkeypatch.setattr(kind, "__instancecheck__", note)
    counts = []
    for total_steps in (20, 40):
        asked.clear()
        folder = tmp_path / str(total_steps)
        make_online(folder, total_steps=total_steps, eval_every=total_steps).train()
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0
