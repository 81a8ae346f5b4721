"""PPO: advantages, the clipped objective, when its updates end, and what the environment gets."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.ppo import PPO, UNCLIPPED, Judged
from research.batches import Rollout, Step
from research.datasets.replay.rollout import RolloutBuffer
from research.networks.actor_value import ActorValue
from research.networks.distributions import Gaussian
from research.training.meter import Phases
from tests.algs.learning import make_learner

SETTINGS: dict[str, Any] = {
    "gae_lambda": 0.9,
    "clip": 0.2,
    "clip_value": None,
    "normalise_advantage": False,
    "value_weight": 0.5,
    "entropy_weight": 0.0,
    "target_kl": None,
}
NOW = torch.tensor(0.0)
DESCENT = partial(torch.optim.SGD, lr=0.1)


def make(
    actions: Space = Box(-1, 1, (2,), np.float32),  # noqa: B008  spaces do not change
    *,
    obs_dim: int = 3,
    optim: OptimFactory = DESCENT,
    hidden_dims: Sequence[int] = (8,),
    log_std: float = 0.0,
    **changes: Any,
) -> PPO:
    """PPO on a small network; ``make(clip=0.1)`` changes a number."""
    network = ActorValue(
        Box(-1, 1, (obs_dim,), np.float32),
        actions,
        hidden_dims=hidden_dims,
        activation=nn.Tanh,
        layer_norm=False,
        init=None,
        actor_init=None,
        value_init=None,
        log_std=log_std,
        encoder=None,
    )
    return PPO(network, optim=optim, **(SETTINGS | changes))


def make_rollout(horizon: int, num_envs: int, seed: int) -> tuple[Rollout, Tensor]:
    """Random episodes; (T, E) whether each step cuts its episode, which then goes on elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    shape = horizon, num_envs
    ends = torch.randint(4, shape, generator=generator)  # 0 terminates, 1 truncates
    obs = torch.randn(horizon + 1, num_envs, 3, generator=generator)
    final = torch.randn(horizon, num_envs, 3, generator=generator)
    over = ends < 2
    next_obs = torch.where(over[..., None], final, obs[1:])
    action = torch.randn(*shape, 2, generator=generator)
    columns: dict[str, Any] = {
        "obs": obs[:-1],
        "action": action.clamp(-1, 1),
        "reward": torch.randn(shape, generator=generator),
        "discount": 0.95 * (ends != 0),
        "next_obs": next_obs,
        "over": over,
        "env": torch.arange(num_envs).expand(shape),
    }
    flat = {name: column.flatten(0, 1) for name, column in columns.items()}
    extras = {UNCLIPPED: action.flatten(0, 1)}
    return Rollout(**flat, extras=extras, info={}, next_info={}), over


