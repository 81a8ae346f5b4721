"""What no number can be learned from is found, and named."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from research.training.observations import NUM_LOOKS, Bounds, Fault, find_fault

FINE = np.zeros((3, 2), np.float32)
REWARD = np.zeros(3)


def changed(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("obs", "reward", "fault"),
    [
        (FINE, changed(REWARD, 2, np.nan), Fault(2, "a reward of nan")),
        (FINE, changed(REWARD, 0, -np.inf), Fault(0, "a reward of -inf")),
        (changed(FINE, (1, 0), np.inf), REWARD, Fault(1, "observation[0] = inf")),
        (changed(FINE, (2, 1), np.nan), None, Fault(2, "observation[1] = nan")),
        (
            {"eye": np.zeros((3, 4), np.uint8), "arm": {"joint": changed(FINE, (0, 1), np.nan)}},
            REWARD,
            Fault(0, "observation['arm']['joint'][1] = nan"),
        ),
    ],
)
def test_the_first_number_that_is_not_finite_is_named(
    obs: Any, reward: np.ndarray | None, fault: Fault
) -> None:
    assert find_fault(obs, reward) == fault


@pytest.mark.filterwarnings("error")
def test_large_numbers_are_no_fault() -> None:
    assert find_fault(np.full((3, 2), np.finfo(np.float32).max), np.full(3, 1e308)) is None
    assert find_fault(np.full((3, 9, 8, 8), 255, np.uint8), REWARD) is None


LARGEST = float(np.finfo(np.float32).max)
LOW, HIGH = np.array([[0, -LARGEST, 1], [2, LARGEST, np.inf]], np.float32)
BOX = spaces.Box(LOW, HIGH, dtype=np.float32)


def look(space: spaces.Space, obs: Any, times: int = 1) -> None:
    bounds = Bounds(space)
    for _ in range(times):
        bounds.look(obs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("obs", [[4, 1e38, 1e38], [-2, -1e38, -5], [2.001, 0, 1]])
def test_observations_near_their_bounds_or_without_any_are_not_remarked_on(
    caplog: pytest.LogCaptureFixture, obs: list[float]
) -> None:
    look(BOX, np.array([[1, 0, 1], obs], np.float32))
    look(spaces.Box(0, 255, (3, 2, 2), np.uint8), np.full((2, 3, 2, 2), 255, np.uint8))
    assert not caplog.messages


def test_an_observation_far_outside_its_bounds_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    look(BOX, np.array([[1, 0, 1], [4.5, 0, 1]], np.float32), times=3)
    look(spaces.Dict(eye=BOX, arm=BOX), {"eye": FINE[:, [0, 0, 0]], "arm": -2.5 - np.eye(3)})
    first, second = caplog.messages
    assert "environment 1 gave observation[0] = 4.5, far outside the bounds" in first
    assert "0 and 2;" in first
    assert "environment 0 gave observation['arm'][0] = -3.5" in second


def test_only_the_first_observations_are_compared_with_their_bounds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bounds = Bounds(BOX)
    for _ in range(NUM_LOOKS):
        bounds.look(np.ones((1, 3), np.float32))
    bounds.look(np.full((1, 3), 9, np.float32))
    assert not caplog.messages
