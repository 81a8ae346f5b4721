"""Regression: its metrics, and a line it must find."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from research.batches import Example
from research.errors import UserError
from tests.algs.test_supervised import make, make_mlp


def test_errors_are_means_over_values_and_examples() -> None:
    learner = make()
    batch = Example(torch.randn(5, 3), torch.randn(5, 2))
    error = learner.alg.get_submodule("network")(batch.obs).detach() - batch.target
    expected = {"loss": error.pow(2).sum() / 10, "absolute_error": error.abs().sum() / 10}
    with torch.no_grad():
        torch.testing.assert_close(learner.alg.validate(batch), expected)
    torch.testing.assert_close(learner.learn(batch), expected)


def test_a_target_of_another_shape_is_not_spread_over_the_output() -> None:
    with pytest.raises(UserError, match=r"returns \(2, 2\) for a batch, but the loss needs \(2,\)"):
        make().learn(Example(torch.randn(2, 3), torch.randn(2)))


def test_outputs_without_a_dimension_are_not_spread_over_the_targets() -> None:
    network = make_mlp(Box(-np.inf, np.inf, (1,), np.float32))
    network.register_forward_hook(lambda *call: call[-1].flatten())
    with pytest.raises(UserError, match=r"returns \(5,\) for a batch, but the loss needs \(5, 1\)"):
        make(network).learn(Example(torch.randn(5, 3), torch.randn(5, 1)))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_it_finds_a_line(ema_decay: float | None) -> None:
    optim = partial(torch.optim.Adam, lr=0.05, fused=True)
    learner = make(make_mlp(hidden_dims=()), optim=optim, ema_decay=ema_decay)
    slopes, offset = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]), torch.tensor([1.0, -1.0])
    for _ in range(300):
        obs = torch.rand(32, 3)
        learner.learn(Example(obs, obs @ slopes.T + offset))
    obs = torch.rand(32, 3)
    action = (learner.average or learner.alg).act(obs, learner.step, explore=False)
    assert (action - (obs @ slopes.T + offset)).abs().max() < 0.02
