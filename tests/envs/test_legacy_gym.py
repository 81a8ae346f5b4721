"""Environments of the legacy gym package behave as they do there."""

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from research.envs.legacy_gym import convert_space, make_legacy_gym
from research.envs.vector import Vector
from research.errors import UserError


@pytest.fixture
def gym() -> Any:
    return pytest.importorskip("gym", reason="needs pip install -e '.[gym]'")


def make(id: str, *, max_episode_steps: int | None = None, **kwargs: Any) -> Vector:
    return make_legacy_gym(
        id=id,
        kwargs=kwargs,
        num_envs=1,
        subprocesses=False,
        action_repeat=1,
        max_episode_steps=max_episode_steps,
        flatten_obs=True,
    )


def test_steps_are_those_of_gym(gym: Any) -> None:
    env = make("Pendulum-v1")
    reference = gym.make("Pendulum-v1", disable_env_checker=True)
    obs, expected = env.reset(seed=[3])[0], reference.reset(seed=3)[0]
    ends = []
    for action in np.linspace(-1, 1, 200, dtype=np.float32):
        np.testing.assert_array_equal(obs[0], expected)
        obs, reward, terminated, truncated, _ = env.step(np.array([[action]]))
        expected, expected_reward, *_ = reference.step(np.array([2 * action]))
        assert reward[0] == pytest.approx(expected_reward, rel=1e-6)
        ends.append((bool(terminated[0]), bool(truncated[0])))
    assert ends == [(False, False)] * 199 + [(False, True)]


@pytest.fixture
def old(gym: Any) -> Any:
    """An environment of the API before gym 0.26."""

    class Old(gym.Env):
        observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def seed(self, seed: int) -> None:
            self.start = seed

        def reset(self) -> np.ndarray:
            self.steps = self.start
            return np.array([self.steps], np.float32)

        def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
            self.steps += 1
            return np.array([self.steps], np.float32), 1.0, self.steps == 5, {}

    return Old


def test_environments_of_the_older_api_run_with_gyms_own_adapter(gym: Any, old: Any) -> None:
    gym.register("Old-v0", old, max_episode_steps=3)
    env = make("Old-v0", apply_api_compatibility=True)
    for seed, ends in ((3, [(0, 0), (1, 0)]), (0, [(0, 0), (0, 0), (0, 1)])):
        assert env.reset(seed=[seed])[0].item() == seed
        steps = [env.step(np.array([0])) for _ in ends]
        assert [(int(step[2][0]), int(step[3][0])) for step in steps] == ends


def test_without_the_adapter_the_older_api_is_refused_and_the_adapter_named(
    gym: Any, old: Any
) -> None:
    gym.register("Older-v0", old, max_episode_steps=3)
    with pytest.raises(ValueError, match=r"no seed and no options; .*apply_api_compatibility=true"):
        make("Older-v0")


def test_a_step_of_the_older_api_alone_is_refused_in_one_line(gym: Any, old: Any) -> None:
    class Half(old):
        def reset(self, *, seed: int, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            self.seed(seed)
            return super().reset(), {}

    gym.register("Half-v0", Half, max_episode_steps=3)
    env = make("Half-v0")
    env.reset(seed=[1])
    with pytest.raises(UserError, match=r"^Half-v0: step must return .*, got 4 values"):
        env.step(np.array([0]))


def test_spaces_keep_their_values(gym: Any) -> None:
    old = gym.spaces
    low, high = np.array([[-1, 0], [1, 2]], np.float32)
    box = old.Box(low, high, dtype=np.float32)
    both = old.Dict({"z": old.Tuple([box, old.MultiBinary(3)]), "a": old.Discrete(4, start=-1)})
    pair = spaces.Tuple([spaces.Box(low, high), spaces.MultiBinary(3)])
    assert convert_space(both) == spaces.Dict({"z": pair, "a": spaces.Discrete(4, start=-1)})
    assert convert_space(old.MultiDiscrete([2, 3])) == spaces.MultiDiscrete([2, 3])
    with pytest.raises(ValueError, match="gymnasium has no space for Text"):
        convert_space(old.Text(3))


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Pendulm-v1", {}, r"'Pendulm-v1' .*; did you mean 'Pendulum-v1'\?"),
        ("Pendulum-v1", {"gg": 1.0}, "kwargs must suit 'Pendulum-v1': .*'gg'"),
    ],
)
def test_what_gym_cannot_make_is_refused(
    gym: Any, id: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(id, **kwargs)


def test_without_gym_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym", None)
    with pytest.raises(ImportError):
        importlib.import_module("gym")
    with pytest.raises(UserError, match=r"pip install -e '\.\[gym\]'"):
        make("Pendulum-v1")
