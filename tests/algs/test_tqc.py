"""TQC: the truncated target, the quantile loss, the gradients, and a task it must solve."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.quantiles import quantile_huber_loss
from research.algs.sac import Noise
from research.algs.tqc import TQC
from research.networks.quantile_critics import QuantileActorCritic
from tests.algs.learning import make_learner
from tests.algs.test_td3 import ADAM, START, assert_gradient, make_batch, make_double, shift
from tests.conftest import Spaces

NUMBERS: dict[str, Any] = {
    "tau": 0.05,
    "temperature": 0.3,
    "target_entropy": None,
    "dropped_quantiles": 1,
    "actor_every": 1,
    "target_every": 1,
}

Make: TypeAlias = Callable[..., TQC]


@pytest.fixture
def make(spaces: Spaces) -> Make:
    """Makes TQC with two critics of three quantiles; ``make(tau=1.0)`` changes a number."""

    def make(
        optim: OptimFactory = ADAM,
        hidden_dims: tuple[int, ...] = (32, 32),
        num_quantiles: int = 3,
        **changes: Any,
    ) -> TQC:
        network = QuantileActorCritic(
            *spaces,
            actor_hidden_dims=hidden_dims,
            critic_hidden_dims=hidden_dims,
            num_critics=2,
            num_quantiles=num_quantiles,
            activation=nn.ELU,  # smooth, for finite differences
            layer_norm=False,
            init=None,
            log_std_bounds=(-5, 2),
        )
        return TQC(network, optim=optim, **(NUMBERS | changes))

    return make


@pytest.fixture
def tqc(make: Make) -> TQC:
    return make()


def by_hand(quantiles: Tensor, target: Tensor) -> Tensor:
    """The mean quantile Huber loss of M quantiles and K atoms, term by term."""
    total = torch.zeros((), dtype=quantiles.dtype)
    for index, quantile in enumerate(quantiles):
        probability = (2 * index + 1) / (2 * len(quantiles))
        for atom in target:
            error = atom - quantile
            is_small = abs(error.item()) <= 1
            huber = error**2 / 2 if is_small else error * error.sign() - 0.5
            total = total + huber * (1 - probability if error.item() < 0 else probability)
    return total / (len(quantiles) * len(target))


@pytest.mark.parametrize(
    ("dropped", "kept"),
    [
        (0, [[1, 2, 3, 4, 5, 6], [-9, -8, -7, 7, 8, 9]]),
        (1, [[1, 2, 3, 4], [-9, -8, -7, 7]]),
        (2, [[1, 2], [-9, -8]]),
    ],
)
def test_target_leaves_out_the_highest_quantiles_of_all_critics_together(
    make: Make, monkeypatch: pytest.MonkeyPatch, dropped: int, kept: list[list[float]]
) -> None:
    tqc = make(dropped_quantiles=dropped)
    quantiles = torch.tensor(
        [[[5.0, 1.0, 3.0], [7.0, 9.0, 8.0]], [[2.0, 6.0, 4.0], [-7.0, -9.0, -8.0]]]
    )
    monkeypatch.setattr(tqc.target_critics, "forward", lambda obs, action: quantiles)
    batch = make_batch(2)._replace(
        reward=torch.tensor([1.0, -2.0]), discount=torch.tensor([0.9, 0.5])
    )
    noise = torch.randn(2, 2)
    _, log_prob = tqc.network.actor(batch.next_obs).sample(noise)
    for row, atoms in enumerate(tqc.compute_target(batch, noise)):
        soft = torch.tensor(kept[row]) - 0.3 * log_prob[row].item()
        torch.testing.assert_close(atoms, batch.reward[row] + batch.discount[row] * soft)


def test_target_ignores_the_future_after_termination(tqc: TQC) -> None:
    batch = make_batch(discount=0.0)
    target = tqc.compute_target(batch, torch.randn(64, 2))
    assert torch.equal(target, batch.reward[:, None].expand(64, 4))


def test_target_takes_the_actor_as_it_is_and_the_critics_as_they_were(tqc: TQC) -> None:
    batch, noise = make_batch(), torch.randn(64, 2)
    shift(tqc.network)
    target = tqc.compute_target(batch._replace(obs=batch.obs + 1, action=batch.action / 2), noise)
    action, log_prob = tqc.network.actor(batch.next_obs).sample(noise)
    one, other = tqc.target_critics(batch.next_obs, action)
    lowest = torch.cat([one, other], dim=1).sort(dim=1).values[:, :4]
    expected = batch.reward[:, None] + 0.9 * (lowest - 0.3 * log_prob[:, None])
    torch.testing.assert_close(target, expected.detach())


def test_the_quantile_loss_is_that_of_every_pair_of_quantile_and_atom() -> None:
    quantiles = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    target = 2 * torch.randn(4, 6, dtype=torch.float64)
    loss = quantile_huber_loss(quantiles, target)
    rows = [[by_hand(*pair) for pair in zip(each, target, strict=True)] for each in quantiles]
    expected = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    weights = torch.randn(2, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * loss).sum(), [quantiles])
    (by_terms,) = torch.autograd.grad((weights * expected).sum(), [quantiles])
    torch.testing.assert_close(gradient, by_terms, rtol=0, atol=1e-12)


def test_the_quantile_loss_is_lowest_at_the_quantiles() -> None:
    """Of atoms 0 to 999, which are so far apart that the Huber loss is nearly the absolute one."""
    quantiles = torch.full((1, 4), 500.0, dtype=torch.float64, requires_grad=True)
    target = torch.arange(1000, dtype=torch.float64)[None]
    optim = torch.optim.SGD([quantiles], lr=400.0)
    for _ in range(300):
        optim.zero_grad()
        quantile_huber_loss(quantiles, target).sum().backward()
        optim.step()
    expected = torch.tensor([[125.0, 375.0, 625.0, 875.0]], dtype=torch.float64)
    torch.testing.assert_close(quantiles.detach(), expected, atol=2.0, rtol=0)


def test_critics_descend_the_sum_of_their_quantile_losses(make: Make) -> None:
    tqc, batch, noise = make_double(make)
    target = tqc.compute_target(batch, noise)

    def loss() -> Tensor:
        one, other = tqc.network.critics(batch.obs, batch.action)
        return (quantile_huber_loss(one, target) + quantile_huber_loss(other, target)).sum() / 8

    result = tqc.critic_loss(batch, Noise(noise, -noise))
    assert_gradient(result, tqc.network.critics, loss)
    assert result.metrics["target_q"].item() == pytest.approx(target.mean().item())
    q = tqc.network.critics(batch.obs, batch.action).mean().item()
    assert result.metrics["q"].item() == pytest.approx(q)


def test_actor_climbs_the_mean_of_all_quantiles_and_its_entropy(make: Make) -> None:
    tqc, batch, noise = make_double(make)

    def loss() -> Tensor:
        action, log_prob = tqc.network.actor(batch.obs).sample(noise)
        one, other = tqc.network.critics(batch.obs, action)
        return (0.3 * log_prob - (one.mean(dim=1) + other.mean(dim=1)) / 2).mean()

    result = tqc.actor_loss(batch, Noise(-noise, noise), batch.obs)
    assert_gradient(result, tqc.network.actor, loss)
    _, log_prob = tqc.network.actor(batch.obs).sample(noise)
    assert torch.equal(result.result, log_prob)
    assert result.metrics["entropy"].item() == pytest.approx(-log_prob.mean().item())


def test_the_temperature_descends_as_that_of_sac(make: Make) -> None:
    tqc = make(partial(torch.optim.SGD, lr=1.0), target_entropy=0.7)
    before = tqc.log_temperature.item()
    metrics = make_learner(tqc).learn(make_batch())
    gradient = 0.3 * (metrics["entropy"].item() - 0.7)
    assert tqc.log_temperature.item() == pytest.approx(before - gradient)


def test_targets_move_a_share_tau_towards_the_updated_critics(tqc: TQC) -> None:
    before = [parameter.clone() for parameter in tqc.target_critics.parameters()]
    make_learner(tqc).learn(make_batch())
    for new, old, goal in zip(
        tqc.target_critics.parameters(), before, tqc.network.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * goal)


def test_leaving_out_every_quantile_is_refused_with_both_numbers(make: Make) -> None:
    match = r"^dropped_quantiles must be below network\.num_quantiles=3, got 3$"
    with pytest.raises(ValueError, match=match):
        make(dropped_quantiles=3)


def test_solves_a_bandit(make: Make) -> None:
    tqc = make(optim=partial(torch.optim.Adam, lr=3e-3), temperature=0.02, num_quantiles=5)
    learner = make_learner(tqc)
    for _ in range(400):
        learner.learn(make_batch(discount=0.0))
    obs = torch.rand(256, 3) * 2 - 1
    error = tqc.act(obs, START, explore=False) - obs[:, :2] / 2
    assert error.abs().mean() < 0.1  # 0.25 untrained
