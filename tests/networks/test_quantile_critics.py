"""Critics of quantiles, and the network around them."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from research.config import build
from research.networks.quantile_critics import QuantileActorCritic
from tests.conftest import Load, Spaces


def make_network(
    spaces: Spaces, log_std_bounds: tuple[float, float] = (-5, 2)
) -> QuantileActorCritic:
    """Three critics of seven quantiles."""
    return QuantileActorCritic(
        *spaces,
        actor_hidden_dims=[16],
        critic_hidden_dims=[8, 8],
        num_critics=3,
        num_quantiles=7,
        activation=nn.ReLU,
        layer_norm=False,
        init=None,
        log_std_bounds=log_std_bounds,
    )


def test_every_critic_gives_all_quantiles_of_each_pair(spaces: Spaces) -> None:
    critics, obs, action = make_network(spaces).critics, torch.randn(5, 3), torch.rand(5, 2)
    quantiles = critics(obs, action)
    assert quantiles.shape == (3, 5, 7)
    assert len(quantiles.flatten().unique()) == 3 * 5 * 7
    torch.testing.assert_close(quantiles[:, 2:3], critics(obs[2:3], action[2:3]))


def test_every_critic_sees_observation_and_action(spaces: Spaces) -> None:
    critics, obs, action = make_network(spaces).critics, torch.randn(5, 3), torch.rand(5, 2)
    quantiles = critics(obs, action)
    assert (critics(obs + 1, action) != quantiles).any(dim=(1, 2)).all()
    assert (critics(obs, -action) != quantiles).any(dim=(1, 2)).all()


def test_actor_and_critics_have_widths_of_their_own(spaces: Spaces) -> None:
    network = make_network(spaces)
    widths = [tuple(weight.shape) for weight in network.actor.parameters() if weight.ndim == 2]
    assert widths == [(16, 3), (4, 16)]
    widths = [weight.shape[-1] for weight in network.critics.parameters()]
    assert widths == [8, 8, 8, 8, 7, 7]


def test_the_config_is_that_of_the_paper(load: Load, spaces: Spaces) -> None:
    network = build(load("alg=tqc").network, *spaces)
    assert network.critics(torch.randn(2, 3), torch.rand(2, 2)).shape == (5, 2, 25)


def test_bounds_that_do_not_rise_are_refused(spaces: Spaces) -> None:
    with pytest.raises(ValueError, match="log_std_bounds must rise, got"):
        make_network(spaces, (2.0, -5.0))


def test_other_spaces_are_refused(spaces: Spaces) -> None:
    with pytest.raises(ValueError, match="actions must be continuous"):
        make_network((spaces[0], Discrete(3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="observations must be flat floats"):
        make_network((Box(-1, 1, (2, 2)), spaces[1]))
