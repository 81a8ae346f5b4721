"""What no number can be learned from is found, and named."""

from typing import Any

import numpy as np
import pytest

from research.training.observations import Fault, find_fault

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
