"""TD3: the target, the delay, the noise, the gradients, and a task it must solve."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import Algorithm, Loss, OptimFactory
from research.algs.td3 import TD3
from research.batches import Transition
from research.networks.actor_critic import ActorCritic
from tests.algs.learning import make_learner
from tests.conftest import Spaces

NUMBERS: dict[str, Any] = {
    "tau": 0.05,
    "explore_noise": 0.1,
    "target_noise": 0.2,
    "noise_clip": 0.5,
    "actor_every": 2,
}
ADAM = partial(torch.optim.Adam, lr=1e-3)
START = torch.zeros((), dtype=torch.float64)

A = TypeVar("A", bound=Algorithm)
Make: TypeAlias = Callable[..., TD3]


@pytest.fixture
def make(spaces: Spaces) -> Make:
    """Makes TD3 with small networks; ``make(tau=1.0)`` changes a number."""

    def make(
        optim: OptimFactory = ADAM, hidden_dims: tuple[int, ...] = (32, 32), **changes: Any
    ) -> TD3:
        network = ActorCritic(
            *spaces,
            hidden_dims=hidden_dims,
            num_critics=2,
            activation=nn.ELU,  # smooth, for finite differences
            layer_norm=False,
            init=None,
        )
        return TD3(network, optim=optim, **(NUMBERS | changes))

    return make


@pytest.fixture
def td3(make: Make) -> TD3:
    return make()


def make_batch(size: int = 64, discount: float = 0.9) -> Transition:
    """Steps of a bandit whose best action is half of the first two observations."""
    obs, next_obs = torch.rand(2, size, 3) * 2 - 1
    action = torch.rand(size, 2) * 2 - 1
    reward = -(action - obs[:, :2] / 2).square().sum(dim=-1)
    return Transition(obs, action, reward, torch.full((size,), discount), next_obs)


def fix_actor(network: ActorCritic, *actions: float) -> None:
    """Make the actor give these actions whatever it observes."""
    *_, weight, bias = network.actor.parameters()
    with torch.no_grad():
        weight.zero_()
        bias.copy_(torch.tensor(actions).atanh())


@torch.no_grad()
def shift(network: nn.Module) -> None:
    """Take a network away from its target."""
    for parameter in network.parameters():
        parameter.add_(0.3)


def snapshot(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(module: nn.Module, before: list[Tensor]) -> bool:
    return any(
        not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)
    )


def make_double(make: Callable[..., A]) -> tuple[A, Transition, Tensor]:
    """An algorithm away from its targets, a batch and noise, precise enough for differences."""
    alg = make(hidden_dims=(4,)).double()
    shift(alg.get_submodule("network"))
    batch = Transition(*(value.double() for value in make_batch(8)))
    return alg, batch, torch.randn(8, 2, dtype=torch.float64)


def assert_gradient(result: Loss, module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Compare the value with ``loss``, and the gradient with its central differences."""
    assert result.value.item() == pytest.approx(loss().item())
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(result.value, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, slope(loss, parameter), atol=1e-7, rtol=1e-6)


@torch.no_grad()
def slope(loss: Callable[[], Tensor], parameter: Tensor) -> Tensor:
    """The gradient of ``loss`` by central differences."""
    gradient, flat = torch.zeros_like(parameter).flatten(), parameter.view(-1)
    for index, value in enumerate(flat.tolist()):
        flat[index] = value + 1e-6
        above = loss()
        flat[index] = value - 1e-6
        gradient[index] = (above - loss()) / 2e-6
        flat[index] = value
    return gradient.view_as(parameter)


def test_target_is_reward_plus_discounted_lowest_critic(
    td3: TD3, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.tensor([[3.0, 5.0, 7.0], [4.0, 1.0, -2.0]])
    monkeypatch.setattr(td3.target.critics, "forward", lambda obs, action: values)
    batch = make_batch(3)._replace(
        reward=torch.tensor([1.0, 2.0, -1.0]), discount=torch.tensor([0.9, 0.5, 0.81])
    )
    target = td3.compute_target(batch, torch.randn(3, 2))
    torch.testing.assert_close(target, torch.tensor([1 + 0.9 * 3, 2 + 0.5 * 1, -1 - 0.81 * 2]))


def test_target_ignores_the_future_after_termination(td3: TD3) -> None:
    batch = make_batch(discount=0.0)
    assert torch.equal(td3.compute_target(batch, torch.randn(64, 2)), batch.reward)


def test_target_comes_from_the_next_observation_and_the_target_network(td3: TD3) -> None:
    batch, noise = make_batch(), torch.randn(64, 2)
    shift(td3.network)
    target = td3.compute_target(batch._replace(obs=batch.obs + 1, action=batch.action / 2), noise)
    next_action = td3.target.actor(batch.next_obs) + (0.2 * noise).clamp(-0.5, 0.5)
    next_q = td3.target.critics(batch.next_obs, next_action.clamp(-1, 1))
    torch.testing.assert_close(target, batch.reward + 0.9 * torch.minimum(next_q[0], next_q[1]))


def test_target_actions_are_smoothed_by_clipped_noise_within_bounds(
    td3: TD3, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    critic = td3.target.critics.forward
    monkeypatch.setattr(
        td3.target.critics,
        "forward",
        lambda obs, action: (seen.append(action), critic(obs, action))[1],
    )
    fix_actor(td3.target, 0.9, -0.2)
    noise = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [10.0, 10.0], [-10.0, -10.0], [0.0, -8.0]])
    td3.compute_target(make_batch(5), noise)
    expected = [[1.0, 0.0], [0.7, -0.4], [1.0, 0.3], [0.4, -0.7], [0.9, -0.7]]
    torch.testing.assert_close(seen[0], torch.tensor(expected))


