"""SAC: the soft target, the gradients, the temperature, the periods, and a task it must solve."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.sac import SAC, Noise
from research.networks.squashed_gaussian import SquashedGaussianActorCritic
from tests.algs.learning import make_learner
from tests.algs.test_td3 import (
    ADAM,
    START,
    assert_gradient,
    make_batch,
    make_double,
    moved,
    shift,
    snapshot,
)
from tests.conftest import Spaces

NUMBERS: dict[str, Any] = {
    "tau": 0.05,
    "temperature": 0.3,
    "target_entropy": None,
    "entropy_per_action": -1.0,
    "actor_every": 1,
    "target_every": 1,
}

Make: TypeAlias = Callable[..., SAC]


@pytest.fixture
def make(spaces: Spaces) -> Make:
    """Makes SAC with small networks; ``make(tau=1.0)`` changes a number."""

    def make(
        optim: OptimFactory = ADAM, hidden_dims: tuple[int, ...] = (32, 32), **changes: Any
    ) -> SAC:
        network = SquashedGaussianActorCritic(
            *spaces,
            hidden_dims=hidden_dims,
            num_critics=2,
            activation=nn.ELU,  # smooth, for finite differences
            layer_norm=False,
            init=None,
            log_std_bounds=(-5, 2),
        )
        return SAC(network, optim=optim, **(NUMBERS | changes))

    return make


@pytest.fixture
def sac(make: Make) -> SAC:
    return make()


def test_target_is_reward_plus_discounted_lowest_critic_and_entropy(
    sac: SAC, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.tensor([[3.0, 5.0, 7.0], [4.0, 1.0, -2.0]])
    monkeypatch.setattr(sac.target_critics, "forward", lambda obs, action: values)
    batch = make_batch(3)._replace(
        reward=torch.tensor([1.0, 2.0, -1.0]), discount=torch.tensor([0.9, 0.5, 0.81])
    )
    noise = torch.randn(3, 2)
    _, log_prob = sac.network.actor(batch.next_obs).sample(noise)
    lowest = torch.tensor([3.0, 1.0, -2.0])
    expected = batch.reward + batch.discount * (lowest - 0.3 * log_prob)
    torch.testing.assert_close(sac.compute_target(batch, noise), expected.detach())


def test_target_ignores_the_future_after_termination(sac: SAC) -> None:
    batch = make_batch(discount=0.0)
    assert torch.equal(sac.compute_target(batch, torch.randn(64, 2)), batch.reward)


def test_target_takes_the_actor_as_it_is_and_the_critics_as_they_were(sac: SAC) -> None:
    batch, noise = make_batch(), torch.randn(64, 2)
    shift(sac.network)
    target = sac.compute_target(batch._replace(obs=batch.obs + 1, action=batch.action / 2), noise)
    action, log_prob = sac.network.actor(batch.next_obs).sample(noise)
    next_q = sac.target_critics(batch.next_obs, action)
    expected = torch.minimum(next_q[0], next_q[1]) - 0.3 * log_prob
    torch.testing.assert_close(target, (batch.reward + 0.9 * expected).detach())


def test_critics_descend_the_sum_of_their_squared_errors_to_the_target(make: Make) -> None:
    sac, batch, noise = make_double(make)
    target_q = sac.compute_target(batch, noise)

    def loss() -> Tensor:
        return (sac.network.critics(batch.obs, batch.action) - target_q).square().sum() / 8

    result = sac.critic_loss(batch, Noise(noise, -noise))
    assert_gradient(result, sac.network.critics, loss)
    assert result.metrics["target_q"].item() == pytest.approx(target_q.mean().item())


def test_actor_climbs_the_lowest_critic_and_its_entropy(make: Make) -> None:
    sac, batch, noise = make_double(make)

    def loss() -> Tensor:
        action, log_prob = sac.network.actor(batch.obs).sample(noise)
        q = sac.network.critics(batch.obs, action)
        return (0.3 * log_prob - torch.minimum(q[0], q[1])).mean()

    assert_gradient(sac.actor_loss(batch, Noise(-noise, noise)), sac.network.actor, loss)


@pytest.mark.parametrize(
    ("changes", "aim"),
    [
        ({}, -2.0),
        ({"entropy_per_action": -0.5}, -1.0),
        ({"target_entropy": 0.7, "entropy_per_action": -0.5}, 0.7),
    ],
)
def test_the_temperature_descends_its_closed_form_gradient(
    make: Make, changes: dict[str, float], aim: float
) -> None:
    """d/d(log alpha) of alpha (entropy - target) is alpha (entropy - target)."""
    sac = make(partial(torch.optim.SGD, lr=1.0), **changes)
    before = sac.log_temperature.item()
    metrics = make_learner(sac).learn(make_batch())
    gradient = 0.3 * (metrics["entropy"].item() - aim)
    assert sac.log_temperature.item() == pytest.approx(before - gradient)
    assert metrics["temperature"].item() == pytest.approx(0.3)
    assert metrics["temperature_loss"].item() == pytest.approx(gradient)


def test_entropy_is_minus_the_mean_log_density_of_the_actors_actions(sac: SAC) -> None:
    batch, noise = make_batch(), torch.randn(64, 2)
    _, log_prob = sac.network.actor(batch.obs).sample(noise)
    metrics = sac.actor_loss(batch, Noise(-noise, noise)).metrics
    assert metrics["entropy"].item() == pytest.approx(-log_prob.mean().item())


@pytest.mark.parametrize(("entropy", "rises"), [(-5.0, True), (1.0, False)])
def test_the_temperature_rises_while_there_is_too_little_entropy(
    sac: SAC, entropy: float, rises: bool
) -> None:
    batch = make_batch(4)
    loss = sac.temperature_loss(batch, sac.draw(batch, START), torch.full((4,), -entropy))
    (gradient,) = torch.autograd.grad(loss.value, [sac.log_temperature])
    assert (gradient.item() < 0) == rises


def test_each_loss_trains_its_part(sac: SAC) -> None:
    trains = {objective.name: objective.trains for objective in sac.objectives()}
    assert trains == {
        "critic": [sac.network.critics],
        "actor": [sac.network.actor],
        "temperature": [sac.log_temperature],
    }


@pytest.mark.parametrize(("actor_every", "target_every"), [(1, 1), (2, 3), (3, 2)])
def test_actor_and_targets_move_with_every_nth_update_only(
    make: Make, actor_every: int, target_every: int
) -> None:
    sac = make(actor_every=actor_every, target_every=target_every)
    learner = make_learner(sac)
    for update in range(1, 7):
        before = (
            snapshot(sac.network.actor),
            snapshot(sac.network.critics),
            snapshot(sac.target_critics),
        )
        temperature = sac.temperature.item()
        learner.learn(make_batch())
        is_actors_turn = update % actor_every == 0
        assert moved(sac.network.critics, before[1])
        assert moved(sac.network.actor, before[0]) == is_actors_turn
        assert (sac.temperature.item() != temperature) == is_actors_turn
        assert moved(sac.target_critics, before[2]) == (update % target_every == 0)


def test_targets_move_a_share_tau_towards_the_updated_critics(sac: SAC) -> None:
    before = snapshot(sac.target_critics)
    make_learner(sac).learn(make_batch())
    for new, old, goal in zip(
        sac.target_critics.parameters(), before, sac.network.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * goal)


def test_every_update_draws_new_standard_noise_for_critics_and_actor(sac: SAC) -> None:
    batch = make_batch(20_000)
    drawn = [noise for _ in range(2) for noise in sac.draw(batch, START)]
    for noise in drawn:
        assert noise.shape == (20_000, 2)
        assert noise.mean().item() == pytest.approx(0, abs=0.03)
        assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert len({noise.sum().item() for noise in drawn}) == 4


def test_without_exploration_the_squashed_mean_decides(sac: SAC) -> None:
    obs = torch.randn(10, 3)
    expected = sac.network.actor(obs).mean.tanh()
    assert torch.equal(sac.act(obs, START, explore=False), expected)
    one, other = (sac.act(obs, START, explore=True) for _ in range(2))
    assert not torch.equal(one, other)


def test_exploration_draws_from_the_actors_distribution(sac: SAC) -> None:
    obs = torch.randn(1, 3).expand(100_000, 3)
    distribution = sac.network.actor(obs[:1])
    x = sac.act(obs, START, explore=True).clamp(-0.999999, 0.999999).atanh()
    median = x.median(dim=0).values
    torch.testing.assert_close(median, distribution.mean[0], atol=0.03, rtol=0)
    spread = x.quantile(0.8413, dim=0) - median
    torch.testing.assert_close(spread, distribution.log_std[0].exp(), atol=0.03, rtol=0.03)


def test_targets_begin_equal_to_the_critics_and_take_no_gradients(sac: SAC) -> None:
    for new, old in zip(
        sac.target_critics.parameters(), sac.network.critics.parameters(), strict=True
    ):
        assert torch.equal(new, old)
        assert not new.requires_grad


def test_solves_a_bandit(make: Make) -> None:
    sac = make(optim=partial(torch.optim.Adam, lr=3e-3), temperature=0.02)
    learner = make_learner(sac)
    for _ in range(400):
        learner.learn(make_batch(discount=0.0))
    obs = torch.rand(256, 3) * 2 - 1
    error = sac.act(obs, START, explore=False) - obs[:, :2] / 2
    assert error.abs().mean() < 0.1  # 0.25 untrained
