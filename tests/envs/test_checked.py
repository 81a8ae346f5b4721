"""What an environment must not return is one line, wherever it runs."""

import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import PassiveEnvChecker, TimeLimit

from research.envs.resumable import Resumable
from research.envs.vector import vectorize
from research.envs.wrappers import standardise
from research.errors import UserError

# A subprocess cannot import this file by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

FLOATS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
UNIT = spaces.Box(-1, 1, (1,), np.float32)
OBS = np.zeros(2, np.float32)


class Returns(gymnasium.Env):
    """Returns what it is told to; writes into its action."""

    action_space = UNIT

    def __init__(
        self, step: Any, reset: Any = (OBS, {}), observation_space: spaces.Space = FLOATS
    ) -> None:
        self.observation_space = observation_space
        self.returned_by_reset, self.returned_by_step = reset, step
        self.taken: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.returned_by_reset

    def step(self, action: np.ndarray) -> Any:
        self.taken.append(action.item())
        action *= 0
        return self.returned_by_step


class OldReset(Returns):
    """Begins its episodes as gym did before 0.26."""

    def reset(self) -> Any:  # type: ignore[override]
        return OBS


def step_of(obs: Any = OBS, reward: Any = 1.0) -> tuple[Any, ...]:
    return obs, reward, False, False, {}


WRONG_STEPS = [
    ((OBS, 1.0, False, {}), "step must return .*, got 4 values: .ndarray, float, bool, dict."),
    (OBS, "step must return .*, got one ndarray"),
    (step_of(reward=None), "a reward must be one number, got None"),
    (step_of(reward=np.ones(2)), "a reward must be one number, got array"),
    (step_of(np.zeros(3)), r"observation must be of shape \(2,\), as declared, got \(3,\)"),
]


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(env, 9)])
@pytest.mark.parametrize(("step", "message"), WRONG_STEPS)
def test_a_wrong_step_is_refused_in_one_line(
    step: Any, message: str, wrap: Callable[[gymnasium.Env], gymnasium.Env]
) -> None:
    made = wrap(PassiveEnvChecker(Returns(step)))
    env = Resumable(standardise(made, action_repeat=2, flatten_obs=True))
    env.reset()
    with pytest.raises(UserError, match=f"^<Returns instance>: {message}"):
        env.step(np.ones(1, np.float32))


@pytest.mark.parametrize("reset", [OBS, (OBS,), (OBS, 1.0), (OBS, {}, {})])
def test_a_reset_of_the_older_api_is_refused(reset: Any) -> None:
    env = standardise(Returns(step_of(), reset), action_repeat=1, flatten_obs=True)
    with pytest.raises(
        UserError, match=r"^<Returns instance>: reset must return \(obs, info\), go"
    ):
        env.reset()


def test_a_reset_that_takes_no_seed_is_refused_before_anything_is_run() -> None:
    with pytest.raises(
        ValueError, match=r"must take seed and options, .* takes no seed and no opt"
    ):
        standardise(OldReset(step_of()), action_repeat=1, flatten_obs=True)


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (spaces.Discrete(3), 3, r"observation must be one of Discrete\(3\), as declared, got 3"),
        (spaces.MultiBinary(3), [1, 0], r"of shape \(3,\), as declared, got \(2,\)"),
        (
            spaces.Dict(a=FLOATS),
            {"b": OBS},
            r"must have the keys \['a'\], as declared, got \['b'\]",
        ),
        (spaces.Dict(a=FLOATS), OBS, r"must have the keys \['a'\], as declared, got ndarray"),
        (spaces.Dict(a=FLOATS), {"a": OBS[:1]}, r"observation\['a'\] must be of shape \(2,\)"),
        (spaces.Tuple([FLOATS]), (OBS, OBS), "must be a tuple of 1, as declared, got 2 values"),
        (spaces.Tuple([FLOATS]), (OBS[:1],), r"observation\[0\] must be of shape \(2,\)"),
    ],
)
def test_an_observation_of_another_form_than_declared_is_refused(
    space: spaces.Space, obs: Any, message: str
) -> None:
    env = standardise(Returns(step_of(), (obs, {}), space), action_repeat=1, flatten_obs=True)
    with pytest.raises(UserError, match=message):
        env.reset()


@pytest.mark.parametrize("reward", [2, np.float32(2), np.array(2.0), np.array([2.0]), True])
def test_a_reward_of_one_number_is_that_number(reward: Any) -> None:
    env = standardise(Returns(step_of(reward=reward)), action_repeat=1, flatten_obs=True)
    env.reset()
    seen = env.step(np.ones(1, np.float32))[1]
    assert (type(seen), seen) == (float, float(np.asarray(reward).item()))


@pytest.mark.parametrize("subprocesses", [False, True])
def test_an_environment_may_write_into_its_action(subprocesses: bool) -> None:
    env = vectorize(
        lambda: Returns(step_of()),
        num_envs=1,
        subprocesses=subprocesses,
        action_repeat=2,
        flatten_obs=True,
    )
    env.reset(seed=[0])
    action = np.full((1, 1), 0.5, np.float32)
    env.step(action)
    assert action.item() == 0.5
    assert env.get_attr("taken") == ([0.5, 0.5],)
    env.close()
