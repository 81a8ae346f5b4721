"""DrQ-v2: the target, the gradients and where they stop, the noise, and a task it must solve."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from benchmarks.drqv2_plain import PlainDrQv2, TwinCritics
from benchmarks.pixel_reach import OVERRIDES, mean_return, move_straight
from research.algs.base import OptimFactory
from research.algs.drqv2 import DrQv2, Noise
from research.batches import Transition
from research.networks.drqv2 import DrQv2ActorCritic
from research.processors.random_shift import RandomShift
from tests.algs.learning import make_learner
from tests.algs.test_td3 import ADAM, START, assert_gradient, shift, snapshot
from tests.commands import train
from tests.conftest import Load
from tests.training.toys import rows

NUMBERS: dict[str, Any] = {
    "tau": 0.05,
    "noise_start": 1.0,
    "noise_end": 0.2,
    "noise_steps": 100,
    "noise_clip": 0.3,
}
IMAGES = Box(0, 255, (2, 15, 15), np.uint8)
ACTIONS = Box(-1, 1, (2,), np.float32)

Make: TypeAlias = Callable[..., DrQv2]


@pytest.fixture
def make() -> Make:
    """Makes DrQ-v2 with small networks; ``make(tau=1.0)`` changes a number."""

    def make(
        optim: OptimFactory = ADAM, hidden_dims: tuple[int, ...] = (32,), **changes: Any
    ) -> DrQv2:
        network = DrQv2ActorCritic(
            IMAGES, ACTIONS, feature_dim=8, hidden_dims=hidden_dims, num_critics=2
        )
        return DrQv2(network, optim=optim, **(NUMBERS | changes))

    return make


@pytest.fixture
def drqv2(make: Make) -> DrQv2:
    return make()


def make_batch(size: int = 32, discount: float = 0.9) -> Transition:
    """Steps of a bandit whose best action is the brightness of the two channels, less a half."""
    brightness = torch.rand(2, size, 2)
    images = (brightness * 255).round().to(torch.uint8)[..., None, None].expand(-1, -1, -1, 15, 15)
    action = torch.rand(size, 2) * 2 - 1
    reward = -(action - (brightness[0] - 0.5)).square().sum(dim=-1)
    return Transition(images[0], action, reward, torch.full((size,), discount), images[1])


def test_target_is_reward_plus_discounted_lowest_critic(
    drqv2: DrQv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.tensor([[3.0, 5.0, 7.0], [4.0, 1.0, -2.0]])
    monkeypatch.setattr(drqv2.target_critics, "forward", lambda encoded, action: values)
    batch = make_batch(3)._replace(
        reward=torch.tensor([1.0, 2.0, -1.0]), discount=torch.tensor([0.9, 0.5, 0.81])
    )
    target = drqv2.compute_target(batch, torch.randn(3, 2))
    torch.testing.assert_close(target, torch.tensor([1 + 0.9 * 3, 2 + 0.5 * 1, -1 - 0.81 * 2]))


def test_target_ignores_the_future_after_termination(drqv2: DrQv2) -> None:
    batch = make_batch(discount=0.0)
    assert torch.equal(drqv2.compute_target(batch, torch.randn(32, 2)), batch.reward)


def test_target_takes_encoder_and_actor_as_they_are_and_the_critics_as_they_were(
    drqv2: DrQv2,
) -> None:
    batch, noise = make_batch(), torch.randn(32, 2)
    with torch.no_grad():
        for parameter in drqv2.network.parameters():
            parameter.mul_(1.3)
    target = drqv2.compute_target(batch._replace(obs=255 - batch.obs), noise)
    encoded = drqv2.network.encoder(batch.next_obs)
    action = (drqv2.network.actor(encoded) + noise.clamp(-0.3, 0.3)).clamp(-1 + 1e-6, 1 - 1e-6)
    next_q = drqv2.target_critics(encoded, action)
    expected = batch.reward + 0.9 * torch.minimum(next_q[0], next_q[1])
    torch.testing.assert_close(target, expected.detach())


def test_noise_is_clipped_and_actions_stay_inside_with_the_gradient_passing(
    drqv2: DrQv2,
) -> None:
    action = torch.tensor([0.9, -0.2, 0.5, -0.9], requires_grad=True)
    moved_action = drqv2.perturb(action, torch.tensor([5.0, -5.0, 0.1, -0.05]))
    expected = torch.tensor([1 - 1e-6, -0.5, 0.6, -0.95])
    torch.testing.assert_close(moved_action.detach(), expected)
    moved_action.sum().backward()
    assert action.grad is not None
    assert action.grad.tolist() == [1, 1, 1, 1]


def test_the_noise_falls_linearly_and_then_stays(drqv2: DrQv2) -> None:
    stds = [drqv2.noise_std(torch.tensor(step)).item() for step in (0, 25, 50, 100, 1000)]
    assert stds == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(("step", "std"), [(50, 0.6), (10_000, 0.2)])
def test_exploration_adds_the_noise_of_its_step_unclipped(
    make: Make, step: int, std: float
) -> None:
    drqv2 = make()
    with torch.no_grad():
        for parameter in drqv2.network.actor.parameters():
            parameter.zero_()
    obs = torch.zeros(20_000, 2, 15, 15, dtype=torch.uint8)
    actions = drqv2.act(obs, torch.tensor(step), explore=True)
    inside = actions.abs() < 0.99
    # the share of a normal distribution that lies within 0.99
    normal = torch.distributions.Normal(0.0, std)
    expected = 1 - 2 * normal.cdf(torch.tensor(-0.99)).item()
    assert inside.float().mean().item() == pytest.approx(expected, abs=0.01)
    assert actions.abs().quantile(0.3829).item() == pytest.approx(std / 2, rel=0.05)
    assert actions.abs().amax() <= 1 - 1e-6


def test_an_update_draws_noise_of_its_step(drqv2: DrQv2) -> None:
    one, other = drqv2.draw(make_batch(4000), torch.tensor(50.0))
    for noise in (one, other):
        assert noise.shape == (4000, 2)
        assert noise.std().item() == pytest.approx(0.6, rel=0.05)
    assert not torch.equal(one, other)


def test_critics_and_encoder_descend_the_sum_of_the_squared_errors_to_the_target(
    make: Make,
) -> None:
    drqv2 = make(hidden_dims=(4,))
    batch, noise = make_batch(8), torch.randn(8, 2)
    shift(drqv2.network.critics)
    target_q = drqv2.compute_target(batch, noise)
    learners = [*drqv2.network.encoder.parameters(), *drqv2.network.critics.parameters()]
    q = drqv2.network.critics(drqv2.network.encoder(batch.obs), batch.action)
    expected = ((q[0] - target_q).square().sum() + (q[1] - target_q).square().sum()) / 8
    loss = drqv2.critic_loss(batch, Noise(noise, -noise))
    gradients = torch.autograd.grad(loss.value, learners)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, learners), atol=1e-6, rtol=1e-4
    )
    assert any(gradient.abs().amax() > 1e-4 for gradient in gradients[:8])
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.metrics["target_q"].item() == pytest.approx(target_q.mean().item(), rel=1e-5)


def test_actor_climbs_the_lowest_critic(make: Make) -> None:
    drqv2 = make(hidden_dims=(4,)).double()
    encoded = torch.rand(8, drqv2.network.encoder.output_dim, dtype=torch.float64)
    noise = 0.05 * torch.randn(8, 2, dtype=torch.float64)

    def loss() -> Tensor:
        action = drqv2.network.actor(encoded) + noise
        assert action.abs().amax() < 1
        q = drqv2.network.critics(encoded, action)
        return -torch.minimum(q[0], q[1]).mean()

    (*_, last) = (m for m in drqv2.network.actor.modules() if isinstance(m, nn.Linear))
    assert_gradient(drqv2.actor_loss(make_batch(8), Noise(-noise, noise), encoded), last, loss)


def test_each_loss_trains_its_networks(drqv2: DrQv2) -> None:
    network = drqv2.network
    trains = {objective.name: objective.trains for objective in drqv2.objectives()}
    assert trains == {"critic": [network.encoder, network.critics], "actor": [network.actor]}


def test_the_actor_learns_from_the_encoding_before_the_critics_step(
    drqv2: DrQv2,
) -> None:
    seen: list[Tensor] = []
    drqv2.network.actor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = make_batch()
    expected = drqv2.network.encoder(batch.obs).detach()
    make_learner(drqv2).learn(batch)
    assert torch.equal(seen[-1], expected)
    assert not seen[-1].requires_grad


def test_targets_move_a_share_tau_towards_the_updated_critics(drqv2: DrQv2) -> None:
    before = snapshot(drqv2.target_critics)
    make_learner(drqv2).learn(make_batch())
    for new, old, goal in zip(
        drqv2.target_critics.parameters(), before, drqv2.network.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * goal)


def test_solves_a_bandit(make: Make) -> None:
    drqv2 = make(optim=partial(torch.optim.Adam, lr=1e-3), hidden_dims=(64, 64))
    learner = make_learner(drqv2)
    learner.step.fill_(100)
    for _ in range(250):
        learner.learn(make_batch(64, discount=0.0))
    batch = make_batch(256)
    best = batch.obs[:, :, 0, 0].float() / 255 - 0.5
    error = drqv2.act(batch.obs, START, explore=False) - best
    assert error.abs().mean() < 0.1  # 0.3 untrained


def test_three_updates_are_those_of_plain_pytorch_to_rounding() -> None:
    images = Box(0, 255, (6, 24, 20), np.uint8)
    network = DrQv2ActorCritic(images, ACTIONS, feature_dim=8, hidden_dims=(32, 32), num_critics=2)
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # the biases too
        # Here noise takes some actions over the bounds, where gradients pass.
        list(network.actor.parameters())[-1].copy_(torch.tensor([1.5, -1.5]))
    drqv2 = DrQv2(network, optim=partial(ADAM, fused=True), **NUMBERS)
    learner = make_learner(drqv2)
    learner.step.fill_(50)
    plain = PlainDrQv2(drqv2, optim=ADAM, pad=4)
    processor = RandomShift(images, ACTIONS, pad=4)
    for updates in range(3):
        obs, next_obs = torch.randint(256, (2, 8, *images.shape), dtype=torch.uint8)
        action, reward, discount = (value.double() for value in make_batch(8)[1:4])
        batch = Transition(obs, action, reward, discount, next_obs)
        torch.manual_seed(updates)  # the same shifts and noise
        losses = learner.learn(processor(batch))
        torch.manual_seed(updates)
        for name, loss in plain.update(batch, step=50).items():
            torch.testing.assert_close(losses[name], loss, atol=0, rtol=1e-11)
    targets = TwinCritics(drqv2.target_critics), plain.target_critics
    critics = TwinCritics(network.critics), plain.critics
    pairs = (network.encoder, plain.encoder), (network.actor, plain.actor), critics, targets
    for ours, theirs in pairs:
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, two, atol=1e-11, rtol=0)


def test_learns_from_images_what_only_they_tell(tmp_path: Path) -> None:
    """By command line, trainer and replay of images."""
    folder = tmp_path / "run"
    process = train(folder, *OVERRIDES, "trainer.total_steps=1500", "trainer.evaluation.every=1500")
    process.join(300)
    assert process.exitcode == 0, folder.with_suffix(".txt").read_text()
    idle, best = mean_return(lambda _: np.zeros(2)), mean_return(move_straight)
    (row,) = rows(folder / "eval.csv")
    assert row["return"] > idle + (best - idle) / 4


EASY, MEDIUM, HARD = (550_000, 100_000), (1_550_000, 500_000), (15_050_000, 2_000_000)
"""Steps of training and of the noise's fall."""

