"""The categorical actor, its critics of all actions, and the spaces it takes."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import nn

from research.networks.categorical import CategoricalActorCritic

FLAT = Box(-np.inf, np.inf, (3,), np.float32)


def make_network(actions: Space) -> CategoricalActorCritic:
    return CategoricalActorCritic(
        FLAT,
        actions,
        hidden_dims=[16],
        num_critics=3,
        activation=nn.ReLU,
        layer_norm=False,
        init=None,
    )


def test_every_critic_rates_all_actions_by_itself() -> None:
    network, obs = make_network(Discrete(4)), torch.randn(5, 3)
    values = network.critics(obs)
    assert values.shape == (3, 5, 4)
    assert len(values.flatten().unique()) == 3 * 5 * 4
    torch.testing.assert_close(values[:, 2:3], network.critics(obs[2:3]))


def test_the_actor_gives_a_distribution_of_all_actions() -> None:
    distribution = make_network(Discrete(4)).actor(torch.randn(5, 3))
    assert distribution.logits.shape == (5, 4)
    assert set(distribution.sample().tolist()) <= set(range(4))


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (
            Box(-1, 1, (2,), np.float32),
            r"actions must be discrete, got Box.*try alg=sac, or an env",
        ),
        (Discrete(3, start=1), "discrete actions must begin at 0, got"),
    ],
    ids=["continuous", "from 1 on"],
)
def test_other_actions_are_refused(space: Space, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_network(space)
