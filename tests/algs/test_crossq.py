"""CrossQ: one joint pass, no targets, whose statistics move when, and a task it must solve."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.crossq import CrossQ
from research.algs.sac import Noise
from research.networks.batch_renorm import BatchRenormActorCritic
from tests.algs.learning import make_learner
from tests.algs.test_td3 import ADAM, START, assert_gradient, make_batch, moved, snapshot
from tests.conftest import Load, Spaces

NUMBERS: dict[str, Any] = {"temperature": 0.3, "target_entropy": None, "actor_every": 1}

Make: TypeAlias = Callable[..., CrossQ]


@pytest.fixture
def make(spaces: Spaces) -> Make:
    """Makes CrossQ with small networks; ``make(temperature=1.0)`` changes a number."""

    def make(
        optim: OptimFactory = ADAM,
        hidden_dims: tuple[int, ...] = (32, 32),
        warmup: int = 0,
        **changes: Any,
    ) -> CrossQ:
        network = BatchRenormActorCritic(
            *spaces,
            actor_hidden_dims=hidden_dims,
            critic_hidden_dims=hidden_dims,
            num_critics=2,
            activation=nn.ELU,  # smooth, for finite differences
            init=None,
            log_std_bounds=(-5, 2),
            momentum=0.1,
            warmup=warmup,
        )
        return CrossQ(network, optim=optim, **(NUMBERS | changes))

    return make


@pytest.fixture
def crossq(make: Make) -> CrossQ:
    return make()


def statistics(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


def restore(module: nn.Module, values: list[Tensor]) -> None:
    for buffer, value in zip(module.buffers(), values, strict=True):
        buffer.copy_(value)


def have_moved(module: nn.Module, before: list[Tensor]) -> bool:
    return not all(map(torch.equal, module.buffers(), before))


def make_double(make: Make, **changes: Any) -> tuple[CrossQ, Any, Tensor]:
    """The algorithm with statistics of other batches, a batch and noise, all in float64."""
    crossq = make(hidden_dims=(4,), **changes)
    learner = make_learner(crossq)
    for _ in range(20):
        learner.learn(make_batch())
    crossq.double()
    batch = type(make_batch())(*(value.double() for value in make_batch(8)))
    return crossq, batch, torch.randn(8, 2, dtype=torch.float64)


def test_there_is_no_target_network(crossq: CrossQ) -> None:
    assert not crossq.copies()
    assert all(parameter.requires_grad for parameter in crossq.parameters())
    assert {name.partition(".")[0] for name, _ in crossq.named_parameters()} == {
        "network",
        "log_temperature",
    }


def test_both_actions_are_rated_in_one_pass(
    crossq: CrossQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, noise = make_batch(8), torch.randn(8, 2)
    next_action, _ = crossq.network.actor(batch.next_obs).sample(noise)
    passes = []

    def rate(obs: Tensor, action: Tensor, is_learning: bool = False) -> Tensor:
        passes.append((obs, action, is_learning))
        return torch.zeros(2, len(obs), requires_grad=True)

    monkeypatch.setattr(crossq.network.critics, "forward", rate)
    crossq.critic_loss(batch, Noise(noise, -noise))
    ((obs, action, is_learning),) = passes
    assert is_learning
    assert torch.equal(obs, torch.cat([batch.obs, batch.next_obs]))
    assert torch.equal(action, torch.cat([batch.action, next_action.detach()]))


def test_target_is_reward_plus_discounted_lowest_next_value_and_entropy(crossq: CrossQ) -> None:
    batch = make_batch(3)._replace(
        reward=torch.tensor([1.0, 2.0, -1.0]), discount=torch.tensor([0.9, 0.5, 0.0])
    )
    next_q = torch.tensor([[3.0, 5.0, 7.0], [4.0, 1.0, -2.0]])
    log_prob = torch.tensor([-1.0, 2.0, 0.5])
    expected = torch.tensor([1 + 0.9 * (3 + 0.3), 2 + 0.5 * (1 - 0.6), -1.0])
    torch.testing.assert_close(crossq.compute_target(batch, next_q, log_prob), expected)


@pytest.mark.parametrize("warmup", [0, 1000])
def test_critics_descend_their_squared_errors_through_the_joint_statistics(
    make: Make, warmup: int
) -> None:
    """No gradient flows through the target, nor through ratio and shift to running statistics."""
    crossq, batch, noise = make_double(make, warmup=warmup)
    critics, before = crossq.network.critics, statistics(crossq.network.critics)
    next_action, log_prob = crossq.network.actor(batch.next_obs).sample(noise)
    both = torch.cat([batch.obs, batch.next_obs]), torch.cat([batch.action, next_action.detach()])
    _, next_q = critics(*both, is_learning=True).chunk(2, dim=1)
    temperature = crossq.temperature.item()
    lowest = torch.minimum(next_q[0], next_q[1]) - temperature * log_prob
    target_q = (batch.reward + batch.discount * lowest).detach()
    restore(critics, before)
    q, _ = critics(*both, is_learning=True).chunk(2, dim=1)
    expected = (q - target_q).square().sum() / 8
    gradients = torch.autograd.grad(expected, list(critics.parameters()))
    restore(critics, before)
    result = crossq.critic_loss(batch, Noise(noise, -noise))
    assert result.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert result.metrics["target_q"].item() == pytest.approx(target_q.mean().item())
    own = torch.autograd.grad(result.value, list(critics.parameters()))
    torch.testing.assert_close(own, gradients, rtol=1e-9, atol=1e-12)


def test_actor_climbs_the_lowest_critic_and_its_entropy(make: Make) -> None:
    """The critics rate by their running statistics, the actor learns by those of the batch."""
    crossq, batch, noise = make_double(make, warmup=1000)
    temperature = crossq.temperature.item()

    def loss() -> Tensor:
        action, log_prob = crossq.network.actor(batch.obs, is_learning=True).sample(noise)
        q = crossq.network.critics.eval()(batch.obs, action)
        crossq.network.critics.train()
        return (temperature * log_prob - torch.minimum(q[0], q[1])).mean()

    assert_gradient(
        crossq.actor_loss(batch, Noise(-noise, noise), batch.obs), crossq.network.actor, loss
    )


def test_only_the_joint_pass_moves_the_critics_statistics_and_the_actors_loss_its_own(
    crossq: CrossQ,
) -> None:
    batch, network = make_batch(), crossq.network
    noise = crossq.draw(batch, START)
    critics, actor = statistics(network.critics), statistics(network.actor)
    crossq.critic_loss(batch, noise)
    assert have_moved(network.critics, critics)
    assert not have_moved(network.actor, actor)
    critics = statistics(network.critics)
    crossq.actor_loss(batch, noise, batch.obs)
    assert have_moved(network.actor, actor)
    assert not have_moved(network.critics, critics)


@pytest.mark.parametrize("explore", [False, True])
def test_acting_normalises_by_the_running_statistics_and_leaves_them(
    crossq: CrossQ, explore: bool
) -> None:
    """In training mode, too, in which the collector acts: each action depends on its obs alone."""
    make_learner(crossq).learn(make_batch())
    before, obs = statistics(crossq), torch.randn(10, 3)
    crossq.train()
    torch.manual_seed(3)
    together = crossq.act(obs, START, explore)
    others = torch.cat([obs[:1], 5 * torch.randn(9, 3)])
    torch.manual_seed(3)
    torch.testing.assert_close(crossq.act(others, START, explore)[0], together[0])
    assert not have_moved(crossq, before)
    crossq.eval()
    torch.manual_seed(3)
    torch.testing.assert_close(crossq.act(obs, START, explore), together)


def test_actor_and_temperature_move_with_every_nth_update_only(make: Make) -> None:
    crossq = make(actor_every=3)
    learner = make_learner(crossq)
    for update in range(1, 7):
        actor, critics = snapshot(crossq.network.actor), snapshot(crossq.network.critics)
        running, temperature = statistics(crossq.network.actor), crossq.temperature.item()
        learner.learn(make_batch())
        is_actors_turn = update % 3 == 0
        assert moved(crossq.network.critics, critics)
        assert moved(crossq.network.actor, actor) == is_actors_turn
        assert have_moved(crossq.network.actor, running) == is_actors_turn
        assert (crossq.temperature.item() != temperature) == is_actors_turn


def test_the_numbers_are_those_of_the_authors(load: Load) -> None:
    cfg = load("alg=crossq")
    assert (cfg.alg.optim.lr, list(cfg.alg.optim.betas)) == (1e-3, [0.5, 0.999])
    assert (cfg.alg.actor_every, list(cfg.network.critic_hidden_dims)) == (3, [2048, 2048])


def test_solves_a_bandit(make: Make) -> None:
    crossq = make(optim=partial(torch.optim.Adam, lr=3e-3), temperature=0.02, warmup=200)
    learner = make_learner(crossq)
    for _ in range(400):
        learner.learn(make_batch(discount=0.0))
    obs = torch.rand(256, 3) * 2 - 1
    error = crossq.act(obs, START, explore=False) - obs[:, :2] / 2
    assert error.abs().mean() < 0.1  # 0.25 untrained
