"""The replay buffers that others publish, each in its fastest form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.replay_buffers import (
    ACTION_DIM,
    BATCH_SIZE,
    FRAME_SHAPE,
    FRAME_STACK,
    GAMMA,
    OBS_DIM,
    SEED,
    Case,
    Episode,
)
from research.batches import Transition


class StableBaselines3:
    """Observations once (n-step 1), or with n-step, where SB3 refuses that, twice."""

    def __init__(self, case: Case, num_steps: int, num_episodes: int, folder: Path) -> None:
        from stable_baselines3.common import buffers

        spaces_and_size = (num_steps, case.obs_space, case.action_space, "cpu")
        if case.n_step == 1:
            self.buffer = buffers.ReplayBuffer(
                *spaces_and_size, optimize_memory_usage=True, handle_timeout_termination=False
            )
        else:
            self.buffer = buffers.NStepReplayBuffer(
                *spaces_and_size, n_steps=case.n_step, gamma=GAMMA
            )
        np.random.seed(SEED)

    def prepare(self, episode: Episode) -> list[Any]:
        return [
            (obs, after, a, r, end | cut, [{"TimeLimit.truncated": bool(cut[0])}])
            for obs, a, r, end, cut, after in episode.steps()
        ]

    def add_steps(self, prepared: list[Any]) -> None:
        for step in prepared:
            self.buffer.add(*step)

    add_episode = add_steps

    def sample(self) -> Any:
        return self.buffer.sample(BATCH_SIZE)

    def read(self, batch: Any) -> Transition:
        factors = GAMMA if batch.discounts is None else batch.discounts
        discount = (factors * (1 - batch.dones)).squeeze(1)
        reward = batch.rewards.squeeze(1)
        return Transition(
            batch.observations, batch.actions, reward, discount, batch.next_observations
        )


class TorchRL:
    """TensorDicts without nesting, which are sampled faster than those that TorchRL's losses take.

    Of what its own ``MultiStepTransform`` makes only that is stored which a batch needs.
    """

    def __init__(self, case: Case, num_steps: int, num_episodes: int, folder: Path) -> None:
        from tensordict import TensorDict
        from torchrl.data import RandomSampler
        from torchrl.data import ReplayBuffer as TensorDicts
        from torchrl.envs import MultiStepTransform

        self.make, self.n_step = TensorDict, case.n_step
        self.transform = MultiStepTransform(case.n_step, GAMMA) if case.n_step > 1 else None
        self.buffer = TensorDicts(
            storage=self.storage(num_steps, folder), sampler=RandomSampler(), batch_size=BATCH_SIZE
        )
        self.sample = self.buffer.sample
        torch.manual_seed(SEED)

    def storage(self, num_steps: int, folder: Path) -> Any:
        from torchrl.data import LazyTensorStorage

        return LazyTensorStorage(num_steps)

    def prepare(self, episode: Episode) -> list[Any]:
        return list(episode.steps())

    def add_steps(self, prepared: list[Any]) -> None:
        for step in prepared:
            self.extend([torch.from_numpy(part) for part in step])

    def add_episode(self, prepared: list[Any]) -> None:
        """Add as many steps at once as TorchRL's collectors do."""
        self.extend(
            [torch.from_numpy(np.concatenate(part)) for part in zip(*prepared, strict=True)]
        )

    def extend(self, step: Sequence[Tensor]) -> None:
        obs, action, reward, terminated, truncated, next_obs = step
        if self.transform is None:
            parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
            self.buffer.extend(self.make({**parts, "terminated": terminated}, len(obs)))
            return
        after = {"obs": next_obs, "reward": reward, "terminated": terminated}
        after["done"] = terminated | truncated
        size = len(obs)
        whole = self.make({"obs": obs, "action": action, "next": self.make(after, size)}, size)
        found = self.transform.inv(whole)
        if found is not None and len(found):
            parts = {name: found[name] for name in ("obs", "action", "gamma")}
            parts["next_obs"] = found["next", "obs"]
            parts |= {name: found["next", name] for name in ("reward", "terminated")}
            self.buffer.extend(self.make(parts, len(found)))

    def read(self, batch: Any) -> Transition:
        factors = GAMMA if self.transform is None else batch["gamma"]
        discount = factors * batch["terminated"].logical_not()
        return Transition(
            batch["obs"], batch["action"], batch["reward"], discount, batch["next_obs"]
        )


