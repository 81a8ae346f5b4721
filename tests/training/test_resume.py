"""A run that was interrupted ends exactly as one that was not, whatever was damaged meanwhile."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

from research.datasets.replay.buffer import ReplayBuffer
from research.envs.vector import vectorize
from research.errors import Preempted, UserError
from research.status import Status
from research.training.collector import Collector
from research.training.records import events, table
from research.training.records.logger import Logger
from research.training.records.trackers.tensorboard import TensorBoard
from research.training.saving.checkpoint import load_checkpoint
from research.training.seed import seed_everything
from research.training.trainer import Trainer
from tests.training.saving.test_checkpoint import Dead
from tests.training.test_trainer import (
    Scripted,
    checkpoint_step,
    logged,
    make_supervised,
    make_trainer,
    off_policy,
    steps,
)
from tests.training.toys import Count, Regression, Toy, vector

PERIODS: Any = {"log_every": 7, "eval_every": 15, "checkpoint_every": 9}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Repeatable(Count):
    """``Count`` whose observations depend on the episode alone; reports each number twice."""

    def observe(self) -> np.ndarray:
        noise = np.random.default_rng([self.seed, self.steps]).random()
        return np.array([self.seed % 2**20, noise, self.steps, self.action], np.float32)

    @property
    def last_step(self) -> int:
        return self.seed % 9 + 3


def make_online(
    folder: Path, *, num_envs: int = 1, make: Callable[..., Any] = Repeatable, **options: Any
) -> Trainer:
    """Toy with a full little replay buffer, in an environment that can be resumed."""
    seed_everything(0)
    env = vectorize(make, num_envs=num_envs, subprocesses=False, action_repeat=1, flatten_obs=False)
    numbers: Any = {"capacity": 24, "batch_size": 8, "discount": 0.9, "n_step": 2}
    dataset = ReplayBuffer(env, 0, **numbers, storage="ram", device="cpu")
    dataset_folder_bytes = dataset._make_journal
    dataset._make_journal = lambda folder: small(dataset_folder_bytes(folder))
    schedule = partial(StepLR, step_size=8, gamma=0.5)
    options = {"total_steps": 40, **PERIODS, **options}
    return make_trainer(
        folder,
        Toy(),
        dataset,
        env,
        pace=off_policy(),
        schedule=schedule,
        **options,
    )


def small(journal: Any) -> Any:
    """A journal whose files are full after some rows."""
    journal.segment_bytes = 200
    return journal


def end_of(folder: Path, trainer: Trainer) -> dict[str, Any]:
    """Everything that a run leaves: rows, score, and state of all parts at its last step."""
    weights, state = load_checkpoint(folder / "checkpoints" / "last")
    assert isinstance(trainer.dataset, ReplayBuffer)
    batches = [trainer.dataset.sample() for _ in range(3)]
    state.pop("seconds")
    state["dataset"] = {**state["dataset"], "journal": None, "files": None}
    return {
        "rows": logged(folder),
        "weights": weights,
        "state": state,
        "batches": batches,
        "best": load_checkpoint(folder / "checkpoints" / "best").weights,
    }


def assert_same_end(one: Any, other: Any, where: str = "end") -> None:
    """Compare nested values to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_end(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_end(*pair, f"{where}[{index}]")
    elif isinstance(one, Tensor):
        assert one.equal(other), where
    else:
        assert one == other, where


def tell(trainer: Trainer, number: signal.Signals, *, at: int) -> None:
    """Send this process a signal while the update at this step is made."""
    learn = trainer.learn

    def learn_and_be_told(step: int) -> None:
        learn(step)
        if step == at:
            signal.raise_signal(number)

    trainer.learn = learn_and_be_told


class Poisoned(Repeatable):
    """Gives NaN at the last of 27 steps, in its reward or else in its observation."""

    def __init__(self, *, in_reward: bool) -> None:
        super().__init__()
        self.in_reward = in_reward

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.total_steps == 27 and self.in_reward:
            reward = float("nan")
        elif self.total_steps == 27:
            obs[1] = np.nan
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("in_reward", "what"), [(True, "a reward of nan"), (False, r"observation\[1\] = nan")]
)
def test_what_is_not_finite_ends_the_run_at_its_step_and_no_checkpoint_holds_it(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], in_reward: bool, what: str
) -> None:
    trainer = make_online(tmp_path / "poisoned", make=partial(Poisoned, in_reward=in_reward))
    with pytest.raises(UserError, match=rf"^environment 0 gave {what} at step 27, in the episode"):
        trainer.train()
    assert checkpoint_step(tmp_path / "poisoned", "last") == 18
    mended = make_online(tmp_path / "poisoned")
    mended.train()
    assert_same_end(end_of(tmp_path / "poisoned", mended), whole())


