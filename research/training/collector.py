"""Collection of experience from environments."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from research.batches import list_tensors
from research.datasets.base import OnlineDataset
from research.errors import UserError
from research.training.autoreset import Autoreset, merge
from research.training.episodes import SKIPPED_FRAMES, Episodes
from research.training.infos import ACTION_MASK, NO_INFOS, Infos
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
        policy: chooses the actions, except those that are asked for at random.
        dataset: stores every step.
        seed: of the run.
        infos: those of the environments that policy and dataset get.
        overlap: whether environments step during the updates, which changes no number and needs
            environments in processes of their own; None: if they are.

    Raises:
        ValueError: for ``overlap`` with environments in this process.

    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        policy: Policy,
        dataset: OnlineDataset,
        seed: int,
        infos: Infos = NO_INFOS,
        *,
        overlap: bool | None,
    ) -> None:
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
        self.infos = infos
        self.info: dict[str, np.ndarray] = {}
        self.memory: Any = None
        self.extras: Mapping[str, np.ndarray] = {}
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

    def begin_step(self, step: int, *, at_random: bool) -> None:
        """Choose the actions after ``step`` steps, and let overlapped environments begin theirs.

        Args:
            step: environment steps so far.
            at_random: whether the actions are uniformly random; if not, the policy explores.

        """
        self.step = step + self.env.num_envs
        if self.policy.processor.observes:
            self.policy.observe(self.obs)
        if at_random:
            self.action = self.sample_actions()
        else:
            self.action, self.memory, self.extras = self.policy.respond(
                self.obs, self.memory, self.info, step=step, explore=True
            )
        if self.overlapped:
            self.overlapped.step_async(self.action)

    def sample_actions(self) -> np.ndarray:
        """Uniformly random actions, among those that an info ``action_mask`` allows."""
        space = self.env.single_action_space
        if ACTION_MASK not in self.info or not isinstance(space, Discrete):
            return self.env.action_space.sample()
        mask = self.info[ACTION_MASK] > 0
        draws = self.env.action_space.np_random.random(mask.shape)
        return np.where(mask, draws, -1).argmax(axis=1) + space.start

    def end_step(self) -> list[dict[str, float]]:
        """Finish the step of every environment and store it; returns the episodes that ended.

        Raises:
            UserError: a reward or an observation is not finite; it is not stored.

        """
        result = self.overlapped.step_wait() if self.overlapped else self.env.step(self.action)
        step, infos, start_infos, over, self.obs, began = self.autoreset.read(self.action, result)
        self.require_finite(step.next_obs, step.reward)
        self.bounds.look(step.next_obs)
        self.info = self.infos.pick(infos, step.active)
        self.dataset.add(step._replace(extras=self.extras, next_info=self.info))
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
            self.start_episodes(began, start_infos)
        return finished

    def reset(self, mask: np.ndarray) -> None:
        """Begin the next episode in the environments of ``mask`` (E,)."""
        for index in np.flatnonzero(mask).tolist():
            seed = derive_seed(self.seed, "episode", index, int(self.num_episodes[index]))
            self.episode_seeds[index] = seed
        self.obs, infos = self.autoreset.begin(self.episode_seeds, mask)
        self.start_episodes(mask, infos)

    def start_episodes(self, mask: np.ndarray, infos: Mapping[str, Any]) -> None:
        """Store the observations that begin an episode, in the environments of ``mask`` (E,)."""
        self.num_episodes += mask
        self.require_finite(self.obs)
        self.info = self.infos.begin(infos, mask, self.info)
        self.memory = self.policy.begin_episodes(self.memory, mask)
        self.dataset.start_episodes(self.obs, mask, self.info)

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

    def state_dict(self) -> dict[str, Any]:
        """The state that the next steps depend on, in tensors and plain values."""
        return {
            "num_episodes": self.num_episodes.tolist(),
            "skipped_frames": self.skipped_frames,
            "episode_seeds": list(self.episode_seeds),
            "episodes": self.episodes.state_dict(),
            "action_space": self.env.action_space.np_random.bit_generator.state,
            "obs": to_tensors(self.obs),
            "info": to_tensors(self.info),
            "memory": [part.cpu() for part in list_tensors(self.memory)],
            "envs": to_tensors(self.episode_states()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the open episodes; the dataset must be loaded before.

        An environment that cannot be restored, for example because it is not deterministic, begins
        its next episode; the open one is truncated in the dataset.

        Raises:
            ValueError: the state has another number of environments, or no observation.

        """
        if len(state["num_episodes"]) != self.env.num_envs:
            raise ValueError(
                f"the checkpoint has {len(state['num_episodes'])} environments, "
                f"env.num_envs is {self.env.num_envs}"
            )
        if state["obs"] is None:
            raise ValueError("the checkpoint has no observation")
        self.num_episodes[:] = state["num_episodes"]
        self.skipped_frames = int(state["skipped_frames"])
        self.episode_seeds = list(state["episode_seeds"])
        self.episodes.load_state_dict(state["episodes"])
        self.env.action_space.np_random.bit_generator.state = state["action_space"]
        lost = ~self.restore_episodes(to_arrays(state["envs"]))
        self.obs, self.info = to_arrays(state["obs"]), to_arrays(state["info"])
        self.memory = self.policy.load_memory(state["memory"], len(lost))
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
