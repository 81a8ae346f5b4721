"""QR-DQN: the loss against loops by hand, and that it finds quantiles."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from research.algs.qrdqn import QRDQN
from research.batches import Transition
from research.networks.q_network import QNetwork
from tests.algs.learning import make_learner
from tests.algs.test_q_learning import NUMBERS, make_batch
from tests.algs.test_q_learning import make as make_any


def make(**changes: Any) -> QRDQN:
    alg = make_any("qrdqn", **changes)
    assert isinstance(alg, QRDQN)
    return alg


@pytest.mark.parametrize("kappa", [0.3, 1.0, 2.0])
def test_the_loss_is_that_of_equation_10(kappa: float) -> None:
    alg, batch = make(kappa=kappa), make_batch()
    target = alg.compute_target(batch, None)
    taken = torch.stack([alg.network(batch.obs)[row, row % 3] for row in range(12)])
    expected = torch.zeros(12)
    for row in range(12):
        for i in range(4):
            for j in range(4):
                error = (target[row, j] - taken[row, i]).item()
                size = abs(error)
                huber = error**2 / 2 if size <= kappa else kappa * (size - kappa / 2)
                expected[row] += abs((i + 0.5) / 4 - (error < 0)) * huber / 4
    loss = alg.loss(batch, None)
    torch.testing.assert_close(loss.value, expected.mean())
    torch.testing.assert_close(loss.priority, expected)
    torch.testing.assert_close(loss.metrics["q"], taken.mean())


def test_every_quantile_of_the_target_is_bootstrapped() -> None:
    alg, batch = make(), make_batch()
    best = alg.network(batch.next_obs).mean(2).argmax(1)
    following = torch.stack([alg.target(batch.next_obs)[row, best[row]] for row in range(12)])
    expected = batch.reward[:, None] + batch.discount[:, None] * following
    torch.testing.assert_close(alg.compute_target(batch, None), expected)


def test_values_are_means_of_the_quantiles() -> None:
    output = torch.randn(3, 2, 4)
    torch.testing.assert_close(make().values(output), output.sum(2) / 4)


def test_finds_the_quantiles_of_a_random_reward() -> None:
    """Of a uniform one in [0, 1], by a loss that is nearly the one of quantiles: kappa is small."""
    network = QNetwork(
        Box(0, 1, (1,), np.float32),
        Discrete(2),
        hidden_dims=(),
        activation=nn.ReLU,
        dueling=False,
        noise_scale=None,
        num_atoms=5,
        encoder=None,
    )
    optim = partial(torch.optim.Adam, lr=0.02)
    alg = QRDQN(network, optim=optim, **NUMBERS, kappa=1e-3)
    learner, obs = make_learner(alg), torch.ones(256, 1)
    for _ in range(400):
        action, reward = torch.randint(2, (256,)), torch.rand(256)
        learner.learn(Transition(obs, action, reward * (action + 1), torch.zeros(256), obs))
    expected = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    found = alg.network(obs[:1])[0]
    torch.testing.assert_close(found[0], expected, atol=0.05, rtol=0)
    torch.testing.assert_close(found[1], 2 * expected, atol=0.1, rtol=0)
