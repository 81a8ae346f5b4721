"""Images of any environment: channels first, stacks of frames, and what a replay buffer stores."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from research.config import build
from research.datasets.replay.buffer import ReplayBuffer
from research.envs.gymnasium_env import make_gymnasium
from research.envs.images import channels_first, stack_frames
from research.envs.vector import Vector
from tests.conftest import Load
from tests.envs.test_resumable import play, resume

SPOT = "tests.envs.spot:Spot-v0"
IMAGE = {"shows": "image"}


def make(frame_stack: int | None, num_envs: int = 1, **changes: Any) -> Vector:
    """Environments that show images, unless ``kwargs`` say otherwise."""
    arguments: dict[str, Any] = {
        "id": SPOT,
        "kwargs": IMAGE,
        "num_envs": num_envs,
        "subprocesses": False,
        "action_repeat": 1,
        "max_episode_steps": None,
        "flatten_obs": False,
        **changes,
    }
    return make_gymnasium(**arguments, frame_stack=frame_stack)


class Still(gymnasium.Env):
    """Shows its own space's smallest values."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self.observe(), 0.0, False, False, {}

    def observe(self) -> Any:
        numbers = np.arange(np.prod(self.observation_space.shape or ()))
        return (numbers + self.count).reshape(self.observation_space.shape).astype(np.uint8)


def box(*shape: int, dtype: type = np.uint8) -> spaces.Box:
    return spaces.Box(0, 255, shape, dtype)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((9, 7, 3), (3, 9, 7)),
        ((9, 7, 1), (1, 9, 7)),
        ((3, 9, 7), (3, 9, 7)),
        ((12, 9, 7), (12, 9, 7)),
        ((9, 4, 4), (9, 4, 4)),
        ((9, 7), (1, 9, 7)),
    ],
)
def test_channels_come_first_and_pixels_keep_their_places(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    env, still = channels_first(Still(box(*shape))), Still(box(*shape))
    assert env.observation_space == box(*expected)
    obs, before = env.reset()[0], still.reset()[0]
    moved = before.transpose(2, 0, 1) if expected[:1] == shape[2:] else before.reshape(expected)
    np.testing.assert_array_equal(obs, moved)
    assert obs.flags.c_contiguous


def test_other_arrays_are_left_as_they_are() -> None:
    for space in (box(9, 7, 3, dtype=np.float32), spaces.Discrete(3)):
        env = Still(space)
        assert channels_first(env) is env


def test_images_within_a_dict_come_channels_first_too() -> None:
    env = make(None, kwargs={})
    assert env.single_observation_space == spaces.Dict(
        image=box(1, 8, 8), sign=spaces.Box(-1, 1, (1,), np.float32)
    )
    obs, _ = env.reset(seed=[0])
    assert env.observation_space.contains(obs)
    assert (obs["image"] == obs["image"][:, :, :1]).all()
    assert (obs["image"] > 0).sum() == 8


@pytest.mark.parametrize("channels", [(1,), (3,), ()])
def test_a_stack_shows_the_newest_frames_oldest_first(channels: tuple[int, ...]) -> None:
    num = (channels or (1,))[0]
    env = stack_frames(channels_first(Still(box(*channels, 9, 7))), 3)
    assert env.observation_space == box(3 * num, 9, 7)
    still = Still(box(*channels, 9, 7))
    frames = [still.reset()[0].reshape(-1, 9, 7)]
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, np.concatenate(3 * frames))
    for _ in range(4):
        before, kept = obs, obs.copy()
        frames.append(still.step(0)[0].reshape(-1, 9, 7))
        obs = env.step(0)[0]
        np.testing.assert_array_equal(
            obs, np.concatenate([frames[0], *2 * frames[:1], *frames][-3:])
        )
        np.testing.assert_array_equal(before, kept)  # not written over
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, np.concatenate(3 * frames[:1]))


