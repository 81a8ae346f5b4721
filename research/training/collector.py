"""Collection of experience from environments."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from research.datasets.base import OnlineDataset
from research.errors import UserError
from research.ranges import NonNegativeInt, PositiveInt
from research.training.autoreset import Autoreset, merge
from research.training.episodes import SKIPPED_FRAMES, Episodes
from research.training.observations import Bounds, find_fault
from research.training.policy import Policy
from research.training.seed import derive_seed

log = logging.getLogger(__name__)


class Collector:
    """Steps E environments with a policy, and adds the steps to a dataset.

    Every episode has a seed of its own, unless the environments reset themselves: those get one
    seed at the start and after each resumption, where they begin anew. A call that only resets an
    environment is a step of it, too, but adds none to the dataset.

    Args:
        env: a vector environment, with ``metadata["autoreset_mode"]``.
        policy: acts after the warm-up.
        dataset: stores every step.
        seed: of the run.
        warmup_steps: environment steps with uniformly random actions, before any update.
        updates_per_step: updates due per environment step, at least 1.
        steps_per_update: environment steps per update, at least 1; one of the two is 1.
        overlap: whether environments step during the updates, which changes no number and needs
            environments in processes of their own; None: if they are.

    Raises:
        ValueError: for two ratios above 1, or ``overlap`` with environments in this process.

    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        policy: Policy,
        dataset: OnlineDataset,
        seed: int,
        *,
        warmup_steps: NonNegativeInt,
        updates_per_step: PositiveInt,
        steps_per_update: PositiveInt,
        overlap: bool | None,
    ) -> None:
        if min(updates_per_step, steps_per_update) != 1:
            raise ValueError(
                "one of updates_per_step and steps_per_update must be 1, "
                f"got {updates_per_step} and {steps_per_update}"
            )
        self.autoreset = Autoreset(env)
        self.overlapped = env if isinstance(env, AsyncVectorEnv) and overlap is not False else None
        if overlap and self.overlapped is None:
            mend = "env.subprocesses=true" if self.autoreset.by_caller else "overlap=null"
            raise ValueError(
                f"overlap is true, but the environments step in this process; try {mend}"
            )
        self.env: Any = env
        self.policy = policy
        self.dataset = dataset
        self.seed = seed
        self.warmup_steps = warmup_steps
        self.updates_per_step = updates_per_step
        self.steps_per_update = steps_per_update
        self.action_repeat = env.metadata.get("action_repeat", 1)
        self.skipped_frames = 0
        self.bounds = Bounds(env.single_observation_space)
        self.episodes = Episodes(env.num_envs)
        self.num_episodes = np.zeros(env.num_envs, dtype=np.int64)
        self.episode_seeds: list[int | None] = [None] * env.num_envs
        self.obs: Any = None
        self.action: Any = None
        self.step = 0
        env.action_space.seed(derive_seed(seed, "warmup"))

    def start(self) -> None:
        """Begin an episode in every environment, unless they were restored."""
        if self.obs is None:
            self.reset(np.ones(self.env.num_envs, dtype=np.bool_))

    def begin_step(self, step: int) -> None:
        """Choose the actions after ``step`` steps, and let overlapped environments begin theirs."""
        self.step = step + self.env.num_envs
        if step < self.warmup_steps:
            self.action = self.env.action_space.sample()
        else:
            self.action = self.policy(self.obs, step=step, explore=True)
        if self.overlapped:
            self.overlapped.step_async(self.action)

    def end_step(self) -> list[dict[str, float]]:
        """Finish the step of every environment and store it; returns the episodes that ended.

        Raises:
            UserError: a reward or an observation is not finite; it is not stored.

        """
        result = self.overlapped.step_wait() if self.overlapped else self.env.step(self.action)
        step, infos, over, self.obs, began = self.autoreset.read(self.action, result)
        self.require_finite(step.next_obs, step.reward)
        self.bounds.look(step.next_obs)
        self.dataset.add(step)
        self.episodes.add(step.reward, infos, step.active)
        if step.active is not None:
            self.skipped_frames += self.action_repeat * int((~step.active).sum())
        finished = []
        if np.count_nonzero(over):  # a tenth of the time of any()
            if SKIPPED_FRAMES in infos:
                self.skipped_frames += int(infos[SKIPPED_FRAMES].sum())
            finished = [self.episodes.finish(index) for index in np.flatnonzero(over).tolist()]
            if self.autoreset.by_caller:
                self.reset(over)
        if began is not None:
            self.start_episodes(began)
        return finished

    def reset(self, mask: np.ndarray) -> None:
        """Begin the next episode in the environments of ``mask`` (E,)."""
        for index in np.flatnonzero(mask).tolist():
            seed = derive_seed(self.seed, "episode", index, int(self.num_episodes[index]))
            self.episode_seeds[index] = seed
        self.obs = self.autoreset.begin(self.episode_seeds, mask)
        self.start_episodes(mask)

    def start_episodes(self, mask: np.ndarray) -> None:
        """Store the observations that begin an episode, in the environments of ``mask`` (E,)."""
        self.num_episodes += mask
        self.require_finite(self.obs)
        self.dataset.start_episodes(self.obs, mask)

    def require_finite(self, obs: Any, reward: np.ndarray | None = None) -> None:
        """Refuse observations and rewards (E,) that are not finite."""
        if fault := find_fault(obs, reward):
            seeds = self.episode_seeds
            where = f"the episode with seed {seeds[fault.index]}"
            if not self.autoreset.by_caller:
                where = f"environments that began with seed {seeds[0]}"
            raise UserError(
                f"environment {fault.index} gave {fault.what} at step {self.step}, in {where}; "
                "training stopped, no checkpoint holds it"
            )

    def count_frames(self, step: int) -> int:
        """Frames that the environments have simulated in their first ``step`` steps.

        Repeats of an action that the end of an episode made superfluous do not count.
        """
        return step * self.action_repeat - self.skipped_frames

    def updates_due(self, step: int) -> int:
        """Total number of updates due after ``step`` environment steps.

        0 while the dataset is empty; these updates are made later.
        """
        return self.count_updates(step) if len(self.dataset) else 0

    def count_updates(self, step: int) -> int:
        """Updates that belong to the first ``step`` environment steps."""
        return max(0, step - self.warmup_steps) * self.updates_per_step // self.steps_per_update

    def state_dict(self) -> dict[str, Any]:
        """The state that the next steps depend on, in tensors and plain values."""
        return {
            "num_episodes": self.num_episodes.tolist(),
            "skipped_frames": self.skipped_frames,
            "episode_seeds": list(self.episode_seeds),
            "episodes": self.episodes.state_dict(),
            "action_space": self.env.action_space.np_random.bit_generator.state,
            "obs": to_tensors(self.obs),
            "envs": to_tensors(self.episode_states()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the open episodes; the dataset must be loaded before.

        An environment that cannot be restored, for example because it is not deterministic, begins
        its next episode; the open one is truncated in the dataset.

        Raises:
            ValueError: the state has another number of environments.

        """
        if len(state["num_episodes"]) != self.env.num_envs:
            raise ValueError(
                f"the checkpoint has {len(state['num_episodes'])} environments, "
                f"env.num_envs is {self.env.num_envs}"
            )
        self.num_episodes[:] = state["num_episodes"]
        self.skipped_frames = int(state["skipped_frames"])
        self.episode_seeds = list(state["episode_seeds"])
        self.episodes.load_state_dict(state["episodes"])
        self.env.action_space.np_random.bit_generator.state = state["action_space"]
        lost = ~self.restore_episodes(to_arrays(state["envs"]))
        self.obs = to_arrays(state["obs"])
        if lost.any():
            why = "are not deterministic, or cannot be repeated"
            if not self.autoreset.by_caller:
                why = "reset themselves, and begin anew with another seed"
            log.warning(
                "%d of %d environments could not be restored: they %s; their episodes are "
                "truncated here",
                *(lost.sum(), len(lost), why),
            )
            self.dataset.end_open_episodes(lost)
            for index in np.flatnonzero(lost).tolist():
                self.episodes.finish(index)
            present = copy.deepcopy(self.obs)
            self.reset(lost)
            self.obs = merge(self.obs, present, lost)

    def episode_states(self) -> list[dict[str, Any]] | None:
        """The state of every environment's episode; None if they do not provide it."""
        is_resumable = self.env.metadata.get("is_resumable", False)
        return list(self.env.get_attr("episode_state")) if is_resumable else None

    def restore_episodes(self, states: list[dict[str, Any]] | None) -> np.ndarray:
        """Restore the environments to ``states``; returns which of them succeeded, (E,)."""
        everywhere = np.ones(self.env.num_envs, dtype=np.bool_)
        if states is None:
            return ~everywhere
        self.env.reset(seed=self.episode_seeds, options={"reset_mask": everywhere})
        self.env.set_attr("episode_state", states)
        return np.array(self.env.get_attr("is_restored"), dtype=np.bool_)


def to_tensors(value: Any) -> Any:
    """``value`` with NumPy arrays as tensors and NumPy scalars as plain numbers."""
    if isinstance(value, dict):
        return {key: to_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_tensors(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def to_arrays(value: Any) -> Any:
    """The inverse of ``to_tensors``, except that scalars stay plain numbers."""
    if isinstance(value, dict):
        return {key: to_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_arrays(item) for item in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value
