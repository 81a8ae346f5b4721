"""Behaviour cloning: its losses, how it acts, and experts whose rule it must find."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import nn

from research.algs.bc import BehaviourCloning
from research.batches import Example
from research.errors import UserError
from research.networks.predictor import FlatMLP
from tests.algs.learning import make_learner

NOW = torch.tensor(0.0)
BOX = Box(-np.inf, np.inf, (2,), np.float32)
ADAM = partial(torch.optim.Adam, lr=1e-2)


def make(actions: Space, hidden_dims: tuple[int, ...] = (32,)) -> BehaviourCloning:
    network = FlatMLP(
        Box(-1, 1, (3,), np.float32),
        actions,
        hidden_dims=hidden_dims,
        activation=nn.ReLU,
        layer_norm=False,
        init=None,
    )
    return BehaviourCloning(network, optim=ADAM)


def give(alg: BehaviourCloning, *outputs: list[float]) -> None:
    """Make the network return these outputs whatever it observes."""
    alg.network.forward = lambda obs: torch.tensor(outputs)


def test_discrete_actions_are_learned_by_cross_entropy() -> None:
    alg = make(Discrete(3))
    give(alg, [0.0, 1.0, 2.0], [3.0, 0.0, 0.0])
    metrics = alg.validate(Example(torch.zeros(2, 3), torch.tensor([1, 0])))
    scores = np.exp([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    shares = scores[[0, 1], [1, 0]] / scores.sum(axis=1)
    assert metrics["loss"].item() == pytest.approx(-np.log(shares).mean())
    assert metrics["accuracy"].item() == 0.5


def test_continuous_actions_are_learned_by_squared_error() -> None:
    alg = make(BOX)
    give(alg, [0.5, -0.5], [3.0, 0.0])
    metrics = alg.validate(Example(torch.zeros(2, 3), torch.tensor([[0.5, 0.5], [1.0, 0.0]])))
    assert metrics["loss"].item() == pytest.approx((1 + 2**2) / 4)
    assert metrics["absolute_error"].item() == pytest.approx(
        1 / 4
    )  # of what it does, within bounds


def test_a_learned_action_is_done_within_its_bounds() -> None:
    alg = make(BOX)
    give(alg, [0.5, -0.5], [3.0, -7.0])
    for explore in (False, True):
        actions = alg.act(torch.zeros(2, 3), NOW, explore)
        assert actions.tolist() == [[0.5, -0.5], [1.0, -1.0]]


def test_the_likeliest_of_discrete_actions_is_done() -> None:
    alg = make(Discrete(3))
    give(alg, [0.0, 1.0, 0.5], [2.0, -1.0, 0.0])
    assert alg.act(torch.zeros(2, 3), NOW, explore=False).tolist() == [1, 0]


def test_actions_of_another_shape_are_not_spread_over_the_output() -> None:
    with pytest.raises(
        UserError, match=r"returns \(4, 2\) for a batch, but the loss needs \(4, 1\)"
    ):
        make_learner(make(BOX)).learn(Example(torch.zeros(4, 3), torch.zeros(4, 1)))


@pytest.mark.parametrize("actions", [Discrete(3), BOX], ids=["discrete", "continuous"])
def test_finds_the_rule_of_an_expert(actions: Space) -> None:
    def act(obs: torch.Tensor) -> torch.Tensor:
        if isinstance(actions, Discrete):
            return obs.argmax(dim=1)
        return (obs[:, :2] - obs[:, 1:] / 2).clamp(-1, 1)

    alg = make(actions)
    learner = make_learner(alg)
    for _ in range(300):
        obs = torch.rand(64, 3) * 2 - 1
        learner.learn(Example(obs, act(obs)))
    obs = torch.rand(500, 3) * 2 - 1
    error = (alg.act(obs, NOW, explore=False) - act(obs)).abs().float()
    assert error.mean() < 0.1  # untrained, about 0.9 and 0.4
