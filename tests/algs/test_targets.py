"""Target networks: copies, and how they follow."""

import copy

import pytest
import torch
from torch import nn

from research.algs.targets import frozen_copy, polyak_update


def make_network() -> nn.Sequential:
    """Parameters and buffers (a batch norm's), none at their initial values."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(torch.randn(8, 3))
    return network


@pytest.mark.parametrize("tau", [0.005, 0.7, 1.0])
def test_every_parameter_moves_by_the_share_tau(tau: float) -> None:
    source, target = make_network(), make_network()
    before, source_before = copy.deepcopy(target), copy.deepcopy(source)
    polyak_update(source, target, tau)
    for new, old, goal in zip(
        target.parameters(), before.parameters(), source.parameters(), strict=True
    ):
        torch.testing.assert_close(new, (1 - tau) * old + tau * goal)
    for kept, old in zip(source.parameters(), source_before.parameters(), strict=True):
        assert torch.equal(kept, old)


def test_a_share_of_one_copies_exactly() -> None:
    source, target = make_network(), make_network()
    polyak_update(source, target, 1.0)
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_buffers_are_copied_whatever_the_share() -> None:
    source, target = make_network(), make_network()
    source(torch.randn(8, 3))
    polyak_update(source, target, 0.005)
    for new, goal in zip(target.buffers(), source.buffers(), strict=True):
        assert torch.equal(new, goal)


def test_moving_targets_leaves_no_trace_for_gradients() -> None:
    source, target = make_network(), make_network()
    polyak_update(source, target, 0.5)
    assert all(parameter.grad_fn is None for parameter in target.parameters())


def test_networks_of_different_layers_are_refused() -> None:
    with pytest.raises(RuntimeError):
        polyak_update(make_network(), make_network()[:2], 0.5)
    with pytest.raises(ValueError, match="shorter"):
        polyak_update(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4), 0.5)


def test_a_frozen_copy_is_equal_and_takes_no_gradients() -> None:
    network = make_network()
    copied = frozen_copy(network)
    assert all(torch.equal(v, copied.state_dict()[k]) for k, v in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_frozen_copy_does_not_follow_by_itself() -> None:
    network = make_network()
    copied = frozen_copy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    for kept, moved in zip(copied.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(kept + 1, moved)
