"""The part of training that meets the environment."""

from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from research.datasets.base import OnlineDataset
from research.training.episodes import Episodes
from research.training.policy import Policy
from research.training.seed import derive_seed


class Collector:
    """Steps E environments with a policy into a dataset, each episode from a seed of its own.

    Args:
        env: a vector environment that leaves resets to its caller.
        policy: acts once the warm-up is over.
        dataset: gets every step.
        seed: the run's.
        warmup_steps: environment steps with uniformly random actions, before any update.
        updates_per_step: updates due per environment step, at least 1.
        steps_per_update: environment steps per update, at least 1; one of the two is 1.

    Raises:
        ValueError: for a number outside its range, or an environment that resets itself.

    """

    def __init__(
        self,
        env: SyncVectorEnv | AsyncVectorEnv,
        policy: Policy,
        dataset: OnlineDataset,
        seed: int,
        *,
        warmup_steps: int,
        updates_per_step: int,
        steps_per_update: int,
    ) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
        if min(updates_per_step, steps_per_update) != 1:
            raise ValueError(
                "updates_per_step and steps_per_update must be at least 1, and one of them 1, "
                f"got {updates_per_step} and {steps_per_update}"
            )
        if env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise ValueError("the environment must leave resets to the collector")
        self.env = env
        self.policy = policy
        self.dataset = dataset
        self.seed = seed
        self.warmup_steps = warmup_steps
        self.updates_per_step = updates_per_step
        self.steps_per_update = steps_per_update
        self.episodes = Episodes(env.num_envs)
        self.num_episodes = np.zeros(env.num_envs, dtype=np.int64)
        self.obs: Any = None
        env.action_space.seed(derive_seed(seed, "warmup"))

    def start(self) -> None:
        """Begin an episode in every environment."""
        self.reset(np.ones(self.env.num_envs, dtype=np.bool_))

    def step(self, step: int) -> list[dict[str, float]]:
        """One step of every environment; the episodes that it finished."""
        if step < self.warmup_steps:
            action = self.env.action_space.sample()
        else:
            action = self.policy(self.obs, step=step, explore=True)
        self.obs, reward, terminated, truncated, infos = self.env.step(action)
        self.dataset.add(action, reward, terminated, truncated, self.obs)
        self.episodes.add(reward, infos)
        over = terminated | truncated
        if not over.any():
            return []
        finished = [self.episodes.finish(index) for index in np.flatnonzero(over).tolist()]
        self.reset(over)
        return finished

    def reset(self, mask: np.ndarray) -> None:
        """Begin the next episode in the environments of ``mask`` (E,)."""
        seeds: list[int | None] = [
            derive_seed(self.seed, "episode", index, int(count))
            for index, count in enumerate(self.num_episodes)
        ]
        self.obs, _ = self.env.reset(seed=seeds, options={"reset_mask": mask})
        self.num_episodes += mask
        self.dataset.start_episodes(self.obs, mask)

    def updates_due(self, step: int) -> int:
        """Updates that a run has made in all when it has taken ``step`` environment steps."""
        return max(0, step - self.warmup_steps) * self.updates_per_step // self.steps_per_update

    def state_dict(self) -> dict[str, Any]:
        """What is needed to begin the next episodes as an uninterrupted run would."""
        return {
            "num_episodes": self.num_episodes.tolist(),
            "action_space": self.env.action_space.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.end_open_episodes()
        self.num_episodes[:] = state["num_episodes"]
        self.env.action_space.np_random.bit_generator.state = state["action_space"]
