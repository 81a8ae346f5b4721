"""Evaluation: exact, fair, repeatable, and unnoticed by training."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from research.algs.base import Metrics
from research.errors import UserError
from research.training import evaluation
from research.training.evaluation import evaluate, run_episodes, validate
from research.training.policy import Policy
from research.training.seed import derive_seed, seed_everything
from tests.training.toys import Count, Points, Regression, Script, Toy, make_policy, vector


def draw() -> tuple[float, ...]:
    return random.random(), np.random.rand(), np.random.randn(), torch.randn(1).item()


class Spy(Toy):
    """Acts by chance, also without exploring, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, bool, bool, bool]] = []

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        self.calls.append((step.item(), explore, self.training, self.critic[0].training))
        draw()
        return torch.rand_like(super().act(obs, step, explore))


class Chance(Count):
    """A bonus of the global generators, as a careless environment would give."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, _ = super().step(action)
        return obs, random.random() + np.random.rand() + float(action[0]), terminated, truncated, {}


def score(
    env: SyncVectorEnv, *, num_episodes: int = 7, seed: int = 0, step: int = 0
) -> dict[str, float]:
    policy = make_policy(Toy())
    return evaluate(policy, env, num_episodes=num_episodes, seed=seed, step=step)


def expected_lengths(num_episodes: int, *, seed: int = 0, step: int = 0) -> list[int]:
    return [derive_seed(seed, "evaluation", step, index) % 4 + 1 for index in range(num_episodes)]


@pytest.mark.parametrize("num_envs", [1, 2, 3, 10])
@pytest.mark.parametrize("num_episodes", [1, 7])
def test_the_mean_is_over_just_the_episodes_asked_for_however_many_environments_run(
    num_envs: int, num_episodes: int
) -> None:
    """With short ones favoured, several environments would report a smaller length."""
    metrics = score(vector(num_envs), num_episodes=num_episodes)
    lengths = np.array(expected_lengths(num_episodes))
    returns = lengths * (lengths + 1) / 2
    assert metrics == {
        "return": pytest.approx(returns.mean()),
        "length": pytest.approx(lengths.mean()),
        "bonus": pytest.approx(returns.mean()),
        "return_std": pytest.approx(returns.std()),
    }


def test_no_more_is_stepped_than_needed() -> None:
    env = vector()
    score(env, num_episodes=5)
    assert isinstance(env.envs[0], Count)
    assert env.envs[0].episodes == 5
    assert env.envs[0].total_steps == sum(expected_lengths(5))


def test_another_evaluation_has_other_episodes() -> None:
    assert expected_lengths(7) != expected_lengths(7, step=1000)
    assert score(vector(), step=1000)["length"] == np.mean(expected_lengths(7, step=1000))
    assert score(vector(), seed=3)["length"] == np.mean(expected_lengths(7, seed=3))


def test_an_evaluation_can_be_repeated_whatever_was_drawn_before() -> None:
    policy = make_policy(Spy())
    makers: list[Callable[[], Any]] = [partial(Chance, truncates=True)] * 2
    env: SyncVectorEnv = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    first = evaluate(policy, env, num_episodes=5, seed=0, step=10)
    draw()
    assert evaluate(policy, env, num_episodes=5, seed=0, step=10) == first
    assert evaluate(policy, env, num_episodes=5, seed=1, step=10) != first
    assert evaluate(policy, env, num_episodes=5, seed=0, step=11) != first


def test_no_generator_that_training_uses_is_moved() -> None:
    policy = make_policy(Spy())
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    evaluate(policy, vector(2), num_episodes=4, seed=0, step=0)
    assert draw() == expected


@pytest.mark.parametrize("training", [True, False])
def test_networks_are_in_evaluation_mode_meanwhile_and_then_as_they_were(training: bool) -> None:
    alg = Spy()
    policy = make_policy(alg)
    alg.train(training)
    policy.processor.train(not training)
    evaluate(policy, vector(), num_episodes=3, seed=0, step=40)
    assert set(alg.calls) == {(40, False, False, False)}
    assert alg.critic[0].training == alg.training == training
    assert policy.processor.training is not training


def test_a_failing_environment_leaves_networks_and_generators_as_they_were() -> None:
    policy = make_policy(Spy())
    before = torch.get_rng_state()
    env = vector()
    env.step = lambda actions: 1 / 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        evaluate(policy, env, num_episodes=3, seed=0, step=0)
    assert policy.alg.training
    assert torch.get_rng_state().equal(before)


def test_an_episode_that_may_never_end_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(evaluation, "LOOK_EVERY", 10)
    monkeypatch.setattr(evaluation, "LONG_EPISODE", 40)
    score(vector(2, length=39), num_episodes=5)
    assert not caplog.messages
    score(vector(2, length=90), num_episodes=5, step=7)
    (message,) = caplog.messages
    assert "at step 7 is not over after 40 steps" in message
    assert "env.max_episode_steps" in message


class Overflowing(Count):
    """Observes what no weight can use, once its first episode is over."""

    def observe(self) -> np.ndarray:
        return np.full(4, np.inf if self.episodes == 2 else 0, np.float32)


def test_an_observation_that_is_not_finite_ends_an_evaluation() -> None:
    env: SyncVectorEnv = SyncVectorEnv(
        [partial(Count, length=3), Overflowing], autoreset_mode=AutoresetMode.DISABLED
    )
    with pytest.raises(UserError, match=r"environment 1 gave observation\[0\] = inf in the eval"):
        score(env, step=40)


class Doubling(nn.Module):
    """A processor that doubles what it is given, while it is not training."""

    def forward(self, batch: Any) -> Any:
        assert not self.training
        return tuple(2 * part for part in batch)


class Mean(Regression):
    """Its error is the mean of y, with dropout, noise and a gradient if they are let in."""

    def validate(self, batch: tuple[Tensor, Tensor]) -> Metrics:
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"error": batch[1].mean(), "chance": torch.rand(())}


def test_every_example_of_the_validation_batches_counts_the_same() -> None:
    alg = Mean()
    policy = Policy(alg, Doubling())  # type: ignore[arg-type]
    before = torch.get_rng_state()
    metrics = validate(policy, Points().validation_batches(), seed=0, step=5)
    # processed y of the four examples: -2, -1.6, -1.2; 2
    assert metrics["error"] == pytest.approx((-2 - 1.6 - 1.2 + 2) / 4)
    assert validate(policy, Points().validation_batches(), seed=0, step=5) == metrics
    assert validate(policy, Points().validation_batches(), seed=0, step=6) != metrics
    assert torch.get_rng_state().equal(before)
    assert alg.training
    assert policy.processor.training


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_watcher_is_told_of_every_state_of_every_episode_in_order(num_envs: int) -> None:
    env, seen = vector(num_envs), dict[int, list[tuple[int, int]]]()

    def look(episode: int, index: int) -> None:
        inner = env.envs[index]
        assert isinstance(inner, Count)
        seen.setdefault(episode, []).append((inner.seed, inner.steps))

    episodes = run_episodes(make_policy(Toy()), env, num_episodes=5, seed=2, step=7, look=look)
    for index, episode in enumerate(episodes):
        seed = derive_seed(2, "evaluation", 7, index)
        assert seen[index] == [(seed, step) for step in range(int(episode["length"]) + 1)]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_watcher_sees_no_episode_in_place_of_another(mode: AutoresetMode) -> None:
    env, seen = Script([[2, 3], [1]], mode), dict[int, list[tuple[int, ...]]]()

    def look(episode: int, index: int) -> None:
        seen.setdefault(episode, []).append((index, env.episode[index], env.time[index]))

    run_episodes(make_policy(Toy()), env, num_episodes=3, seed=0, step=0, look=look)
    last = mode is AutoresetMode.NEXT_STEP  # where the last state is shown
    assert seen[0] == [(0, 0, time) for time in range(2 + last)]
    assert seen[1] == [(1, 0, time) for time in range(1 + last)]
    assert seen[2] == [(1, 1, time) for time in range(1 + last)]
