"""Discrete SAC: the expectations and their gradients by hand, the temperature, and two tasks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.sac_discrete import SACDiscrete
from research.batches import Transition
from research.networks.categorical import CategoricalActorCritic
from tests.algs.learning import make_learner
from tests.algs.test_td3 import ADAM, START, moved, shift, snapshot

NUMBERS: dict[str, Any] = {
    "tau": 0.05,
    "temperature": 0.3,
    "target_entropy_share": 0.5,
    "actor_every": 1,
    "target_every": 1,
}

Make: TypeAlias = Callable[..., SACDiscrete]


@pytest.fixture
def make() -> Make:
    """Makes the algorithm for 3 actions on small networks; ``make(tau=1.0)`` changes a number."""

    def make(
        optim: OptimFactory = ADAM,
        hidden_dims: tuple[int, ...] = (8,),
        obs_dim: int = 2,
        **changes: Any,
    ) -> SACDiscrete:
        network = CategoricalActorCritic(
            Box(-1, 1, (obs_dim,), np.float32),
            Discrete(3),
            hidden_dims=hidden_dims,
            num_critics=2,
            activation=nn.ELU,
            layer_norm=False,
            init=None,
        )
        return SACDiscrete(network, optim=optim, **(NUMBERS | changes))

    return make


@pytest.fixture
def double(make: Make) -> SACDiscrete:
    """The algorithm in float64, away from its targets."""
    alg = make().double()
    shift(alg.network)
    return alg


def make_batch(size: int = 6, dtype: torch.dtype = torch.float64) -> Transition:
    obs, next_obs = torch.rand(2, size, 2, dtype=dtype) * 2 - 1
    reward, discount = torch.randn(size, dtype=dtype), torch.full((size,), 0.9, dtype=dtype)
    return Transition(obs, torch.arange(size) % 3, reward, discount, next_obs)


def probabilities(logits: Tensor) -> list[Tensor]:
    """The softmax of one row of logits."""
    total = sum(math.exp(logit) for logit in logits.tolist())
    return [logit.exp() / total for logit in logits]


def target_by_hand(alg: SACDiscrete, batch: Transition) -> list[float]:
    """r + gamma sum_a pi(a) (min_n Q_n(a) - alpha log pi(a)), row by row."""
    alpha = math.exp(alg.log_temperature.item())
    targets = []
    for reward, discount, obs in zip(batch.reward, batch.discount, batch.next_obs, strict=True):
        prob = [p.item() for p in probabilities(alg.network.actor(obs[None]).logits[0])]
        one, other = alg.target_critics(obs[None])[:, 0].tolist()
        lowest = map(min, one, other)
        value = sum(p * (q - alpha * math.log(p)) for p, q in zip(prob, lowest, strict=True))
        targets.append(reward.item() + discount.item() * value)
    return targets


def test_target_is_the_expected_soft_value_of_the_next_observation(double: SACDiscrete) -> None:
    batch = make_batch()
    batch = batch._replace(discount=batch.discount * torch.tensor([1, 1, 0, 1, 0.5, 1]))
    target = double.compute_target(batch._replace(obs=batch.obs + 1))
    expected = torch.tensor(target_by_hand(double, batch), dtype=torch.float64)
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-12)
    assert target[2] == batch.reward[2]


def test_critics_descend_their_squared_errors_of_the_taken_action(double: SACDiscrete) -> None:
    """The gradient of a value is 2 (Q - target) / B, of the taken action alone."""
    batch, critics = make_batch(), double.network.critics
    target = target_by_hand(double, batch)
    q = critics(batch.obs)
    slopes, loss = torch.zeros_like(q), 0.0
    for critic in range(2):
        for row, action in enumerate(batch.action.tolist()):
            error = q[critic, row, action].item() - target[row]
            slopes[critic, row, action] = 2 * error / 6
            loss += error**2 / 6
    expected = torch.autograd.grad(q, list(critics.parameters()), slopes)
    result = double.critic_loss(batch, None)
    assert result.value.item() == pytest.approx(loss, abs=1e-10)
    gradients = torch.autograd.grad(result.value, list(critics.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-10)
    assert result.metrics["target_q"].item() == pytest.approx(sum(target) / 6)
    taken = [q[:, row, action] for row, action in enumerate(batch.action.tolist())]
    assert result.metrics["q"].item() == pytest.approx(torch.stack(taken).mean().item())


def test_actor_descends_the_expectation_over_all_actions(double: SACDiscrete) -> None:
    """The gradient of logit k is pi(k) (f(k) - sum_a pi(a) f(a)) / B, f = alpha log pi - min Q."""
    batch, actor = make_batch(), double.network.actor
    alpha = math.exp(double.log_temperature.item())
    logits = actor(batch.obs).logits
    slopes, loss, entropy = torch.zeros_like(logits), 0.0, 0.0
    for row, obs in enumerate(batch.obs):
        prob = [p.item() for p in probabilities(logits[row])]
        one, other = double.network.critics(obs[None])[:, 0].tolist()
        f = [alpha * math.log(p) - min(q) for p, *q in zip(prob, one, other, strict=True)]
        mean = sum(p * value for p, value in zip(prob, f, strict=True))
        slopes[row] = torch.tensor([p * (v - mean) / 6 for p, v in zip(prob, f, strict=True)])
        loss += mean / 6
        entropy -= sum(p * math.log(p) for p in prob) / 6
    expected = torch.autograd.grad(logits, list(actor.parameters()), slopes)
    result = double.actor_loss(batch, None, batch.obs)
    assert result.value.item() == pytest.approx(loss, abs=1e-10)
    gradients = torch.autograd.grad(result.value, list(actor.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-8)
    assert result.metrics["entropy"].item() == pytest.approx(entropy, abs=1e-10)
    assert result.result.mean().item() == pytest.approx(-entropy, abs=1e-10)


def test_the_temperature_descends_its_closed_form_gradient(make: Make) -> None:
    """d/d(log alpha) of alpha (entropy - 0.5 log 3) is alpha (entropy - 0.5 log 3)."""
    alg = make(partial(torch.optim.SGD, lr=1.0))
    before = alg.log_temperature.item()
    metrics = make_learner(alg).learn(make_batch(dtype=torch.float32))
    gradient = 0.3 * (metrics["entropy"].item() - 0.5 * math.log(3))
    assert alg.log_temperature.item() == pytest.approx(before - gradient)
    assert metrics["temperature_loss"].item() == pytest.approx(gradient)


def test_the_temperature_settles_where_the_entropy_is_its_share(make: Make) -> None:
    """Of a bandit whose second action is the best: at the share of 0.6 of log 3."""
    adam = partial(torch.optim.Adam, lr=0.02)
    alg = make(adam, hidden_dims=(), target_entropy_share=0.6, temperature=1.0)
    learner = make_learner(alg)
    obs, action = torch.zeros(96, 2), torch.arange(96) % 3
    reward = torch.tensor([0.0, 1.0, 0.5])[action]
    batch = Transition(obs, action, reward, torch.zeros(96), obs)
    for _ in range(1500):
        metrics = learner.learn(batch)
    assert metrics["entropy"].item() == pytest.approx(0.6 * math.log(3), abs=0.02)
    assert alg.act(obs[:1], START, explore=False).item() == 1
    # and the policy is the softmax of the values at that temperature
    prob = alg.network.actor(obs[:1]).logits.softmax(dim=1)
    expected = (torch.tensor([[0.0, 1.0, 0.5]]) / metrics["temperature"]).softmax(dim=1)
    torch.testing.assert_close(prob, expected, atol=0.02, rtol=0)


def test_a_share_of_1_is_the_entropy_of_random_actions(make: Make) -> None:
    assert make(target_entropy_share=1.0).target_entropy == pytest.approx(math.log(3))
    assert make(target_entropy_share=0.98).target_entropy == pytest.approx(-0.98 * math.log(1 / 3))


def test_no_gradient_of_the_actor_reaches_the_critics(double: SACDiscrete) -> None:
    batch = make_batch()
    loss = double.actor_loss(batch, None, batch.obs).value
    parameters = list(double.network.critics.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert not any(gradient is not None for gradient in gradients)


@pytest.mark.parametrize(("actor_every", "target_every"), [(1, 1), (2, 3)])
def test_actor_and_targets_move_with_every_nth_update_only(
    make: Make, actor_every: int, target_every: int
) -> None:
    alg = make(actor_every=actor_every, target_every=target_every)
    learner = make_learner(alg)
    for update in range(1, 7):
        parts = alg.network.critics, alg.network.actor, alg.target_critics
        before, temperature = [snapshot(part) for part in parts], alg.temperature.item()
        learner.learn(make_batch(dtype=torch.float32))
        is_actors_turn = update % actor_every == 0
        expected = [True, is_actors_turn, update % target_every == 0]
        assert [moved(*pair) for pair in zip(parts, before, strict=True)] == expected
        assert (alg.temperature.item() != temperature) == is_actors_turn


def test_targets_move_a_share_tau_towards_the_updated_critics(make: Make) -> None:
    alg = make()
    before = snapshot(alg.target_critics)
    make_learner(alg).learn(make_batch(dtype=torch.float32))
    after, goal = snapshot(alg.target_critics), snapshot(alg.network.critics)
    expected = [0.95 * old + 0.05 * new for old, new in zip(before, goal, strict=True)]
    torch.testing.assert_close(after, expected)


def test_exploration_draws_from_the_policy_and_evaluation_takes_its_mode(make: Make) -> None:
    alg, obs = make(), torch.randn(1, 2).expand(50_000, 2)
    prob = alg.network.actor(obs[:1]).logits.softmax(dim=1)[0]
    actions = alg.act(obs, START, explore=True)
    torch.testing.assert_close(actions.bincount(minlength=3) / 50_000, prob, atol=0.01, rtol=0)
    assert alg.act(obs[:1], START, explore=False).item() == prob.argmax()


def test_finds_the_end_of_a_chain(make: Make) -> None:
    """Action 2 moves on, the others stay; only the last of 4 moves is rewarded."""
    adam = partial(torch.optim.Adam, lr=0.02)
    alg = make(adam, hidden_dims=(), obs_dim=4, tau=0.2, target_entropy_share=0.05, temperature=0.1)
    learner, places = make_learner(alg), torch.eye(4)
    for _ in range(500):
        place, action = torch.randint(4, (64,)), torch.randint(3, (64,))
        following = place + (action == 2)
        ended = (following == 4).float()
        next_obs = places[following.clamp(max=3)]
        learner.learn(Transition(places[place], action, ended, 0.7 * (1 - ended), next_obs))
    assert alg.act(places, START, explore=False).tolist() == [2, 2, 2, 2]
    expected = torch.tensor([0.7**3, 0.7**2, 0.7, 1.0])
    values = alg.network.critics(places)[:, :, 2]
    torch.testing.assert_close(values.mean(dim=0), expected, atol=0.06, rtol=0)
