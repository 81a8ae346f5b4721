"""The network of on-policy algorithms: its spaces, initialisation and encoder."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from research.networks.actor_value import ActorValue
from research.networks.distributions import Categorical, Gaussian

OBS = Box(-1, 1, (3,), np.float32)
ACTIONS = Box(-1, 1, (2,), np.float32)
SETTINGS: dict[str, Any] = {
    "hidden_dims": (8, 7),
    "activation": nn.Tanh,
    "layer_norm": False,
    "init": partial(nn.init.orthogonal_, gain=2.0),
    "actor_init": partial(nn.init.orthogonal_, gain=0.01),
    "value_init": partial(nn.init.orthogonal_, gain=3.0),
    "log_std": -0.5,
    "encoder": None,
}


def make(
    obs: gymnasium.Space = OBS, actions: gymnasium.Space = ACTIONS, **changes: Any
) -> ActorValue:
    return ActorValue(obs, actions, **(SETTINGS | changes))


class Halves(nn.Module):
    """Observes half of what there is."""

    output_dim = 3

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, obs: Tensor) -> Tensor:
        return self.scale * obs


def test_continuous_actions_are_gaussian_around_the_actors_output() -> None:
    network, obs = make(), torch.randn(5, 3)
    distribution, value = network(obs)
    assert isinstance(distribution, Gaussian)
    assert torch.equal(distribution.mean, network.actor(obs))
    assert distribution.log_std.tolist() == [-0.5, -0.5]
    assert value.shape == (5,)


def test_discrete_actions_are_categorical() -> None:
    distribution, _ = make(actions=Discrete(4))(torch.randn(5, 3))
    assert isinstance(distribution, Categorical)
    assert distribution.logits.shape == (5, 4)


def test_policy_and_values_are_the_halves_of_the_whole() -> None:
    network, obs = make(encoder=Halves), torch.randn(5, 3)
    distribution, value = network(obs)
    assert torch.equal(network.policy(obs).center(), distribution.center())
    assert torch.equal(network.values(obs), value)
    assert torch.equal(value, network.value(obs / 2).squeeze(-1))


def weights(module: nn.Module) -> list[Tensor]:
    """The matrices of a perceptron's layers."""
    return [layer.weight.detach() for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("layer", "gain"), [(0, 2.0), (1, 2.0), (2, 0.01)])
def test_layers_are_orthogonal_with_their_gains(layer: int, gain: float) -> None:
    weight = weights(make().actor)[layer]
    rows = weight if weight.shape[0] <= weight.shape[1] else weight.t()
    torch.testing.assert_close(rows @ rows.t(), gain**2 * torch.eye(len(rows)), atol=1e-5, rtol=0)


def test_without_gains_of_their_own_the_last_layers_are_like_the_others() -> None:
    network = make(actor_init=None, value_init=None)
    for weight in (weights(network.actor)[-1], weights(network.value)[-1]):
        torch.testing.assert_close(weight @ weight.t(), 4 * torch.eye(len(weight)))


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ((OBS, Discrete(3, start=1)), "begin at 0, got Discrete"),
        ((OBS, Box(-2, 2, (2,), np.float32)), r"actions must lie in \[-1, 1\]"),
        ((OBS, MultiDiscrete([2, 3])), "actions must be continuous"),
        ((Box(0, 255, (3, 9, 9), np.uint8), ACTIONS), "observations must be flat floats"),
    ],
)
def test_spaces_it_cannot_take_are_refused(
    spaces: tuple[gymnasium.Space, gymnasium.Space], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make(*spaces)
