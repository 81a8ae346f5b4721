"""DQN: the target, the loss, exploration, the target network, and a chain it must learn."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.dqn import DQN
from research.batches import Transition
from research.networks.predictor import FlatMLP
from tests.algs.learning import make_learner

NUMBERS: dict[str, Any] = {
    "double": True,
    "tau": 1.0,
    "target_every": 1,
    "explore_start": 1.0,
    "explore_end": 0.2,
    "explore_steps": 100,
}
DESCENT = partial(torch.optim.SGD, lr=1.0)  # a step is the negative gradient
NOW = torch.tensor(0.0)

Make: TypeAlias = Callable[..., DQN]


@pytest.fixture
def make() -> Make:
    """Makes DQN for 3 actions on a small network; ``make(tau=0.5)`` changes a number."""

    def make(
        optim: OptimFactory = DESCENT,
        hidden_dims: tuple[int, ...] = (8,),
        obs_dim: int = 2,
        actions: Space = Discrete(3),  # noqa: B008  spaces do not change
        **changes: Any,
    ) -> DQN:
        network = FlatMLP(
            Box(-1, 1, (obs_dim,), np.float32),
            actions,
            hidden_dims=hidden_dims,
            activation=nn.ReLU,
            layer_norm=False,
            init=None,
        )
        return DQN(network, optim=optim, **(NUMBERS | changes))

    return make


def make_batch(size: int = 16) -> Transition:
    obs, next_obs = torch.rand(2, size, 2) * 2 - 1
    discount = torch.full((size,), 0.9)
    return Transition(obs, torch.arange(size) % 3, torch.randn(size), discount, next_obs)


def give_values(network: nn.Module, *values: list[float]) -> None:
    """Make a network return these values whatever it observes."""
    network.forward = lambda obs: torch.tensor(values)


def snapshot(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("double", "next_q"),
    [(False, (9.0, 6.0, 4.0)), (True, (2.0, 5.0, 4.0))],
    ids=["highest of the target network", "that of the action which the network chooses"],
)
def test_target_is_reward_plus_discounted_next_value(
    make: Make, double: bool, next_q: tuple[float, ...]
) -> None:
    dqn = make(double=double)
    give_values(dqn.target, [2.0, 1.0, 9.0], [5.0, 6.0, 0.0], [4.0, -1.0, 3.0])
    give_values(dqn.network, [8.0, 7.0, 0.0], [3.0, 2.0, 1.0], [0.5, 0.0, -9.0])
    batch = make_batch(3)._replace(
        reward=torch.tensor([1.0, 2.0, -1.0]), discount=torch.tensor([0.9, 0.729, 0.0])
    )
    expected = torch.tensor([1 + 0.9 * next_q[0], 2 + 0.729 * next_q[1], -1])
    torch.testing.assert_close(dqn.compute_target(batch), expected)


def test_target_comes_from_the_next_observation(make: Make) -> None:
    dqn, batch = make(double=False), make_batch()
    target = dqn.compute_target(batch._replace(obs=batch.obs + 1))
    next_q = dqn.target(batch.next_obs).amax(dim=1)
    torch.testing.assert_close(target, batch.reward + 0.9 * next_q)


def test_loss_is_that_of_huber_on_the_taken_action(make: Make) -> None:
    dqn = make()
    give_values(dqn.network, [0.0, 1.0, 9.0], [7.0, 0.0, 9.0])
    batch = make_batch(2)._replace(
        action=torch.tensor([1, 0]), reward=torch.tensor([0.5, 10.0]), discount=torch.zeros(2)
    )
    loss = dqn.loss(batch, None)
    assert loss.value.item() == pytest.approx((0.5**2 / 2 + (3 - 0.5)) / 2)
    assert loss.metrics["q"].item() == pytest.approx(4)
    assert loss.metrics["target_q"].item() == pytest.approx(5.25)


@pytest.mark.parametrize("error", [0.3, -5.0])
def test_only_the_taken_action_moves_by_the_bounded_error(make: Make, error: float) -> None:
    dqn = make(hidden_dims=())
    weight, bias = snapshot(dqn.network)
    obs = torch.tensor([[0.5, -0.2]])
    reward = (dqn.network(obs)[:, 2] + error).detach()
    batch = Transition(obs, torch.tensor([2]), reward, torch.zeros(1), obs)
    make_learner(dqn).learn(batch)
    step = max(-1.0, min(1.0, error))
    weight[2] += step * obs[0]
    bias[2] += step
    torch.testing.assert_close(snapshot(dqn.network), [weight, bias])


def test_no_gradient_flows_through_the_target(make: Make) -> None:
    """It would move the weights, which the values of an observation of zeros do not depend on."""
    dqn = make(hidden_dims=())
    batch = make_batch()._replace(obs=torch.zeros(16, 2))
    before = snapshot(dqn.network)
    make_learner(dqn).learn(batch)
    weight, bias = snapshot(dqn.network)
    assert torch.equal(weight, before[0])
    assert not torch.equal(bias, before[1])


def test_target_follows_every_nth_update_by_a_share_tau(make: Make) -> None:
    dqn = make(tau=0.25, target_every=3)
    learner, moved = make_learner(dqn), []
    for _ in range(6):
        before = snapshot(dqn.target)
        learner.learn(make_batch())
        after, goal = snapshot(dqn.target), snapshot(dqn.network)
        moved.append(not torch.equal(before[0], after[0]))
        if moved[-1]:
            expected = [0.75 * old + 0.25 * new for old, new in zip(before, goal, strict=True)]
            torch.testing.assert_close(after, expected)
    assert moved == [False, False, True, False, False, True]


def test_target_begins_equal_to_the_network(make: Make) -> None:
    dqn = make()
    assert all(map(torch.equal, dqn.target.parameters(), dqn.network.parameters()))


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (50, 0.6), (100, 0.2), (10_000, 0.2)])
def test_exploration_falls_linearly_to_its_end(make: Make, step: int, share: float) -> None:
    assert make().explore_share(torch.tensor(float(step))).item() == pytest.approx(share)


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (50, 0.6), (100, 0.2)])
def test_a_share_of_actions_is_uniformly_random(make: Make, step: int, share: float) -> None:
    dqn = make()
    dqn.network.forward = lambda obs: torch.tensor([0.0, 1.0, 0.5]).expand(len(obs), 3)
    actions = dqn.act(torch.zeros(50_000, 2), torch.tensor(float(step)), explore=True)
    expected = torch.tensor([share / 3, 1 - share + share / 3, share / 3])
    frequencies = actions.bincount(minlength=3) / len(actions)
    torch.testing.assert_close(frequencies, expected, atol=0.01, rtol=0)


def test_without_exploration_the_action_of_highest_value_is_taken(make: Make) -> None:
    dqn, obs = make(), torch.randn(100, 2)
    assert torch.equal(dqn.act(obs, NOW, explore=False), dqn.network(obs).argmax(dim=1))


def test_actions_that_are_not_discrete_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"DQN chooses among discrete actions, got Box.*alg=td3"):
        make(actions=Box(-1, 1, (2,), np.float32))


@pytest.mark.parametrize("double", [False, True])
def test_finds_the_end_of_a_chain(make: Make, double: bool) -> None:
    """Action 2 moves on, the others stay; only the last of 4 moves is rewarded."""
    adam = partial(torch.optim.Adam, lr=0.05)
    dqn = make(optim=adam, obs_dim=4, hidden_dims=(), double=double, tau=0.2)
    learner, places = make_learner(dqn), torch.eye(4)
    for _ in range(200):
        place, action = torch.randint(4, (64,)), torch.randint(3, (64,))
        following = place + (action == 2)
        ended = (following == 4).float()
        next_obs = places[following.clamp(max=3)]
        learner.learn(Transition(places[place], action, ended, 0.7 * (1 - ended), next_obs))
    assert dqn.act(places, NOW, explore=False).tolist() == [2, 2, 2, 2]
    expected = torch.tensor([0.7**3, 0.7**2, 0.7, 1.0])
    torch.testing.assert_close(dqn.network(places)[:, 2], expected, atol=0.03, rtol=0)
