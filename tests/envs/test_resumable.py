"""Resumable: every environment goes on in mid-episode to the bit, or says that it does not."""

import io
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from research.config import build
from research.envs.resumable import Resumable
from research.envs.vector import Vector
from research.envs.wrappers import standardise
from tests.envs.test_contract import NAMES, compose_env


def stored(state: Any) -> Any:
    """``state`` as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(convert(np.ndarray, torch.from_numpy, state), file)
    file.seek(0)
    return convert(torch.Tensor, torch.Tensor.numpy, torch.load(file, weights_only=True))


def convert(kind: type, function: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``function`` applied to what is of ``kind`` in it; the rest must be plain."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return {key: convert(kind, function, item) for key, item in value.items()}
    if isinstance(value, list):
        return [convert(kind, function, item) for item in value]
    if isinstance(value, kind):
        return function(value)
    assert value is None or type(value) in (bool, int, float, str), f"not plain: {value!r}"
    return value


def to_bytes(value: Any) -> Any:
    """``value`` with its arrays and numbers as bytes, for a comparison of every bit."""
    if isinstance(value, dict):
        return {key: to_bytes(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_bytes(item) for item in value]
    return np.asarray(value).tobytes()


def play(env: Vector, seeds: list[int], num_steps: int) -> list[Any]:
    """What a collector sees; ``seeds`` are those of the open episodes, before and after."""
    seen = []
    env.action_space.seed(num_steps)
    for _ in range(num_steps):
        step = env.step(env.action_space.sample())
        seen.append(to_bytes(step))
        over = step[2] | step[3]
        if over.any():
            seeds[:] = [seed + 100 * int(ends) for seed, ends in zip(seeds, over, strict=True)]
            seen.append(to_bytes(env.reset(seed=[*seeds], options={"reset_mask": over})))
    return seen


def resume(make: Callable[[], Vector], seeds: list[int], states: Any) -> Vector:
    """A new vector in the middle of the same episodes."""
    env = make()
    env.reset(seed=[*seeds], options={"reset_mask": np.ones(len(seeds), np.bool_)})
    env.set_attr("episode_state", [stored(state) for state in states])
    assert env.get_attr("is_restored") == (True,) * len(seeds)
    return env


CASES = [
    *[(name, f"env.num_envs={count}") for name in NAMES for count in (1, 3)],
    ("cheetah", "env.num_envs=2 env.subprocesses=true env.action_repeat=2"),
    ("cartpole_gym", "env.num_envs=2 env.subprocesses=true"),
    ("humanoid", "env.num_envs=1 env.flatten_obs=false env.action_repeat=3"),
    ("pendulum", "env.num_envs=1 env.action_repeat=2"),
    ("pendulum", "env.num_envs=2 env.action_repeat=2 env.max_episode_steps=45"),
    ("cheetah", "env.num_envs=2 env.action_repeat=3 env.max_episode_steps=100"),
    ("gym", "env.id=FrozenLake-v1 env.num_envs=2"),
]


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_episodes_go_on_in_another_vector(name: str, overrides: str) -> None:
    cfg = compose_env(name, *overrides.split())

    def make() -> Vector:
        return build(cfg)

    env = make()
    seeds = list(range(cfg.num_envs))
    env.reset(seed=[*seeds])
    play(env, seeds, 27)
    for num_steps in (30, 40):  # the second time from what was restored itself
        states = env.get_attr("episode_state")
        twin_seeds = [*seeds]
        twin = resume(make, seeds, states)
        assert play(twin, twin_seeds, num_steps) == play(env, seeds, num_steps)
        env.close()
        env = twin
    env.close()


FLOATS = spaces.Box(-np.inf, np.inf, (3, 2), np.float32)


class Walk(gymnasium.Env):
    """A random walk that can differ from others of its kind in all that a resumption can meet."""

    observation_space = spaces.Dict(
        {"frame": FLOATS, "pair": spaces.Tuple((spaces.Discrete(9), FLOATS))}
    )

    def __init__(
        self,
        action_space: spaces.Space | None = None,
        *,
        num_steps: int = 9,
        noise: float = 0.0,
        bonus: float = 0.0,
        fails_at: int | None = None,
    ) -> None:
        self.action_space = action_space or spaces.Discrete(3)
        self.num_steps, self.noise, self.bonus, self.fails_at = num_steps, noise, bonus, fails_at
        self.num_calls = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.normal(), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.steps < self.num_steps, "the episode was over"
        assert self.action_space.contains(action)
        if self.steps == self.fails_at:
            raise ZeroDivisionError("broken on purpose")
        self.num_calls += 1
        self.steps += 1
        flat = np.array(spaces.flatten(self.action_space, action), np.float64)
        self.position += float(self.np_random.normal() + flat @ np.arange(flat.size))
        self.position += self.noise * float(np.random.default_rng().normal())
        reward = self.position + self.bonus
        return self.observe(), reward, False, self.steps == self.num_steps, {}

    def observe(self) -> Any:
        frame = np.full((2, 3), self.position, np.float32)
        frame[0, 0] = self.steps
        return {"frame": frame.T, "pair": (self.steps % 9, -frame.T)}


class OwnState(Walk):
    """A walk that can be set to where it was."""

    def state_dict(self) -> dict[str, Any]:
        generator: Any = self.np_random.bit_generator.state
        generator["state"] = {name: str(value) for name, value in generator["state"].items()}
        return {"position": float(self.position), "steps": self.steps, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.steps = state["position"], state["steps"]
        numbers = {name: int(value) for name, value in state["generator"]["state"].items()}
        self.np_random.bit_generator.state = {**state["generator"], "state": numbers}

    def compute_obs(self) -> Any:
        return self.observe()


class Learned(Walk):
    """A walk whose ``state_dict`` holds what it has learned, not its episode."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("this is no state of an episode")