def test_images_within_a_dict_are_stacked_and_the_rest_is_the_newest() -> None:
    env, single = make(3, kwargs={}), make(None, kwargs={})
    assert env.single_observation_space == spaces.Dict(
        image=box(3, 8, 8), sign=spaces.Box(-1, 1, (1,), np.float32)
    )
    obs, shown = env.reset(seed=[1])[0], [single.reset(seed=[1])[0]]
    for _ in range(5):
        newest = [shown[0], shown[0], *shown][-3:]
        frames = [each["image"][0] for each in newest]
        np.testing.assert_array_equal(obs["image"][0], np.concatenate(frames))
        np.testing.assert_array_equal(obs["sign"], shown[-1]["sign"])
        obs = env.step(np.zeros((1, 1), np.float32))[0]
        shown.append(single.step(np.zeros((1, 1), np.float32))[0])


@pytest.mark.parametrize(("frame_stack", "told"), [(None, 1), (1, 1), (4, 4)])
@pytest.mark.parametrize("subprocesses", [False, True])
def test_the_vector_tells_how_many_frames_an_observation_shows(
    frame_stack: int | None, told: int, subprocesses: bool
) -> None:
    env = make(frame_stack, num_envs=2, subprocesses=subprocesses)
    assert env.metadata["frame_stack"] == told
    assert env.observation_space == spaces.Box(0, 255, (2, told, 8, 8), np.uint8)
    env.close()


def test_a_step_adds_one_frame_however_often_its_action_is_repeated() -> None:
    env, single = make(2, action_repeat=3), make(None, action_repeat=3)
    frames = [each.reset(seed=[1])[0] for each in (env, single)]
    for _ in range(3):
        before = frames[1]
        frames = [each.step(np.zeros((1, 1), np.float32))[0] for each in (env, single)]
        np.testing.assert_array_equal(frames[0][:, 0], before[:, 0])
        np.testing.assert_array_equal(frames[0][:, 1], frames[1][:, 0])


@pytest.mark.parametrize("subprocesses", [False, True])
def test_what_shows_no_images_is_refused(subprocesses: bool) -> None:
    words = r"4 needs images, uint8 \(H, W, C\).*got float32 \(11,\).*env.frame_stack=null"
    with pytest.raises(ValueError, match=words):
        make(4, id="Hopper-v5", kwargs={}, subprocesses=subprocesses)


def test_a_dict_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frame_stack=4 needs images.*got Dict"):
        stack_frames(Still(spaces.Dict(vector=spaces.Box(-1, 1, (2,)))), 4)


@pytest.mark.parametrize("other_processes", [False, True])
def test_episodes_go_on_in_another_vector_to_the_bit(other_processes: bool) -> None:
    env, seeds = make(3, num_envs=2), [0, 1]
    env.reset(seed=[*seeds])
    play(env, seeds, 7)
    states = env.get_attr("episode_state")
    twin = resume(lambda: make(3, num_envs=2, subprocesses=other_processes), seeds, states)
    assert play(twin, [*seeds], 14) == play(env, [*seeds], 14)
    for each in (env, twin):
        each.close()


@pytest.mark.parametrize(
    ("shows", "leaf"), [("+env.kwargs.shows=image", "obs"), ("env.flatten_obs=false", "obs.image")]
)
def test_the_yaml_stacks_and_the_buffer_stores_each_frame_once(
    load: Load, shows: str, leaf: str
) -> None:
    cfg = load(
        *("env=gymnasium", f"env.id={SPOT}", shows, "env.frame_stack=3"),
        *("dataset.capacity=100", "dataset.batch_size=64", "trusted_modules=[tests]"),
    )
    env = build(cfg.env)
    dataset = build(cfg.dataset, env, 0)
    assert isinstance(dataset, ReplayBuffer)
    assert dataset._obs[leaf].shape == (1, 8, 8)
    space = dataset.observation_space
    assert (space["image"] if isinstance(space, spaces.Dict) else space) == box(3, 8, 8)


def test_the_legacy_gym_stacks_as_well(load: Load) -> None:
    assert "frame_stack" in load("env=gym", "env.id=any").env