USUAL = (1_000_000, 256, 3, 0, 1e-4, 50)
WALKER = (1_000_000, 512, 1, 0, 1e-4, 50)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("experiment=drqv2_easy env=cartpole", (*EASY, *USUAL)),
        ("experiment=drqv2_easy env=walker env.task=stand", (*EASY, *WALKER)),
        ("experiment=drqv2_medium env=reacher", (*MEDIUM, *USUAL)),
        ("experiment=drqv2_medium env=walker env.task=run", (*MEDIUM, *WALKER)),
        ("experiment=drqv2_medium env=quadruped", (*MEDIUM, 1_000_000, 256, 3, 2, 1e-4, 50)),
        ("experiment=drqv2_quadruped_run", (*MEDIUM, 100_000, 256, 3, 2, 1e-4, 50)),
        ("experiment=drqv2_hard", (*HARD, 1_000_000, 256, 3, 0, 8e-5, 100)),
    ],
)
def test_experiments_have_the_numbers_of_the_authors_task_files(
    load: Load, overrides: str, expected: tuple[float, ...]
) -> None:
    """Those of https://github.com/facebookresearch/drqv2, cfgs/task, and its camera in dmc.py."""
    cfg = load(*overrides.split())
    assert expected == (
        *(cfg.trainer.total_steps, cfg.alg.noise_steps),
        *(cfg.dataset.capacity, cfg.dataset.batch_size, cfg.dataset.n_step),
        *(cfg.env.camera_id, cfg.alg.optim.lr, cfg.network.feature_dim),
    )
