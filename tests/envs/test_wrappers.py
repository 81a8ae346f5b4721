"""What every environment wears: repeats added up by hand, exact boxes, float32."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from research.envs.checked import Checked
from research.envs.wrappers import ActionRepeat, scale_to, standardise

Step = tuple[Any, float, bool, bool, dict[str, Any]]
LARGEST = float(np.finfo(np.float32).max)
UNIT = spaces.Box(-1, 1, (1,), np.float32)


class Scripted(gymnasium.Env):
    """Plays back steps, and keeps the actions it was given."""

    def __init__(
        self, steps: list[Step], obs_space: spaces.Space, action_space: spaces.Space
    ) -> None:
        self.steps, self.actions = iter(steps), []
        self.observation_space, self.action_space = obs_space, action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return next(self.steps)[0], {}

    def step(self, action: Any) -> Step:
        self.actions.append(action)
        return next(self.steps)


def rewards(*values: float, ends: str = "") -> list[Step]:
    """Steps numbered from 1 with these rewards; the last one ends the episode as told."""
    steps = [
        (np.array([i + 1], np.float32), value, False, False, {}) for i, value in enumerate(values)
    ]
    obs, reward, *_ = steps[-1]
    steps[-1] = (obs, reward, ends == "terminated", ends == "truncated", {})
    return steps


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (rewards(1, 2, 4, 8), (3, 7, False, False)),
        (rewards(1, 2, ends="terminated"), (2, 3, True, False)),
        (rewards(1, ends="truncated"), (1, 1, False, True)),
        (rewards(1, 2, 4, ends="terminated"), (3, 7, True, False)),
    ],
)
def test_repeat_adds_rewards_up_to_the_end_of_the_episode(steps: list[Step], expected: Any) -> None:
    env = Scripted(steps, UNIT, UNIT)
    obs, *rest, info = ActionRepeat(env, 3).step("push")
    assert (obs.item(), *rest) == expected
    assert info.get("action_repeat/skipped_frames", 0) == 3 - expected[0]
    assert env.actions == ["push"] * int(expected[0])


def test_infos_are_added_but_for_success_distances_and_what_is_no_number() -> None:
    infos = [
        {"success": 1.0, "distance_to_goal": 5.0, "energy": 1, "hit": True, "name": "a"},
        {"success": 1.0, "distance_to_goal": 3.0, "energy": np.float32(2), "hit": True, "late": 7},
        {"success": 0.0, "distance_to_goal": 4.0, "energy": 4, "hit": False, "array": [1]},
    ]
    env = Scripted([(0, 0.0, False, False, info) for info in infos], UNIT, UNIT)
    assert ActionRepeat(env, 3).step(0)[4] == {
        "success": 1.0,
        "distance_to_goal": 4.0,
        "energy": 7,
        "hit": 2,
        "name": "a",
        "late": 7,
        "array": [1],
    }


def test_what_changes_nothing_is_not_wrapped() -> None:
    env = Scripted([], UNIT, UNIT)
    checked = standardise(env, action_repeat=1, flatten_obs=False)
    assert isinstance(checked, Checked)
    assert checked.env is env


finite = st.floats(-1e6, 1e6, width=32)


@given(low=finite, size=st.floats(2**-10, 2**20, width=32), action=st.floats(-1, 1, width=32))
def test_scaled_actions_lie_in_the_box_and_reach_its_corners(
    low: float, size: float, action: float
) -> None:
    corner, above = np.array([low], np.float32), np.nextafter(np.float32(low), np.float32(np.inf))
    box = spaces.Box(corner, np.maximum(corner + np.float32(size), above))
    assert scale_to(box, np.array([-1], np.float32)) == box.low
    assert scale_to(box, np.array([1], np.float32)) == box.high
    assert scale_to(box, np.array([1.5], np.float32)) == box.high
    scaled = scale_to(box, np.array([action], np.float32))
    assert scaled.dtype == box.dtype
    assert box.contains(scaled)
    exact = box.low + (np.float64(action) + 1) / 2 * (np.float64(box.high) - box.low)
    np.testing.assert_allclose(scaled, exact, rtol=1e-5, atol=1e-5 * size)


def test_actions_are_scaled_from_one_to_the_box() -> None:
    box = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)
    env = Scripted(rewards(0, 0, 0, 0), UNIT, box)
    scaled = standardise(env, action_repeat=1, flatten_obs=False)
    assert scaled.action_space == spaces.Box(-1, 1, (2,), np.float32)
    for action in ([-1, -1], [0, 0], [0.5, 1], [2**-40, -1]):
        scaled.step(np.array(action, np.float32))
    np.testing.assert_array_equal(env.actions, [[-2, 0], [0, 5], [1, 10], [2**-39, 0]])


@pytest.mark.parametrize(
    "box",
    [
        spaces.Box(-1, np.inf, (2,)),
        spaces.Box(-np.inf, 1, (2,)),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Box(-LARGEST, LARGEST, (2,), np.float32),
        spaces.Box(-1, LARGEST, (2,), np.float64),
    ],
)
def test_actions_without_bounds_and_whole_numbers_are_refused(box: spaces.Box) -> None:
    with pytest.raises(ValueError, match="floats with finite bounds, got Box"):
        standardise(Scripted([], UNIT, box), action_repeat=1, flatten_obs=False)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3])])
def test_actions_that_are_no_box_are_left_alone(space: spaces.Space) -> None:
    env = standardise(Scripted([], UNIT, space), action_repeat=1, flatten_obs=False)
    assert env.action_space == space


DOUBLE = spaces.Box(-np.inf, 1e300, (2,), np.float64)
HALF = spaces.Box(-9, 9, (2,), np.float16)
BYTES = spaces.Box(0, 255, (2,), np.uint8)
IMAGE = spaces.Box(0, 255, (2, 1), np.uint8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("space", "obs", "expected"),
    [
        (DOUBLE, np.array([0.1, 2]), np.array([0.1, 2], np.float32)),
        (HALF, np.array([0.5, 2], np.float16), np.array([0.5, 2], np.float32)),
        (BYTES, np.array([1, 2], np.uint8), np.array([1, 2], np.float32)),
        (spaces.Box(-9, 9, (2,), np.int64), np.array([1, -2]), np.array([1, -2], np.float32)),
        (IMAGE, np.array([[3], [4]], np.uint8), np.array([[[3], [4]]], np.uint8)),
        (spaces.Discrete(3), 2, 2),
    ],
)
def test_numbers_but_those_of_images_become_floats(
    space: spaces.Space, obs: Any, expected: Any
) -> None:
    env = Scripted([(obs, 0.0, False, False, {})] * 2, space, UNIT)
    env = standardise(env, action_repeat=1, flatten_obs=False)
    for seen in (env.reset()[0], env.step(np.zeros(1))[0]):
        assert env.observation_space.contains(seen)
        assert np.asarray(seen).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(seen, expected)


def test_doubles_within_dicts_become_floats_and_keep_their_order() -> None:
    space = spaces.Dict([("z", DOUBLE), ("a", spaces.Dict({"b": IMAGE, "c": DOUBLE}))])
    obs = {"z": np.ones(2), "a": {"b": np.array([[1], [2]], np.uint8), "c": np.zeros(2)}}
    env = Scripted([(obs, 0.0, False, False, {})], space, UNIT)
    env = standardise(env, action_repeat=1, flatten_obs=False)
    seen, _ = env.reset()
    assert env.observation_space.contains(seen)
    assert isinstance(env.observation_space, spaces.Dict)
    assert list(env.observation_space) == list(seen) == ["z", "a"]
    assert seen["z"].dtype == seen["a"]["c"].dtype == np.float32
    assert seen["a"]["b"].dtype == np.uint8


@pytest.mark.parametrize(
    ("space", "obs", "expected"),
    [
        (
            spaces.Dict({"a": DOUBLE, "b": spaces.Discrete(3)}),
            {"a": np.ones(2), "b": 1},
            [1, 1, 0, 1, 0],
        ),
        (spaces.Tuple([spaces.Discrete(2), DOUBLE]), (1, np.ones(2)), [0, 1, 1, 1]),
        (spaces.Discrete(4, start=2), 3, [0, 1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), (1, 2), [0, 1, 0, 0, 1]),
        (IMAGE, np.array([[3], [4]], np.uint8), [[[3], [4]]]),
    ],
)
def test_flattening_makes_one_vector_of_all_but_arrays(
    space: spaces.Space, obs: Any, expected: Any
) -> None:
    env = Scripted([(obs, 0.0, False, False, {})], space, UNIT)
    env = standardise(env, action_repeat=1, flatten_obs=True)
    seen, _ = env.reset()
    assert env.observation_space.contains(seen)
    assert seen.dtype == (np.uint8 if space == IMAGE else np.float32)
    assert seen.tolist() == expected