@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 999))
def test_advantages_are_the_weighted_sums_of_errors(horizon: int, num_envs: int, seed: int) -> None:
    """Schulman et al., 2016, equation 16, term by term, up to the end of episode or rollout."""
    alg = make(gae_lambda=0.8)
    rollout, over = make_rollout(horizon, num_envs, seed)
    with torch.no_grad():
        judged = alg.prepare(rollout, num_envs)
        error = rollout.reward + rollout.discount * alg.network.values(rollout.next_obs)
        error = (error - alg.network.values(rollout.obs)).view(horizon, num_envs)
        value = alg.network.values(rollout.obs)
    expected = torch.zeros(horizon, num_envs)
    for time in range(horizon):
        for env in range(num_envs):
            weight = 1.0
            for later in range(time, horizon):
                expected[time, env] += weight * error[later, env]
                weight *= 0.95 * 0.8
                if over[later, env]:
                    break
    torch.testing.assert_close(judged.advantage, expected.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(judged.target, judged.advantage + value)
    torch.testing.assert_close(judged.value, value)


def test_log_probabilities_are_of_the_actions_as_they_were_drawn() -> None:
    alg = make()
    rollout, _ = make_rollout(6, 2, seed=0)
    judged = alg.prepare(rollout, 2)
    drawn = rollout.extras[UNCLIPPED]
    assert not torch.equal(drawn, rollout.action), "some were clipped"
    assert torch.equal(judged.action, drawn)
    torch.testing.assert_close(judged.log_prob, alg.network.policy(rollout.obs).log_prob(drawn))


def make_judged(alg: PPO, size: int = 32, **changes: Tensor) -> Judged:
    """Random steps, judged by the policy as it is."""
    with torch.no_grad():
        obs = torch.randn(size, 3)
        distribution, value = alg.network(obs)
        action = distribution.sample()
        log_prob = distribution.log_prob(action)
    advantage = torch.randn(size)
    return Judged(obs, action, log_prob, value, advantage, value + advantage)._replace(**changes)


@pytest.mark.parametrize(
    ("advantage", "ratio", "gain", "moves"),
    [
        (2.0, 1.1, 2.2, True),
        (2.0, 1.5, 2.4, False),
        (2.0, 0.5, 1.0, True),
        (-2.0, 0.9, -1.8, True),
        (-2.0, 0.5, -1.6, False),
        (-2.0, 1.5, -3.0, True),
    ],
)
def test_a_ratio_gains_up_to_its_bound_and_loses_without_one(
    advantage: float, ratio: float, gain: float, moves: bool
) -> None:
    """Figure 1 of the paper; beyond the bound nothing pulls at the policy."""
    alg = make(value_weight=0.0)
    judged = make_judged(alg, advantage=torch.full((32,), advantage))
    old = judged.log_prob - torch.tensor(ratio).log()
    loss = alg.loss(judged._replace(log_prob=old), None)
    assert loss.metrics["gain"].item() == pytest.approx(gain, rel=1e-4)
    assert loss.value.item() == pytest.approx(-gain, rel=1e-4)
    assert loss.metrics["clip_share"].item() == float(not 0.8 < ratio < 1.2)
    gradient = torch.autograd.grad(loss.value, [*alg.network.actor.parameters()])
    assert any(part.abs().max() > 1e-6 for part in gradient) == moves


def test_the_values_error_pulls_towards_the_target() -> None:
    alg = make(value_weight=0.25)
    judged = make_judged(alg)
    loss = alg.loss(judged, None)
    error = judged.advantage.square().mean().item()
    assert loss.metrics["value_loss"].item() == pytest.approx(error, rel=1e-5)
    expected = 0.25 * error - judged.advantage.mean().item()
    assert loss.value.item() == pytest.approx(expected, rel=1e-4)


def test_a_value_gets_no_gradient_beyond_its_bound() -> None:
    alg = make(clip_value=0.1, hidden_dims=())
    judged = make_judged(alg, 2)
    moved = judged.value + torch.tensor([0.05, 0.5])
    target = moved + 1.0
    judged = judged._replace(target=target)
    output = moved.clone().requires_grad_()
    alg.network.forward = lambda obs: (alg.network.policy(obs), output)
    loss = alg.loss(judged, None)
    expected = (1.0 + (target[1] - judged.value[1] - 0.1) ** 2) / 2
    assert loss.metrics["value_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.value, [output])
    assert gradient[0] != 0
    assert gradient[1] == 0


def test_entropy_widens_the_policy() -> None:
    alg = make(entropy_weight=0.1, value_weight=0.0, log_std=-1.0)
    learner = make_learner(alg)
    judged = make_judged(alg, advantage=torch.zeros(32))
    metrics = learner.learn(judged)
    assert alg.network.log_std is not None
    torch.testing.assert_close(alg.network.log_std.data, torch.full((2,), -1 + 0.1 * 0.1))
    expected = Gaussian(torch.zeros(1, 2), torch.full((2,), -1.0)).entropy().item()
    assert metrics["entropy"].item() == pytest.approx(expected)


def test_advantages_of_a_minibatch_are_normalised() -> None:
    alg = make(normalise_advantage=True)
    judged = make_judged(alg, advantage=torch.tensor([1.0, 2.0, 3.0]).repeat(11)[:32])
    advantage = alg.augment(judged).advantage
    assert advantage.mean().item() == pytest.approx(0, abs=1e-6)
    assert advantage.std().item() == pytest.approx(1, abs=1e-6)
    alone = judged._replace(advantage=torch.tensor([5.0]))
    assert alg.augment(alone).advantage.item() == 5.0


def test_normalising_is_of_the_minibatch_also_when_it_is_cut_into_parts() -> None:
    found = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        alg = make(normalise_advantage=True)
        make_learner(alg, accumulate=accumulate).learn(make_judged(alg))
        found.append([parameter.detach() for parameter in alg.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_the_divergence_is_that_of_the_policies() -> None:
    """With many samples it is the exact one, of the rollout's policy from the present one."""
    alg = make(hidden_dims=())
    judged = make_judged(alg, 100_000)
    with torch.no_grad():
        list(alg.network.actor.parameters())[-1].add_(0.3)
    loss = alg.loss(judged, None)
    exact = 2 * 0.3**2 / 2
    assert loss.metrics["kl"].item() == pytest.approx(exact, rel=0.05)


def test_an_update_that_goes_too_far_ends_the_steps() -> None:
    alg = make(target_kl=0.01, optim=partial(torch.optim.SGD, lr=1.0), hidden_dims=())
    learner = make_learner(alg)
    judged, moved, divergences = make_judged(alg), [], []
    for _ in range(6):
        before = [parameter.detach().clone() for parameter in alg.parameters()]
        metrics = learner.learn(judged)
        moved.append(not all(map(torch.equal, before, alg.parameters())))
        divergences += [metrics["kl"].item()] if metrics else []
    last = moved.index(False)
    assert 1 <= last <= 4
    assert moved == [True] * last + [False] * (6 - last)
    assert len(divergences) == last + 1, "nothing is computed after the end"
    assert max(divergences[:last]) <= 0.015 < divergences[last]
    assert learner.updates == 6, "those that are left out count, as in the schedule"


def test_steps_after_the_end_are_none_that_overflowed() -> None:
    alg = make(target_kl=0.01, optim=partial(torch.optim.SGD, lr=1.0), hidden_dims=())
    learner = make_learner(alg, precision="fp16")
    judged = make_judged(alg)
    metrics = [learner.learn(judged) for _ in range(6)]
    assert "kl" in metrics[0]
    assert metrics[-1] == {}, "and no share of skipped steps"


def test_the_next_rollout_is_learned_from_again() -> None:
    alg = make(target_kl=1e-4, normalise_advantage=True, optim=partial(torch.optim.SGD, lr=1.0))
    env: Any = SimpleNamespace(
        single_observation_space=alg.network.observation_space,
        single_action_space=alg.network.action_space,
        num_envs=2,
    )
    buffer = RolloutBuffer(env, 0, horizon=8, minibatches=2, discount=0.9)
    buffer.hold(alg.extras, {})
    learner = make_learner(alg, dataset=buffer)
    no, phases = np.zeros(2, np.bool_), Phases()
    buffer.start_episodes(np.zeros((2, 3), np.float32), ~no)
    for _ in range(3):
        for time in range(8):
            obs = torch.randn(2, 3)
            action, _, extras = alg.act_with_memory(obs, None, {}, NOW, True)
            stored = {UNCLIPPED: extras[UNCLIPPED].detach().numpy()}
            reward = np.full(2, time % 3)
            buffer.add(Step(action.detach().numpy(), reward, no, no, obs.numpy(), stored))
        moved = []
        for _ in range(6):
            before = [parameter.detach().clone() for parameter in alg.parameters()]
            learner.update(0, phases, can_prepare=False)
            moved.append(not all(map(torch.equal, before, alg.parameters())))
        assert moved[0], "the policy is the rollout's own"
        assert moved[-3:] == [False] * 3


def test_the_environment_gets_clipped_actions_and_the_rollout_others() -> None:
    alg = make(log_std=1.0)
    action, _, extras = alg.act_with_memory(torch.randn(500, 3), None, {}, NOW, True)
    assert action.abs().max() == 1
    assert extras[UNCLIPPED].abs().max() > 1
    assert torch.equal(extras[UNCLIPPED].clamp(-1, 1), action)
    assert alg.extras == {UNCLIPPED: (2,)}


def test_without_exploration_the_action_is_the_most_likely() -> None:
    alg, obs = make(), 9 * torch.randn(50, 3)
    action = alg.act_with_memory(obs, None, {}, NOW, False).action
    assert torch.equal(action, alg.network.actor(obs).clamp(-1, 1))
    discrete = make(Discrete(4))
    action, _, extras = discrete.act_with_memory(obs, None, {}, NOW, False)
    assert torch.equal(action, discrete.network.actor(obs).argmax(dim=1))
    assert extras == {} == discrete.extras


@pytest.mark.parametrize("discrete", [False, True])
def test_learns_which_action_pays(discrete: bool) -> None:
    """The reward is highest for the action that the observation asks for."""
    space = Discrete(3) if discrete else Box(-1, 1, (1,), np.float32)
    adam = partial(torch.optim.Adam, lr=0.02)
    alg = make(space, optim=adam, normalise_advantage=True, log_std=-0.5)
    learner = make_learner(alg)
    nowhere = torch.zeros(256)
    for _ in range(40):
        obs = torch.eye(3)[torch.randint(3, (256,))]
        with torch.no_grad():
            action, _, extras = alg.act_with_memory(obs, None, {}, NOW, True)
            wanted = obs.argmax(dim=1)
            reward = (
                (action == wanted).float()
                if discrete
                else -(action[:, 0] - (wanted - 1) / 2).square()
            )
            over = torch.ones(256, dtype=torch.bool)
            rows = obs, action, reward, nowhere, obs, over, torch.arange(256)
            rollout = Rollout(*rows, dict(extras), {}, {})
            judged = alg.prepare(rollout, 256)
        for _ in range(4):
            learner.learn(judged)
    best = alg.act_with_memory(torch.eye(3), None, {}, NOW, False).action.flatten()
    expected = torch.tensor([0.0, 1.0, 2.0]) if discrete else torch.tensor([-0.5, 0.0, 0.5])
    torch.testing.assert_close(best.float(), expected, atol=0.15, rtol=0)
