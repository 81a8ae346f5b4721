"""SimBa's network against the same built of torch's layers, and its initialisation."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor

from research.networks.simba import EnsembleSimBa, SimBa, SimBaActorCritic, he_normal
from tests.conftest import Spaces


def members(network: EnsembleSimBa, index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights (outputs, inputs) and biases of a member's linear layers and norms, in order."""
    for module in network.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor) and isinstance(bias, Tensor):
            yield weight[index].t(), bias[index, 0]


def apply(network: EnsembleSimBa, index: int, num_blocks: int, x: Tensor) -> Tensor:
    """A member's output by section 4.2 of the paper, with torch's own layers."""
    layers = members(network, index)

    def linear(x: Tensor) -> Tensor:
        return F.linear(x, *next(layers))

    def norm(x: Tensor) -> Tensor:
        weight, bias = next(layers)
        return F.layer_norm(x, x.shape[-1:], weight.flatten(), bias, eps=1e-6)

    x = linear(x)
    for _ in range(num_blocks):
        x = x + linear(linear(norm(x)).relu())
    return linear(norm(x))


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_members_compute_what_the_paper_says(num_members: int, num_blocks: int) -> None:
    network = EnsembleSimBa(num_members, 5, 2, hidden_dim=8, num_blocks=num_blocks).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(6, 5, dtype=torch.float64)
    output = network(x)
    assert output.shape == (num_members, 6, 2)
    for index in range(num_members):
        torch.testing.assert_close(output[index], apply(network, index, num_blocks, x))


def test_a_single_one_is_an_ensemble_of_one() -> None:
    network = SimBa(5, 2, hidden_dim=8, num_blocks=1)
    x = torch.randn(6, 5)
    assert torch.equal(network(x), EnsembleSimBa.forward(network, x)[0])


def test_layers_are_initialised_as_in_the_paper() -> None:
    network = EnsembleSimBa(2, 64, 3, hidden_dim=256, num_blocks=1)
    block: Any = network.blocks[0]
    for weight in (block.up.weight, block.down.weight):
        std = math.sqrt(2 / weight.shape[1])
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert weight.abs().max().item() <= 2 * std / 0.8796
    for member in network.embedding.weight:
        torch.testing.assert_close(member @ member.t(), torch.eye(64), atol=1e-5, rtol=0)
    for member in network.output.weight:
        torch.testing.assert_close(member.t() @ member, torch.eye(3), atol=1e-5, rtol=0)
    for layer in (network.embedding, network.output, block.up, block.down):
        assert not layer.bias.any()
    assert not torch.equal(network.embedding.weight[0], network.embedding.weight[1])


def test_he_normal_is_as_wide_as_it_says() -> None:
    weight = he_normal(torch.empty(2000, 50))
    assert weight.std().item() == pytest.approx(0.2, rel=0.02)


def test_actor_and_critics_have_their_sizes(spaces: Spaces) -> None:
    network = SimBaActorCritic(
        *spaces,
        actor_dim=8,
        actor_blocks=1,
        critic_dim=16,
        critic_blocks=2,
        num_critics=2,
        log_std_bounds=(-10, 2),
    )
    obs, action = torch.randn(5, 3), torch.rand(5, 2)
    distribution = network.actor(obs)
    assert distribution.mean.shape == distribution.log_std.shape == (5, 2)
    assert ((distribution.log_std >= -10) & (distribution.log_std <= 2)).all()
    assert network.critics(obs, action).shape == (2, 5)
    assert network.critics.get_submodule("ensemble.blocks.1")
    assert not torch.equal(network.critics(obs, action), network.critics(obs, -action))


def test_observations_that_are_not_flat_are_refused(spaces: Spaces) -> None:
    with pytest.raises(ValueError, match="observations must be flat floats"):
        SimBaActorCritic(
            Box(0, 255, (3, 9, 9), np.uint8),
            spaces[1],
            actor_dim=8,
            actor_blocks=1,
            critic_dim=8,
            critic_blocks=1,
            num_critics=1,
            log_std_bounds=(-10, 2),
        )
