"""Discounted sums of rewards against NumPy's, and to the bit after a reload."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.datasets.replay.returns import NStepReturns
from research.datasets.replay.rings import Completed

GAMMA = 0.97
NOT = np.array([False])
REWARDS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=12)


def complete(rewards: list[float], n_step: int, *, terminates: bool) -> NStepReturns:
    """One episode whose transitions start at rows 0, 1, ...; rewards lie a row behind."""
    returns = NStepReturns(len(rewards) + 1, 1, n_step=n_step, discount=GAMMA)
    for step, reward in enumerate(rewards, start=1):
        returns.add(np.array([reward]))
        if step >= n_step:
            returns.complete(completed([step - n_step], [n_step]), NOT)
    last = range(1, n_step + 1)
    ends = completed([len(rewards) - k for k in last], last)
    returns.complete(ends, np.array([terminates]))
    return returns


def completed(rows: Sequence[int], num_steps: Sequence[int]) -> Completed:
    """Those of the only environment."""
    return Completed(np.zeros(len(rows), np.int64), np.array(rows), np.array(num_steps))


@given(REWARDS, st.integers(2, 5), st.booleans())
def test_sums_and_discounts_are_those_of_numpy(
    rewards: list[float], n_step: int, terminates: bool
) -> None:
    returns = complete(rewards, n_step, terminates=terminates)
    for start in range(len(rewards)):
        window = rewards[start : start + n_step]
        steps = len(window)
        expected = np.dot(window, GAMMA ** np.arange(steps))
        reaches_end = start + steps == len(rewards)
        total, discount = returns.read(torch.tensor([start]))[0].tolist()
        assert total == pytest.approx(expected, rel=1e-6, abs=1e-6 * np.abs(window).sum())
        assert discount == pytest.approx(0.0 if terminates and reaches_end else GAMMA**steps)


@given(REWARDS, st.integers(2, 5), st.booleans())
def test_restored_sums_are_the_same_to_the_bit(
    rewards: list[float], n_step: int, terminates: bool
) -> None:
    returns = complete(rewards, n_step, terminates=terminates)
    starts = torch.arange(len(rewards), dtype=torch.int32)
    num_steps = (len(rewards) - starts).clamp(max=n_step)
    continues = torch.ones(len(rewards) + 1)
    continues[-1] = not terminates
    restored = NStepReturns(len(rewards) + 1, 1, n_step=n_step, discount=GAMMA)
    restored.restore(starts, num_steps, torch.tensor([float("nan"), *rewards]), continues)
    assert restored.read(starts).equal(returns.read(starts))
