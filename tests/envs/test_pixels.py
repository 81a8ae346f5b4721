"""Pixels: the frames of the suite, one per step, stacked in order; they go on in mid-episode."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from research.config import build
from research.envs.dm_control import make_dm_control
from research.envs.pixels import Pixels
from research.envs.rendering import find_renderer, import_suite
from research.envs.resumable import Resumable
from research.envs.vector import Vector
from research.errors import UserError
from tests.envs.test_contract import NAMES, compose_env
from tests.envs.test_resumable import play, resume, stored

PIXELS = ("env.pixels=true", "env.pixel_size=16")


def can_render() -> bool:
    try:
        return bool(find_renderer())
    except UserError:
        return False


pytestmark = pytest.mark.skipif(not can_render(), reason="no rendering library works here")


def make(**changes: Any) -> Vector:
    task = {"domain": "cheetah", "task": "run", "num_envs": 1, "subprocesses": False}
    state = {"action_repeat": 1, "flatten_obs": True, "height": 24, "width": 32, "camera_id": 0}
    pixels = {"max_episode_steps": None, "pixels": True, "pixel_size": 16, "frame_stack": 3}
    arguments: dict[str, Any] = {**task, **state, **pixels, **changes}
    return make_dm_control(**arguments)


def actions(num_steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (num_steps, 1, 6)).astype(np.float32)


def first(env: Vector) -> Any:
    """The Pixels of the first environment."""
    return env.envs[0].env  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in NAMES if "domain" in compose_env(name)])
def test_every_task_of_the_suite_can_be_observed_by_its_pixels(name: str) -> None:
    env = build(compose_env(name, *PIXELS))
    assert env.single_observation_space == gymnasium.spaces.Box(0, 255, (9, 16, 16), np.uint8)
    obs, _ = env.reset(seed=[0])
    next_obs, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs)
    assert env.observation_space.contains(next_obs)
    assert obs.std() > 1
    env.close()


def test_frames_are_those_of_the_suite_oldest_first_and_the_first_fills_the_stack() -> None:
    reference = import_suite().load("cheetah", "run", task_kwargs={"random": 7})
    env = make(action_repeat=2, camera_id=1)
    reference.reset()
    frames = [reference.physics.render(16, 16, 1)]
    obs, _ = env.reset(seed=[7])
    np.testing.assert_array_equal(obs[0], np.concatenate(3 * frames, axis=2).transpose(2, 0, 1))
    for action in actions(4):
        for _ in range(2):
            reference.step(action[0])
        frames.append(reference.physics.render(16, 16, 1))
        obs, *_ = env.step(action)
    expected = np.concatenate(frames[-3:], axis=2).transpose(2, 0, 1)
    np.testing.assert_array_equal(obs[0], expected)
    assert not np.array_equal(obs[0, :3], obs[0, 6:])


def test_a_step_renders_once_however_often_its_action_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = make(action_repeat=4)
    env.reset(seed=[0])
    inner, calls = first(env).inner, []
    render = inner.render_frame
    monkeypatch.setattr(inner, "render_frame", lambda *size: calls.append(size) or render(*size))
    env.step(actions(1)[0])
    assert calls == [(16, 16)]


def test_observations_are_not_written_over_by_later_steps() -> None:
    pixels = first(make())
    obs, _ = pixels.reset(seed=0)
    before = obs.copy()
    for action in actions(4):
        pixels.step(action[0])
    np.testing.assert_array_equal(obs, before)


def test_a_reset_shows_nothing_of_the_episode_before() -> None:
    env, fresh = make(), make()
    env.reset(seed=[1])
    for action in actions(3):
        env.step(action)
    np.testing.assert_array_equal(env.reset(seed=[2])[0], fresh.reset(seed=[2])[0])


def test_videos_keep_their_own_size() -> None:
    env = make()
    env.reset(seed=[0])
    assert first(env).render().shape == (24, 32, 3)
    assert env.step(actions(1)[0])[0].shape == (1, 9, 16, 16)


@pytest.mark.parametrize("subprocesses", [False, True])
@pytest.mark.parametrize(("pixels", "frame_stack"), [(False, 1), (True, 4)])
def test_the_vector_tells_how_many_frames_an_observation_shows(
    subprocesses: bool, pixels: bool, frame_stack: int
) -> None:
    env = make(subprocesses=subprocesses, pixels=pixels, frame_stack=4)
    assert env.metadata["frame_stack"] == frame_stack
    env.close()


def test_other_environments_show_one_frame() -> None:
    assert build(compose_env("pendulum")).metadata["frame_stack"] == 1


@pytest.mark.parametrize("other_processes", [False, True])
def test_episodes_go_on_in_another_vector_to_the_bit(other_processes: bool) -> None:
    env, seeds = make(num_envs=2, action_repeat=2), [0, 1]
    env.reset(seed=[*seeds])
    play(env, seeds, 7)
    states = env.get_attr("episode_state")
    changes: dict[str, Any] = {"num_envs": 2, "action_repeat": 2}
    twin = resume(lambda: make(**changes, subprocesses=other_processes), seeds, states)
    assert play(twin, [*seeds], 4) == play(env, [*seeds], 4)
    twin_again = resume(lambda: make(**changes), seeds, twin.get_attr("episode_state"))
    assert play(twin_again, [*seeds], 4) == play(env, [*seeds], 4)
    for each in (env, twin, twin_again):
        each.close()


@pytest.mark.parametrize("what", ["frame", "physics", "dtype", "shape"])
def test_a_state_that_shows_something_else_is_noticed(what: str) -> None:
    env, other = make(), make()
    env.reset(seed=[0])
    for action in actions(4):
        env.step(action)
    other.reset(seed=[0])
    state = stored(env.get_attr("episode_state")[0])
    own = state["own"]
    if what == "frame":
        own["frames"][0, 0, 0] ^= 1
    elif what == "physics":
        own["env"]["physics"][3] += 0.5  # an angle
    elif what == "dtype":
        own["frames"] = own["frames"].astype(np.int8)
    else:
        own["frames"] = own["frames"][3:]
    for is_restored, candidate in ((True, env.get_attr("episode_state")[0]), (False, state)):
        other.reset(seed=[0])
        other.set_attr("episode_state", [candidate])
        assert other.get_attr("is_restored") == (is_restored,)


def test_a_resumable_sets_pixels_without_a_step() -> None:
    resumable = make().envs[0]  # type: ignore[attr-defined]
    assert isinstance(resumable, Resumable)
    assert isinstance(resumable.stateful, Pixels)


def test_an_environment_without_frames_of_any_size_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels need an environment with frames of any size, got"):
        Pixels(gymnasium.make("Pendulum-v1"), pixel_size=16, frame_stack=1)
