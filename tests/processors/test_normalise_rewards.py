"""Rewards of rollouts scaled by the running deviation of their discounted sums."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st

from research.batches import Rollout, Transition
from research.errors import UserError
from research.processors.normalise_rewards import NormaliseRewards

SPACE = Box(-1, 1, (1,), np.float32)


def make(*, discount: float = 0.9, clip: float = 100.0, epsilon: float = 1e-8) -> NormaliseRewards:
    return NormaliseRewards(SPACE, SPACE, discount=discount, clip=clip, epsilon=epsilon)


def make_rollout(reward: np.ndarray, over: np.ndarray) -> Rollout:
    """Rewards (T, E), and (T, E) whether an episode ended."""
    env = torch.arange(reward.shape[1]).repeat(len(reward))
    obs = torch.zeros(reward.size, 1)
    rows: Any = obs, obs, torch.from_numpy(reward).flatten(), torch.ones(reward.size), obs
    ended = torch.from_numpy(over).flatten()
    return Rollout(*rows, over=ended, env=env, extras={}, info={}, next_info={})


def draw(seed: int, horizon: int, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reward = rng.normal(3, 5, (horizon, num_envs)).astype(np.float32)
    return reward, rng.random((horizon, num_envs)) < 0.3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 999))
def test_rewards_are_divided_by_the_deviation_of_all_sums(
    horizons: list[int], num_envs: int, seed: int
) -> None:
    processor, sums, total = make(), [], np.zeros(num_envs)
    for index, horizon in enumerate(horizons):
        reward, over = draw(seed + index, horizon, num_envs)
        for time in range(horizon):
            total = 0.9 * total + reward[time]
            sums.append(total)
            total = np.where(over[time], 0.0, total)
        processed = processor(make_rollout(reward, over))
        expected = reward / np.sqrt(np.var(sums) + 1e-8)
        expected = expected.clip(-100, 100).flatten()
        np.testing.assert_allclose(processed.reward.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_nothing_else_changes_and_the_result_is_bounded() -> None:
    processor, rollout = make(clip=0.5), make_rollout(*draw(0, 50, 2))
    processed = processor(rollout)
    assert processed.reward.abs().max() == 0.5
    for name in ("obs", "action", "discount", "over", "env"):
        assert getattr(processed, name) is getattr(rollout, name)


def test_in_evaluation_mode_nothing_is_learned() -> None:
    processor, rollout = make().eval(), make_rollout(*draw(0, 50, 2))
    assert torch.equal(processor(rollout).reward, rollout.reward.clamp(-100, 100))
    assert processor.moments.count == 0


def test_a_restored_one_goes_on_within_the_episodes() -> None:
    processor, twin = make(), make()
    processor(make_rollout(*draw(0, 5, 3)))
    assert (processor.sums != 0).any(), "an episode is open"
    twin.load_state_dict(processor.state_dict())
    rollout = make_rollout(*draw(1, 5, 3))
    assert torch.equal(twin(rollout).reward, processor(rollout).reward)


def test_batches_without_order_are_refused() -> None:
    rows = torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.ones(4), torch.zeros(4, 1)
    with pytest.raises(UserError, match="only the rewards of rollouts can be normalised"):
        make()(Transition(*rows))
