"""Environments by their gymnasium id: the same numbers, scaled actions, clear refusals."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from research.envs.gymnasium_env import make_gymnasium, make_native
from research.envs.vector import Vector
from research.errors import UserError


def make(id: str, *, max_episode_steps: int | None = None, **kwargs: Any) -> Vector:
    return make_gymnasium(
        id=id,
        kwargs=kwargs,
        num_envs=1,
        subprocesses=False,
        action_repeat=1,
        max_episode_steps=max_episode_steps,
        flatten_obs=True,
    )


@pytest.mark.parametrize(("id", "scale"), [("Pendulum-v1", 2.0), ("Hopper-v5", 1.0)])
def test_steps_are_those_of_gymnasium(id: str, scale: float) -> None:
    env, reference, rng = make(id), gymnasium.make(id), np.random.default_rng(0)
    obs, expected = env.reset(seed=[3])[0], reference.reset(seed=3)[0]
    for _ in range(5):
        np.testing.assert_array_equal(obs[0], np.float32(expected))
        assert env.observation_space.contains(obs)
        action = rng.uniform(-1, 1, env.single_action_space.shape).astype(np.float32)
        obs, reward, *_ = env.step(action[None])
        expected, expected_reward, *_ = reference.step(scale * action)
        assert reward[0] == pytest.approx(expected_reward, rel=1e-6)


def test_the_time_limit_is_a_truncation_and_a_fall_a_termination() -> None:
    ends = {}
    for id in ("Pendulum-v1", "CartPole-v1"):
        env = make(id)
        env.reset(seed=[0])
        action = np.zeros_like(env.action_space.sample())
        ends[id] = [(int(term[0]), int(trunc[0])) for term, trunc in run_to_end(env, action)]
    assert ends["Pendulum-v1"] == [(0, 0)] * 199 + [(0, 1)]
    assert ends["CartPole-v1"][-1] == (1, 0)


def run_to_end(env: Vector, action: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
        _, _, terminated, truncated, _ = env.step(action)
        yield terminated, truncated
        if terminated[0] or truncated[0]:
            return


def test_discrete_actions_and_flat_spaces() -> None:
    assert make("CartPole-v1").single_action_space == spaces.Discrete(2)
    blackjack = make("Blackjack-v1")
    assert blackjack.single_observation_space.shape == (32 + 11 + 2,)
    assert blackjack.reset(seed=[0])[0].sum() == 3


def test_kwargs_reach_the_environment() -> None:
    env = make("Pendulum-v1", g=1.5)
    assert env.envs[0].unwrapped.g == 1.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Hoper-v5", {}, r"'Hoper-v5' .*; did you mean 'Hopper-v5'\?"),
        ("Mine-v0", {}, r"if a module of yours registers it, env\.id=module:Mine-v0 imports it"),
        ("Hopper-v9", {}, r"'Hopper-v9' .*v5.*; did you mean"),
        ("two words", {}, "Malformed environment ID"),
        ("Pendulum-v1", {"gg": 1.0}, "kwargs must suit 'Pendulum-v1': .*'gg'"),
    ],
)
def test_what_gymnasium_cannot_make_is_refused(
    id: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(id, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Pendulum-v1", {}, "'Pendulum-v1' has no vector class of its own; try env=gymnasium"),
        ("CartPol-v1", {}, r"'CartPol-v1' .*; did you mean 'CartPole-v1'\?"),
        ("CartPole-v1", {"gg": 1.0}, "kwargs must suit 'CartPole-v1': .*'gg'"),
    ],
)
def test_what_has_no_vector_class_is_refused(id: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_native(id=id, kwargs=kwargs, num_envs=2, max_episode_steps=None, flatten_obs=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [gymnasium.error.DependencyNotInstalled("pip install box2d"), ImportError("box2d")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(id: str, *, max_episode_steps: int | None) -> None:
        raise error

    monkeypatch.setattr(gymnasium, "make", fail)
    with pytest.raises(UserError, match=r"env\.id=LunarLander-v3: .*box2d"):
        make("LunarLander-v3")