def test_every_update_draws_new_standard_noise(td3: TD3) -> None:
    batch = make_batch(20_000)
    one, other = (td3.draw(batch, START) for _ in range(2))
    assert one.shape == (20_000, 2)
    assert one.mean().item() == pytest.approx(0, abs=0.03)
    assert one.std().item() == pytest.approx(1, abs=0.03)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("actor_every", [1, 2, 3])
def test_actor_and_targets_move_with_every_nth_update_only(make: Make, actor_every: int) -> None:
    td3 = make(actor_every=actor_every)
    learner = make_learner(td3)
    for update in range(1, 7):
        before = snapshot(td3.network.actor), snapshot(td3.network.critics), snapshot(td3.target)
        metrics = learner.learn(make_batch())
        assert moved(td3.network.critics, before[1])
        assert moved(td3.target, before[2]) == moved(td3.network.actor, before[0])
        assert moved(td3.network.actor, before[0]) == ("actor_loss" in metrics)
        assert ("actor_loss" in metrics) == (update % actor_every == 0)


def test_targets_move_a_share_tau_towards_the_updated_network(make: Make) -> None:
    td3 = make(actor_every=1)
    learner = make_learner(td3)
    learner.learn(make_batch())
    before = snapshot(td3.target)
    learner.learn(make_batch())
    for new, old, goal in zip(
        td3.target.parameters(), before, td3.network.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * goal)


def test_exploration_adds_noise_of_the_given_std(td3: TD3) -> None:
    fix_actor(td3.network, 0.3, -0.2)
    noise = td3.act(torch.zeros(50_000, 3), START, explore=True) - torch.tensor([0.3, -0.2])
    torch.testing.assert_close(noise.std(dim=0), torch.full((2,), 0.1), atol=2e-3, rtol=0)
    torch.testing.assert_close(noise.mean(dim=0), torch.zeros(2), atol=2e-3, rtol=0)
    assert noise.T.corrcoef()[0, 1].abs() < 0.02


def test_exploring_actions_stay_in_the_box(td3: TD3) -> None:
    fix_actor(td3.network, 0.99, -0.99)
    actions = td3.act(torch.zeros(1000, 3), START, explore=True)
    assert actions.amax() == 1
    assert actions.amin() == -1


def test_without_exploration_the_actor_decides_alone(td3: TD3) -> None:
    obs = torch.randn(10, 3)
    assert torch.equal(td3.act(obs, START, explore=False), td3.network.actor(obs))


def test_critics_descend_the_sum_of_their_squared_errors_to_the_target(make: Make) -> None:
    td3, batch, noise = make_double(make)
    target_q = td3.compute_target(batch, noise)

    def loss() -> Tensor:
        errors = [td3.network.critics(batch.obs, batch.action)[i] - target_q for i in range(2)]
        return sum(error.square().sum() for error in errors) / 8  # type: ignore[return-value]

    result = td3.critic_loss(batch, noise)
    assert_gradient(result, td3.network.critics, loss)
    assert result.metrics["target_q"].item() == pytest.approx(target_q.mean().item())


def test_actor_climbs_the_first_critic(make: Make) -> None:
    td3, batch, noise = make_double(make)

    def loss() -> Tensor:
        return -td3.network.critics(batch.obs, td3.network.actor(batch.obs))[0].mean()

    assert_gradient(td3.actor_loss(batch, noise, batch.obs), td3.network.actor, loss)


def test_each_loss_trains_its_network(td3: TD3) -> None:
    trains = {objective.name: objective.trains for objective in td3.objectives()}
    network = td3.network
    assert trains == {"critic": [network.encoder, network.critics], "actor": [network.actor]}


def test_targets_begin_equal_to_the_network(td3: TD3) -> None:
    for new, old in zip(td3.target.parameters(), td3.network.parameters(), strict=True):
        assert torch.equal(new, old)


def test_solves_a_bandit(make: Make) -> None:
    td3 = make(optim=partial(torch.optim.Adam, lr=3e-3))
    learner = make_learner(td3)
    for _ in range(300):
        learner.learn(make_batch(discount=0.0))
    obs = torch.rand(256, 3) * 2 - 1
    error = td3.act(obs, START, explore=False) - obs[:, :2] / 2
    assert error.abs().mean() < 0.1  # 0.25 untrained
