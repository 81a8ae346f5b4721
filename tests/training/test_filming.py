"""Frames of episodes: the right ones, at the right speed, and without any effect on training."""

import csv
import random
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.config import build_env
from research.errors import UserError
from research.training import filming
from research.training.evaluation import run_episodes
from research.training.filming import Camera, Videos, frame_rate
from research.training.infos import NO_INFOS
from research.training.records.logger import Logger
from research.training.records.trackers.tensorboard import TensorBoard
from tests.conftest import Load
from tests.training.test_trainer import make_online, make_supervised
from tests.training.toys import Count, Toy, make_policy


class Shown(Count):
    """Renders its number of steps as a grey."""

    metadata = {"render_fps": 50}  # noqa: RUF012, as gymnasium's

    def render(self) -> Any:
        _ = random.random(), np.random.rand(), torch.rand(1)  # as a careless environment
        return np.full((6, 8, 3), 10 * self.steps, np.uint8)


def shown(num_envs: int = 1, kind: Callable[..., gymnasium.Env] = Shown) -> SyncVectorEnv:
    make = partial(kind, length=9, truncates=True)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def film(videos: Videos, step: int = 40) -> list[int]:
    """The greys of a film, as numbers of steps."""
    videos.begin(0)
    frames, _ = videos.film(
        make_policy(Toy()), seed=0, step=step, infos=NO_INFOS, interruptible=nullcontext
    )
    return [int(frame[0, 0, 0]) // 10 for frame in frames]


def test_frames_are_left_out_at_true_speed() -> None:
    videos = Videos(10, partial(shown, 2))
    assert film(videos) == [0, 2, 4, 6, 8]
    assert frame_rate(videos.env) == 50
    frames, fps = videos.film(
        make_policy(Toy()), seed=0, step=0, infos=NO_INFOS, interruptible=nullcontext
    )
    assert frames.shape == (5, 6, 8, 3)
    assert fps == 25


def test_a_long_episode_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filming, "MAX_FRAMES", 3)
    assert film(Videos(10, shown)) == [0, 2, 4]


class Chance(Shown):
    """Rewards by the global generators."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, *ends, info = super().step(action)
        reward = random.random() + np.random.rand() + torch.rand(1).item()
        return obs, reward, ends[0], ends[1], info


def test_an_episode_does_not_depend_on_who_watches() -> None:
    seen: list[int] = []
    env, policy = shown(2, Chance), make_policy(Toy())
    camera = Camera(
        env, num_episodes=2, every=1, max_frames=None, take=lambda episode, _: seen.append(episode)
    )
    watched = run_episodes(policy, env, num_episodes=3, seed=0, step=0, look=camera)
    assert run_episodes(policy, shown(2, Chance), num_episodes=3, seed=0, step=0) == watched
    assert (seen.count(0), seen.count(1), seen.count(2)) == (10, 10, 0)


@pytest.mark.parametrize(
    ("env", "fps"),
    [
        (["env=walker"], Fraction(40)),
        (["env=cheetah", "env.action_repeat=4"], Fraction(25)),
        (["env=dmc", "env.domain=swimmer", "env.task=swimmer6"], Fraction(100, 3)),
        (["env=cartpole_gym"], Fraction(50)),
    ],
)
def test_the_speed_is_the_environments(load: Load, env: list[str], fps: Fraction) -> None:
    assert frame_rate(build_env(load(*env).env, renders=True)) == fps


class Blind(Count):
    def render(self) -> Any:
        return None


class Grey(Count):
    def render(self) -> Any:
        return np.zeros((6, 8), np.uint8)


class Lacking(Count):
    def render(self) -> Any:
        raise DependencyNotInstalled("pygame is not installed")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Count, "cannot be rendered"),
        (Blind, r"must return uint8 \(H, W, 3\), got NoneType"),
        (Grey, r"must return uint8 \(H, W, 3\), got uint8 \(6, 8\)"),
        (Lacking, r"pygame is not installed; pip install -e '\.\[results\]'"),
    ],
)
def test_what_cannot_be_filmed_is_one_line(kind: type[Count], words: str) -> None:
    with pytest.raises(UserError, match=rf"trainer\.video_every=10 needs frames: .*{words}"):
        Videos(10, partial(shown, 1, kind)).begin(0)


def test_environments_are_made_again_to_be_rendered(load: Load) -> None:
    cfg = load("env=cartpole_gym", "env.subprocesses=true", "env.num_envs=2")
    env = build_env(cfg.env, renders=True)
    assert isinstance(env, SyncVectorEnv)
    assert env.envs[0].render_mode == "rgb_array"
    assert cfg.env.subprocesses is True
    assert "render_mode" not in cfg.env.kwargs


def rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    """All logs but for the clock's seconds."""
    found = {}
    for path in folder.glob("*.csv"):
        if path.stem != "time":
            with path.open() as file:
                found[path.stem] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    return found


def make_env(*, renders: bool = False) -> SyncVectorEnv:
    return shown(2)


def train(folder: Path, *, steps: int = 45, **options: Any) -> Any:
    trainer = make_online(
        folder, make_env=make_env, total_steps=steps, eval_every=10, seed=3, **options
    )
    trainer.logger = Logger(folder, [TensorBoard(folder)])
    trainer.train()
    return trainer


def test_videos_change_no_number_and_come_with_the_first_evaluation_after(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    filmed = train(tmp_path / "filmed", video_every=15)
    assert rows(tmp_path / "filmed") == rows(tmp_path / "plain")
    for name, weight in plain.alg.state_dict().items():
        torch.testing.assert_close(filmed.alg.state_dict()[name], weight, rtol=0, atol=0)
    videos = sorted(path.name for path in (tmp_path / "filmed" / "videos").iterdir())
    assert videos == ["20.mp4", "30.mp4", "45.mp4"]
    images = EventAccumulator(str(tmp_path / "filmed")).Reload().Images("eval/video")
    assert [image.step for image in images] == [20, 30, 45]
    assert (images[0].width, images[0].height) == (8, 6)
    assert not (tmp_path / "plain" / "videos").exists()


def test_a_resumed_run_goes_on_filming(tmp_path: Path) -> None:
    train(tmp_path, steps=20, video_every=30)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["20.mp4"]  # its last one
    train(tmp_path, steps=50, video_every=30)
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == ["20.mp4", "30.mp4", "50.mp4"]


def test_the_film_is_of_the_first_episode_of_the_evaluation(tmp_path: Path) -> None:
    seeds: list[int | None] = []

    class Noted(Shown):
        def reset(self, **keywords: Any) -> Any:
            seeds.append(keywords["seed"])
            return super().reset(**keywords)

    videos = Videos(10, partial(shown, 2, Noted))
    film(videos, step=40)
    filmed = seeds[2:4]
    seeds.clear()
    run_episodes(make_policy(Toy()), shown(2, Noted), num_episodes=1, seed=0, step=40)
    assert filmed == seeds


def test_a_run_without_an_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="video_every=10 needs an environment; set it to null"):
        make_supervised(tmp_path, video_every=10, total_steps=10)
