"""How good a policy is: whole episodes without exploration, or data apart from training's."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from torch import Tensor

from research.batches import map_tensors, to_device
from research.training.episodes import Episodes, mean_metrics
from research.training.meter import check_metric
from research.training.parallel import sum_over_ranks
from research.training.policy import Policy
from research.training.seed import derive_seed, preserve_random_state, seed_everything

ALWAYS_EVALUATED = ("return", "length", "return_std")
"""Metrics of every evaluation in environments; all others are their infos'."""


def evaluate(
    policy: Policy,
    env: SyncVectorEnv | AsyncVectorEnv,
    *,
    num_episodes: int,
    seed: int,
    step: int,
    each: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means over ``num_episodes`` episodes, and ``return_std`` (population).

    The numbers depend on the weights, ``seed`` and ``step`` alone. An environment whose episode is
    over takes the next one, and every episode that was begun is waited for, so short episodes are
    not favoured.

    ``each`` is called before every step, and may end it by an exception.
    """
    with evaluation_mode(policy, seed=seed, step=step):
        finished = run_episodes(
            policy, env, num_episodes=num_episodes, seed=seed, step=step, each=each
        )
    returns = [episode["return"] for episode in finished]
    return {**mean_metrics(finished), "return_std": float(np.std(returns))}


def validate(
    policy: Policy,
    batches: Iterable[Any],
    *,
    seed: int,
    step: int,
    each: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means of ``alg.validate`` over all examples, where a batch's metrics are means over its own.

    Of a parallel run, all examples of all ranks.

    The numbers depend on the weights, the batches, ``seed`` and ``step`` alone. ``each`` is called
    before every batch, and may end it by an exception.
    """
    sums: dict[str, Tensor] = {}
    num_examples = 0
    with evaluation_mode(policy, seed=seed, step=step), torch.no_grad():
        for batch in batches:
            each()
            size = count_examples(batch)
            batch = policy.processor(to_device(batch, policy.device))
            for name, value in policy.alg.validate(batch).items():
                check_metric(f"eval/{name}", value)
                sums[name] = size * value + sums.get(name, 0)
            num_examples += size
    own = {name: value.item() for name, value in sums.items()}
    totals = sum_over_ranks({"": float(num_examples), **own})
    return {name: total / totals[""] for name, total in totals.items() if name}


@contextmanager
def evaluation_mode(policy: Policy, *, seed: int, step: int) -> Iterator[None]:
    """Networks in evaluation mode, and generators that training does not notice."""
    was_training = policy.alg.training, policy.processor.training
    policy.alg.eval()
    policy.processor.eval()
    try:
        with preserve_random_state():
            seed_everything(derive_seed(seed, "evaluation", step))
            yield
    finally:
        policy.alg.train(was_training[0])
        policy.processor.train(was_training[1])


def run_episodes(
    policy: Policy,
    env: SyncVectorEnv | AsyncVectorEnv,
    *,
    num_episodes: int,
    seed: int,
    step: int,
    each: Callable[[], None],
) -> list[dict[str, float]]:
    """The episodes in the order in which they were begun."""
    running, begun = list(range(env.num_envs)), env.num_envs
    over = np.ones(env.num_envs, dtype=np.bool_)
    episodes, finished = Episodes(env.num_envs), {}
    obs = None
    while len(finished) < num_episodes:
        each()
        if over.any():
            seeds: list[int | None] = [derive_seed(seed, "evaluation", step, i) for i in running]
            obs, _ = env.reset(seed=seeds, options={"reset_mask": over})
        action = policy(obs, step=step, explore=False)
        obs, reward, terminated, truncated, infos = env.step(action)
        episodes.add(reward, infos)
        over = terminated | truncated
        for index in np.flatnonzero(over).tolist():
            episode = episodes.finish(index)
            if running[index] < num_episodes:
                finished[running[index]] = episode
            running[index], begun = begun, begun + 1
    return [finished[index] for index in range(num_episodes)]


def count_examples(batch: Any) -> int:
    """B of a batch of nested tensors (B, ...)."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(len(tensor))
        return tensor

    map_tensors(note, batch)
    return sizes[0]