@pytest.fixture
def whole(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The end of a run that is not interrupted."""

    def train(**options: Any) -> dict[str, Any]:
        trainer = make_online(tmp_path / "whole", **options)
        trainer.train()
        return end_of(tmp_path / "whole", trainer)

    return train


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_run_that_is_told_to_stop_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path,
    whole: Callable[..., dict[str, Any]],
    num_envs: int,
    number: signal.Signals,
    signals_are_heard: None,
) -> None:
    """Between two log rows, inside episodes, before the first update, at a checkpoint."""
    expected = whole(num_envs=num_envs)
    for at in (4, 8, 12, 28, 36):
        trainer = make_online(tmp_path / "told", num_envs=num_envs)
        tell(trainer, number, at=at)
        with pytest.raises(
            Preempted, match=f"^{number.name}: stopped at step {at} of 40; resume with"
        ):
            trainer.train()
        assert checkpoint_step(tmp_path / "told", "last") == at
    trainer = make_online(tmp_path / "told", num_envs=num_envs)
    trainer.train()
    assert_same_end(end_of(tmp_path / "told", trainer), expected)


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], signals_are_heard: None
) -> None:
    expected = whole()
    trainer = make_online(tmp_path / "told")

    def make_env() -> Any:
        env = vector()
        step = env.step

        def step_and_be_told(actions: Any) -> Any:
            if trainer.step == 30:
                signal.raise_signal(signal.SIGTERM)
            return step(actions)

        env.step = step_and_be_told
        return env

    trainer.evaluator.make_env = make_env
    with pytest.raises(Preempted, match="stopped at step 30"):
        trainer.train()
    assert steps(tmp_path / "told" / "eval.csv") == [15]
    assert load_checkpoint(tmp_path / "told" / "checkpoints" / "last").state["evaluated_step"] == 15
    trainer = make_online(tmp_path / "told")
    trainer.train()
    assert_same_end(end_of(tmp_path / "told", trainer), expected)


def test_a_signal_while_a_failed_run_closes_does_not_hide_the_failure(
    tmp_path: Path, signals_are_heard: None
) -> None:
    trainer = make_online(tmp_path / "failed")

    def fail(action: Any) -> None:
        raise ZeroDivisionError

    trainer.env.step = fail
    trainer.env.close = partial(signal.raise_signal, signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        trainer.train()


@pytest.mark.parametrize("where", ["reset", "step"])
def test_a_signal_during_an_evaluation_does_not_wait_for_a_step_that_hangs(
    tmp_path: Path,
    whole: Callable[..., dict[str, Any]],
    signals_are_heard: None,
    where: str,
) -> None:
    expected = whole()
    trainer = make_online(tmp_path / "told")

    def hang(*args: Any, **kwargs: Any) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(60)
        raise AssertionError("the signal was not heard")

    def make_env() -> Any:
        env = vector()
        setattr(env, where, hang)
        return env

    trainer.evaluator.make_env = make_env
    with pytest.raises(Preempted, match="stopped at step 15"):
        trainer.train()
    trainer = make_online(tmp_path / "told")
    trainer.train()
    assert_same_end(end_of(tmp_path / "told", trainer), expected)


@contextmanager
def death(monkeypatch: pytest.MonkeyPatch, *, after: int) -> Iterator[None]:
    """Whatever changes the disk works ``after`` times and never again, once perhaps by half."""
    left = after

    def mortal(function: Callable[..., Any], half: Callable[..., Any] | None = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                if half is not None and left == -1:
                    half(*args)
                raise Dead
            return function(*args, **kwargs)

        return call

    def remove_half(folder: Path, **_: Any) -> None:
        next(iter(sorted(folder.glob("*"))), folder / "nothing").unlink(missing_ok=True)

    write, add = os.write, table.append
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", mortal(os.replace))
        patch.setattr(os, "write", mortal(write, lambda file, data: write(file, data[:3])))
        patch.setattr(shutil, "rmtree", mortal(shutil.rmtree, remove_half))
        for name in ("rename", "mkdir", "symlink_to", "unlink", "touch"):
            patch.setattr(Path, name, mortal(getattr(Path, name)))
        for module in (table, events):
            patch.setattr(module, "append", mortal(add, lambda path, data: add(path, data[:7])))
        yield


def test_death_at_any_change_of_the_disk_changes_nothing(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"num_envs": 2, "total_steps": 28, "log_every": 8, "eval_every": 14}
    monkeypatch.setattr(Status, "write", lambda self: None)  # its own tests kill it
    expected = whole(**options)
    for instant in count():
        folder = tmp_path / str(instant)
        trainer = make_online(folder, **options)
        try:
            with death(monkeypatch, after=instant):
                trainer.train()
        except Dead:
            trainer = make_online(folder, **options)
            trainer.train()
            assert_same_end(end_of(folder, trainer), expected)
            shutil.rmtree(folder)
        else:
            break
    assert instant > 60


def test_time_makes_checkpoints_and_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Regression):
        def draw(self, batch: Any, step: Tensor) -> Tensor:
            now[0] += 1.0
            return super().draw(batch, step)

    saved = []
    periods: Any = {"log_every": 10, "eval_every": 25, "checkpoint_every": None}
    trainer = make_supervised(
        tmp_path, alg=Slow(), total_steps=50, checkpoint_minutes=10 / 60, **periods
    )
    save = trainer.save
    trainer.save = lambda *, is_best: (saved.append(trainer.step), save(is_best=is_best))[1]
    trainer.train()
    assert saved == [10, 20, 25, 35, 45, 50]
    assert steps(tmp_path / "train.csv") == [10, 20, 25, 30, 40, 50]


# What is damaged


def interrupt(folder: Path, *, at: int, **options: Any) -> None:
    """A run that ended with checkpoints of the step and of that before."""
    trainer = make_online(folder, **options)
    tell(trainer, signal.SIGTERM, at=at)
    with pytest.raises(Preempted):
        trainer.train()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def be_of_another_version(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("weights.pt", cut, "is damaged or not a checkpoint"),
        ("state.pt", cut, "is damaged or not a checkpoint"),
        ("state.pt", Path.unlink, "is missing"),
        ("manifest.json", cut, "is damaged"),
        ("manifest.json", Path.unlink, "is missing"),
        ("manifest.json", be_of_another_version, "is of version 2; this code reads version 1"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_is_used(
    tmp_path: Path,
    whole: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    signals_are_heard: None,
    file: str,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    expected = whole()
    folder = tmp_path / "damaged"
    interrupt(folder, at=31)
    damage(folder / "checkpoints" / "last" / file)
    trainer = make_online(folder)
    with caplog.at_level(logging.INFO):
        trainer.train()
    assert reason in caplog.text
    assert "set aside as damaged-0000000031" in caplog.text
    assert "resumed at step 30 of 40" in caplog.text
    assert (folder / "checkpoints" / "damaged-0000000031").is_dir()
    assert_same_end(end_of(folder, trainer), expected)


def test_of_rows_that_are_damaged_those_before_are_used(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], signals_are_heard: None
) -> None:
    expected = whole()
    folder = tmp_path / "damaged"
    interrupt(folder, at=31)
    newest = max((folder / "checkpoints" / "data").iterdir())
    os.truncate(newest, newest.stat().st_size - 1)
    trainer = make_online(folder)
    trainer.train()
    assert (folder / "checkpoints" / "damaged-0000000031").is_dir()
    assert_same_end(end_of(folder, trainer), expected)


def test_the_best_of_a_checkpoint_that_is_set_aside_is_found_again(
    tmp_path: Path, signals_are_heard: None
) -> None:
    """The checkpoint before knows an earlier best, which must still be there."""
    script = {10: 2.0, 20: 3.0, 30: 1.0, 40: 4.0}
    make = partial(make_scripted, script, tmp_path)
    trainer = make()
    save = trainer.save

    def save_and_die(*, is_best: bool) -> None:
        save(is_best=is_best)
        if trainer.step == 30:
            raise Dead

    trainer.save = save_and_die
    with pytest.raises(Dead):
        trainer.train()
    assert checkpoint_step(tmp_path, "best") == 30
    cut(tmp_path / "checkpoints" / "0000000030" / "weights.pt")
    trainer = make()
    tell(trainer, signal.SIGTERM, at=21)
    with pytest.raises(Preempted):
        trainer.train()
    assert checkpoint_step(tmp_path, "best") == 10
    assert make().train() == 1.0
    assert checkpoint_step(tmp_path, "best") == 30


def make_scripted(script: dict[int, float], folder: Path) -> Trainer:
    return make_supervised(folder, alg=Scripted(script), total_steps=40)


def test_where_no_checkpoint_is_whole_nothing_is_touched(
    tmp_path: Path, signals_are_heard: None
) -> None:
    interrupt(tmp_path, at=31)
    for path in (tmp_path / "checkpoints").glob("0*/state.pt"):
        cut(path)
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint of .* can be resumed from: .*state.pt is"):
        make_online(tmp_path).train()
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_last_checkpoint_that_was_chosen_by_hand_is_gone_on_from(
    tmp_path: Path, whole: Callable[..., dict[str, Any]], signals_are_heard: None
) -> None:
    expected = whole()
    folder = tmp_path / "told"
    interrupt(folder, at=31)
    (folder / "checkpoints" / "last").unlink()
    (folder / "checkpoints" / "last").symlink_to("0000000030")
    trainer = make_online(folder)
    with closing(trainer):
        trainer.start()
        assert trainer.step == 30
    trainer = make_online(folder)
    trainer.train()
    assert_same_end(end_of(folder, trainer), expected)


def test_a_run_that_is_stopped_before_its_next_step_writes_nothing(
    tmp_path: Path, signals_are_heard: None
) -> None:
    interrupt(tmp_path, at=31)
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    trainer = make_online(tmp_path)
    start = trainer.start
    trainer.start = lambda: (start(), signal.raise_signal(signal.SIGTERM))[0]
    with pytest.raises(Preempted, match="stopped at step 31"):
        trainer.train()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == before


def test_what_a_checkpoint_follows_is_on_the_disk_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs, rows and its own files, at the instant when ``last`` comes to name it."""
    synced: dict[int, int] = {}

    def fsync(descriptor: int) -> None:
        file = os.fstat(descriptor)
        synced[file.st_ino] = file.st_size

    def replace(source: Path, target: Path) -> None:
        replace_really(source, target)
        if Path(target).name == "last":
            files = [*tmp_path.glob("*.csv"), *tmp_path.glob("events*")]
            files += [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
            stats = {path: path.stat() for path in files}
            checked.append([path for path, s in stats.items() if synced.get(s.st_ino) != s.st_size])

    checked: list[list[Path]] = []
    replace_really = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    trainer = make_online(tmp_path)
    trainer.logger = Logger(tmp_path, [TensorBoard(tmp_path)])
    trainer.train()
    assert len(checked) == 7
    assert not any(checked), checked


def test_no_more_is_kept_than_asked_for(tmp_path: Path) -> None:
    make_online(tmp_path, keep_last=3, eval_every=40).train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["0000000027", "0000000036", "0000000040", "best", "data", "last"]


# What cannot be repeated


class Moody(Repeatable):
    """Observes something else in every process."""

    def reset(self, **arguments: Any) -> Any:
        self.mood = next(MOODS)
        return super().reset(**arguments)

    def observe(self) -> np.ndarray:
        return super().observe() + np.array([0, self.mood, 0, 0], np.float32)


MOODS = count()


def test_an_environment_that_is_not_deterministic_is_reported_once_and_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, signals_are_heard: None
) -> None:
    interrupt(tmp_path, at=24, num_envs=3, make=Moody, total_steps=42)
    saved = load_checkpoint(tmp_path / "checkpoints" / "last").state["collector"]
    trainer = make_online(tmp_path, num_envs=3, make=Moody, total_steps=42)
    tell(trainer, signal.SIGTERM, at=27)
    with pytest.raises(Preempted):
        trainer.train()
    assert caplog.text.count("3 of 3 environments could not be restored") == 1
    assert isinstance(trainer.collector, Collector)
    begun = np.array(saved["num_episodes"]) + 1
    assert (trainer.collector.num_episodes >= begun).all()
    assert steps(tmp_path / "train.csv") == sorted(set(steps(tmp_path / "train.csv")))
    make_online(tmp_path, num_envs=3, make=Moody, total_steps=42).train()


class SometimesMoody(Moody):
    """Only in episodes with an odd seed."""

    def observe(self) -> np.ndarray:
        return super().observe() if self.seed % 2 else Repeatable.observe(self)


def test_of_several_environments_those_that_can_go_on_do(
    tmp_path: Path, signals_are_heard: None
) -> None:
    interrupt(tmp_path, at=24, num_envs=4, make=SometimesMoody)
    saved = load_checkpoint(tmp_path / "checkpoints" / "last").state["collector"]
    moody = np.array(saved["episode_seeds"]) % 2 == 1
    assert 0 < moody.sum() < 4
    trainer = make_online(tmp_path, num_envs=4, make=SometimesMoody)
    with closing(trainer):
        trainer.start()
        assert isinstance(trainer.collector, Collector)
        np.testing.assert_array_equal(trainer.collector.obs[~moody], saved["obs"][~moody])
        assert (trainer.collector.obs[moody][:, 2] == 0).all()
        assert (saved["obs"][moody][:, 2] > 0).all()
        assert trainer.collector.episode_seeds[0] is not None
        begun = trainer.collector.num_episodes - np.array(saved["num_episodes"])
        np.testing.assert_array_equal(begun, moody)


# What is configured otherwise


def test_changed_optimizers_and_schedules_take_effect_in_a_resumed_run(tmp_path: Path) -> None:
    adam = partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.9))
    make_supervised(tmp_path, alg=Regression(optim=adam), total_steps=10).train()
    adam = partial(torch.optim.Adam, lr=0.2, betas=(0.7, 0.9))
    trainer = make_supervised(tmp_path, alg=Regression(optim=adam), total_steps=20)
    trainer.start()
    assert trainer.learner.descents is not None
    optim = trainer.learner.descents["line"].optim
    (group,) = optim.param_groups
    assert (group["lr"], group["betas"]) == (0.2, (0.7, 0.9))
    (moments,) = list(optim.state.values())[:1]
    assert moments["step"] == 10
    schedule = partial(StepLR, step_size=4, gamma=0.5)
    trainer = make_supervised(
        tmp_path, alg=Regression(optim=adam), schedule=schedule, total_steps=20
    )
    trainer.start()
    assert trainer.learner.take_metrics()["lr"] == pytest.approx(0.2 * 0.5**2)
    trainer.train()