class TorchRLMemmap(TorchRL):
    """The same in memory-mapped files."""

    def storage(self, num_steps: int, folder: Path) -> Any:
        from torchrl.data import LazyMemmapStorage

        return LazyMemmapStorage(num_steps, scratch_dir=str(folder))


class Cpprb:
    """Both observations whole, which is its fastest form, and the only right one with n-step.

    With n-step, cpprb gives no next observations if it is to share them with observations, and
    wrong ones inside episodes if it is to keep the frames of both once.
    """

    def __init__(self, case: Case, num_steps: int, num_episodes: int, folder: Path) -> None:
        import cpprb

        self.n_step = case.n_step
        parts, options = self.layout(case)
        if case.n_step > 1:
            steps = {"size": case.n_step, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
            options["Nstep"] = steps
        parts |= {"act": {"shape": ACTION_DIM}, "rew": {}, "done": {}}
        self.buffer = cpprb.ReplayBuffer(num_steps, parts, **options)
        np.random.seed(SEED)

    def layout(self, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shapes and types of the observations, and options that compress them."""
        obs = {"shape": case.obs_space.shape, "dtype": case.obs_space.dtype}
        return {"obs": obs, "next_obs": obs}, {}

    def prepare(self, episode: Episode) -> list[Any]:
        obs = [self.arrange(one[0]) for one in episode.obs]
        return [
            {"obs": obs[t], "act": a[0], "rew": r[0], "done": float(end[0]), "next_obs": obs[t + 1]}
            for t, (_, a, r, end, _, _) in enumerate(episode.steps())
        ]

    def arrange(self, obs: np.ndarray) -> np.ndarray:
        """An observation as it is added."""
        return obs

    def add_steps(self, prepared: list[Any]) -> None:
        for step in prepared:
            self.buffer.add(**step)
        self.buffer.on_episode_end()

    add_episode = add_steps

    def sample(self) -> dict[str, Tensor]:
        batch = self.buffer.sample(BATCH_SIZE)
        return {name: torch.from_numpy(part) for name, part in batch.items()}

    def read(self, batch: Mapping[str, Tensor]) -> Transition:
        reward, discount = batch["rew"].squeeze(1), GAMMA**self.n_step * (1 - batch["done"])
        return Transition(
            batch["obs"], batch["act"], reward, discount.squeeze(1), batch["next_obs"]
        )


class CpprbOnce(Cpprb):
    """Observations once, and of stacks each frame once; for n-step 1."""

    def layout(self, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
        self.is_stacked = case.kind == "pixels"
        if not self.is_stacked:
            return {"obs": {"shape": OBS_DIM}}, {"next_of": "obs"}
        obs = {"shape": (*FRAME_SHAPE, FRAME_STACK), "dtype": np.uint8}
        return {"obs": obs}, {"next_of": "obs", "stack_compress": "obs"}

    def arrange(self, obs: np.ndarray) -> np.ndarray:
        if not self.is_stacked:
            return obs
        frames = obs.reshape(FRAME_STACK, *FRAME_SHAPE)
        return np.ascontiguousarray(np.moveaxis(frames, 0, -1))

    def sample(self) -> dict[str, Tensor]:
        batch = super().sample()
        if self.is_stacked:
            for name in ("obs", "next_obs"):
                batch[name] = batch[name].permute(0, 4, 1, 2, 3).flatten(1, 2)
        return batch
