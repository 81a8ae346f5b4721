"""The actor-critic pair: what it computes, and the spaces it takes."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from research.config import build
from research.networks.actor_critic import ActorCritic
from research.networks.mlp import MLP, EnsembleMLP
from tests.conftest import Load

FLAT = Box(-np.inf, np.inf, (3,), np.float32)
UNIT = Box(-1, 1, (2,), np.float32)


def box(low: list[float], high: list[float]) -> Box:
    return Box(np.array(low, np.float32), np.array(high, np.float32))


def make_network(
    observation_space: gymnasium.Space = FLAT,
    action_space: gymnasium.Space = UNIT,
    num_critics: int = 3,
) -> ActorCritic:
    return ActorCritic(
        observation_space,
        action_space,
        hidden_dims=[16],
        num_critics=num_critics,
        activation=nn.ReLU,
        layer_norm=False,
        init=None,
    )


@pytest.fixture
def network() -> ActorCritic:
    return make_network()


def test_every_critic_rates_each_pair_by_itself(network: ActorCritic) -> None:
    obs, action = torch.randn(5, 3), torch.rand(5, 2)
    values = network.critics(obs, action)
    assert values.shape == (3, 5)
    for row in range(5):
        alone = network.critics(obs[row : row + 1], action[row : row + 1])
        torch.testing.assert_close(values[:, row : row + 1], alone)


def test_every_critic_sees_observation_and_action(network: ActorCritic) -> None:
    obs, action = torch.randn(5, 3), torch.rand(5, 2)
    values = network.critics(obs, action)
    assert (network.critics(obs + 1, action) != values).any(dim=1).all()
    assert (network.critics(obs, -action) != values).any(dim=1).all()


def test_the_first_critic_is_the_first_of_all(network: ActorCritic) -> None:
    obs, action = torch.randn(5, 3), torch.rand(5, 2)
    values = network.critics.first(obs, action)
    torch.testing.assert_close(values, network.critics(obs, action)[0])


def test_actions_fill_their_bounds_and_do_not_pass_them(network: ActorCritic) -> None:
    actions = network.actor(torch.randn(1000, 3) * 1e4)
    assert actions.shape == (1000, 2)
    assert actions.amin() == -1
    assert actions.amax() == 1
    assert network.actor(torch.zeros(1, 3)).abs().max() < 1


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Dict({"a": FLAT}), "observations must be flat floats (O,), got Dict("),
        (Discrete(4), "observations must be flat floats (O,), got Discrete(4)"),
        (Box(0, 1, (3, 8, 8)), "got Box(0.0, 1.0, (3, 8, 8), float32); try env.flatten_obs=true"),
        (Box(0, 255, (128,), np.uint8), "got Box(0, 255, (128,), uint8)"),
        (Box(0, 255, (3, 8, 8), np.uint8), "uint8); try env.pixels=false"),
    ],
)
def test_observations_that_are_not_flat_floats_are_refused(
    space: gymnasium.Space, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_network(observation_space=space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Discrete(4), "actions must be continuous (A,), got Discrete(4); try alg=dqn or alg=ppo"),
        (Dict({"a": UNIT}), "actions must be continuous (A,), got Dict("),
        (Box(-1, 1, (2, 2)), "actions must be continuous (A,), got Box("),
        (Box(-2, 2, (2,)), "actions must lie in [-1, 1], got Box(-2.0, 2.0, (2,), float32)"),
        (box([-1, 0], [1, 1]), "actions must lie in [-1, 1]"),
        (box([-1, -1], [1, 2]), "actions must lie in [-1, 1]"),
    ],
)
def test_actions_outside_the_unit_box_are_refused(space: gymnasium.Space, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_network(action_space=space)


def test_the_options_of_the_yaml_reach_actor_and_critics(load: Load) -> None:
    cfg = load(
        "network=actor_critic",
        "network.layer_norm=true",
        "network.activation._target_=torch.nn.Tanh",
        "network.init={_target_: torch.nn.init.orthogonal_, _partial_: true}",
    )
    network = build(cfg.network, FLAT, UNIT)
    alone, ensemble = network.actor[0], network.critics.ensemble
    assert isinstance(alone, MLP)
    assert isinstance(ensemble, EnsembleMLP)
    for layers in (alone, ensemble.layers):
        names = [type(layer).__name__.removeprefix("Ensemble") for layer in layers]
        assert names == ["Linear", "LayerNorm", "Tanh"] * 2 + ["Linear"]
        assert not layers.get_parameter("0.bias").any()
    assert ensemble.num_members == cfg.network.num_critics