def walked(env: gymnasium.Env, num_steps: int) -> Resumable:
    """``env`` after some steps of an episode."""
    resumable = Resumable(env)
    resumable.action_space.seed(5)
    resumable.reset(seed=1)
    for _ in range(num_steps):
        resumable.step(resumable.action_space.sample())
    return resumable


def restored(env: gymnasium.Env, state: Any, seed: int = 1) -> Resumable:
    """``env`` brought to a state from the start of an episode."""
    resumable = Resumable(env)
    resumable.reset(seed=seed)
    resumable.episode_state = stored(state)
    return resumable


def assert_go_on_alike(env: Resumable, other: Resumable, num_steps: int) -> None:
    """The rest of the episode and a step of the next one."""
    env.action_space.seed(7)
    for _ in range(num_steps):
        action = env.action_space.sample()
        assert to_bytes(env.step(action)) == to_bytes(other.step(action))
    assert to_bytes(env.reset()) == to_bytes(other.reset())
    assert to_bytes(env.step(action)) == to_bytes(other.step(action))


ACTION_SPACES = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Dict({"turn": spaces.Discrete(3), "push": spaces.Box(-1, 1, (2,), np.float32)}),
    spaces.Tuple((spaces.MultiBinary(2), spaces.Dict({"push": spaces.Discrete(2)}))),
]


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_actions_of_every_kind_are_taken_again(action_space: spaces.Space, cut: int) -> None:
    env = walked(Walk(action_space), cut)
    other = restored(Walk(action_space), env.episode_state)
    assert other.is_restored
    assert_go_on_alike(env, other, 9 - cut)


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(env, 8)])
def test_only_the_actions_of_the_open_episode_are_kept(wrap: Callable[[Walk], Any]) -> None:
    env = walked(wrap(Walk()), 8)
    env.reset(seed=1)
    assert env.episode_state == walked(wrap(Walk()), 0).episode_state


def test_actions_may_be_written_into_one_array() -> None:
    box = spaces.Box(-1, 1, (2,), np.float32)
    env, action = walked(Walk(box), 0), np.zeros(2, np.float32)
    for value in (0.5, -0.25, 1.0):
        action[:] = value
        env.step(action)
    assert restored(Walk(box), env.episode_state).is_restored


def standard(action_repeat: int) -> Callable[[Walk], gymnasium.Env]:
    return lambda env: standardise(env, action_repeat=action_repeat, flatten_obs=True)


@pytest.mark.parametrize("wrap", [lambda env: env, standard(1), standard(2)])
def test_an_own_state_is_set_without_a_step(wrap: Callable[[Walk], gymnasium.Env]) -> None:
    env, walk = walked(wrap(OwnState()), 3), OwnState()
    other = restored(wrap(walk), env.episode_state)
    assert other.is_restored
    assert walk.num_calls == 0
    assert_go_on_alike(env, other, 1)


@pytest.mark.parametrize("make", [lambda: TimeLimit(OwnState(), 5), Learned])
def test_what_does_not_tell_its_whole_state_is_stepped_again(make: Callable[[], Any]) -> None:
    env = walked(make(), 3)
    other = restored(make(), env.episode_state)
    assert other.is_restored
    assert other.get_wrapper_attr("num_calls") == 3
    assert_go_on_alike(env, other, 2)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"noise": 1e-6}),
        ({}, {"bonus": 1e-9}),
        ({}, {"fails_at": 0}),
        ({}, {"fails_at": 4}),
        ({}, {"num_steps": 2}),
        ({}, {"num_steps": 5}),
        ({"num_steps": 5}, {}),
    ],
)
def test_an_environment_that_got_elsewhere_says_so(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    env = restored(Walk(**after), walked(Walk(**before), 5).episode_state)
    assert not env.is_restored
    assert to_bytes(env.reset(seed=2)) == to_bytes(Walk().reset(seed=2))


@pytest.mark.parametrize("make", [Walk, OwnState])
def test_another_episode_is_noticed(make: Callable[[], Walk]) -> None:
    state = walked(make(), 3).episode_state
    assert restored(make(), state, seed=1).is_restored
    assert not restored(make(), state, seed=2).is_restored


def test_an_own_state_that_shows_something_else_is_noticed() -> None:
    state = walked(OwnState(), 3).episode_state
    state["own"]["position"] += 1
    assert not restored(OwnState(), state).is_restored


GOOD = walked(Walk(), 3).episode_state


@pytest.mark.parametrize("make", [Walk, OwnState])
@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"checksum": 0},
        {"checksum": 0, "own": {"position": []}},
        {**GOOD, "num_actions": 4},
        {**GOOD, "num_actions": "3"},
        {**GOOD, "actions": None},
        {**GOOD, "actions": np.zeros((3, 2))},
        {**GOOD, "actions": {"turn": np.zeros(3)}},
    ],
)
def test_a_damaged_state_raises_nothing(make: Callable[[], Walk], state: Any) -> None:
    env = restored(make(), state)
    assert not env.is_restored
    assert to_bytes(env.reset(seed=2)) == to_bytes(Walk().reset(seed=2))
