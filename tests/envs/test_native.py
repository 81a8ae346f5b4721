"""Vector classes of their own: standard arrays in every mode, and faults in one line."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from research.envs.native import standardise_vector
from research.errors import UserError

PARTS = spaces.Dict(
    {
        "pose": spaces.Box(-9, 9, (2, 2), np.float64),
        "kind": spaces.Discrete(3, start=1),
        "choice": spaces.MultiDiscrete([2, 3]),
        "flags": spaces.Tuple([spaces.MultiBinary(2), spaces.Discrete(2)]),
    }
)


class Sampled(gymnasium.Env):
    """Observes samples of a space; an episode has two steps, and the reward is the action."""

    action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 5.0]), dtype=np.float64)

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observation_space.sample(), float(action @ [1, 100]), self.time == 2, False, {}


def sampled(space: spaces.Space, mode: AutoresetMode) -> VectorEnv:
    return SyncVectorEnv([lambda: Sampled(deepcopy(space))] * 2, autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_observations_become_the_vectors_that_gymnasium_flattens_them_to(
    mode: AutoresetMode,
) -> None:
    raw, env = sampled(PARTS, mode), sampled(PARTS, mode)
    env = standardise_vector(env, "Toy", flatten_obs=True)
    assert (env.single_observation_space.shape, env.single_observation_space.dtype) == (
        (4 + 3 + 5 + 4,),
        np.float32,
    )
    samples, results = list(raw.reset(seed=3)[:1]), list(env.reset(seed=3)[:1])
    for _ in range(5):
        samples_of_step, *_, infos = raw.step(np.zeros((2, 2)))
        obs, *_, standard = env.step(np.full((2, 2), [0.0, -1.0], np.float32))
        samples, results = [*samples, samples_of_step], [*results, obs]
        assert ("final_obs" in infos) == ("final_obs" in standard)
        if "final_obs" in infos:
            rows = [spaces.flatten(PARTS, final) for final in infos["final_obs"]]
            np.testing.assert_array_equal(standard["final_obs"], np.array(rows, np.float32))
    for sample, obs in zip(samples, results, strict=True):
        rows = [
            spaces.flatten(PARTS, one)
            for one in gymnasium.vector.utils.iterate(raw.observation_space, sample)
        ]
        np.testing.assert_array_equal(obs, np.array(rows, np.float32))
        assert obs.dtype == np.float32


def test_a_dict_stays_one_if_it_is_not_to_be_flattened_and_final_ones_are_zero_elsewhere() -> None:
    space = spaces.Dict({"a": spaces.Box(1, 2, (2,), np.float64)})
    env = standardise_vector(sampled(space, AutoresetMode.SAME_STEP), "Toy", flatten_obs=False)
    env.reset(seed=0)
    env.env.env.envs[1].time = 1  # type: ignore[attr-defined]
    obs, _, terminated, _, infos = env.step(np.zeros((2, 2), np.float32))
    assert terminated.tolist() == [False, True]
    assert obs["a"].dtype == infos["final_obs"]["a"].dtype == np.float32
    assert not infos["final_obs"]["a"][0].any()
    assert infos["final_obs"]["a"][1].all()


def test_actions_in_unit_range_are_scaled_to_the_bounds() -> None:
    space = spaces.Box(0, 1, (1,))
    env = standardise_vector(sampled(space, AutoresetMode.NEXT_STEP), "Toy", flatten_obs=True)
    assert env.single_action_space == spaces.Box(-1, 1, (2,), np.float32)
    env.reset(seed=0)
    reward = env.step(np.array([[-1, 1], [0.5, -0.5]], np.float32))[1]
    np.testing.assert_allclose(reward, [-2 + 500, 1 + 125])


class Odd(VectorEnv):
    """Returns whatever it was made with."""

    num_envs = 2
    single_observation_space = spaces.Box(-1, 1, (3,))
    observation_space = spaces.Box(-1, 1, (2, 3))
    single_action_space = spaces.Discrete(2)
    action_space = spaces.MultiDiscrete([2, 2])

    def __init__(self, result: Any) -> None:
        self.result = result
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros((2, 3)), {}

    def step(self, actions: Any) -> Any:
        return self.result


OBS, NO, YES = np.zeros((2, 3)), np.zeros(2), np.array([0, 1])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((OBS, NO, NO, {}), r"^Toy: step must return .*, infos\), got 4 values"),
        ((OBS[0], NO, NO, NO, {}), r"^Toy: observation must be of shape \(2, 3\), .* got \(3,\)"),
        ((OBS, OBS, NO, NO, {}), r"^Toy: reward must be 2 numbers, .* got .* shape \(2, 3\)"),
        ((OBS, NO, 1, NO, {}), r"^Toy: terminated must be 2 numbers, .* got .* shape \(\)"),
        ((OBS, NO, NO, YES, {}), r"^Toy: an environment .* must return infos\['final_obs'\]"),
    ],
)
def test_a_result_that_violates_the_api_is_refused_in_one_line(result: Any, message: str) -> None:
    env = standardise_vector(Odd(result), "Toy", flatten_obs=True)
    with pytest.raises(UserError, match=message) as error:
        env.step([0, 0])
    assert "\n" not in str(error.value)


def test_columns_and_numbers_in_place_of_booleans_are_taken() -> None:
    env = standardise_vector(
        Odd((OBS, [[1], [2]], YES, NO, {"final_obs": OBS})), "Toy", flatten_obs=True
    )
    _, reward, terminated, truncated, _ = env.step([0, 0])
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == (
        [1.0, 2.0],
        [False, True],
        [False, False],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda env: env.metadata.clear(), "'Toy' must reset itself, .*, got None"),
        (
            lambda env: setattr(env, "single_action_space", spaces.Box(-np.inf, np.inf, (1,))),
            "actions must be floats with finite bounds",
        ),
    ],
)
def test_what_cannot_be_standard_is_refused(
    change: Callable[[VectorEnv], None], message: str
) -> None:
    env = Odd(None)
    change(env)
    with pytest.raises(ValueError, match=message):
        standardise_vector(env, "Toy", flatten_obs=True)
