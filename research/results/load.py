"""The policy of a trained run: ``policy = load("outputs/..."); action = policy(obs)``."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TransformAction
from omegaconf import DictConfig
from torch import nn

from research.config import build, build_env
from research.envs.wrappers import scale_to
from research.errors import DamagedFile, Misfit, UserError, message_of
from research.machine.device import choose_device
from research.results.observations import to_batch
from research.results.runs import StoredRun, read_run
from research.status import read_status
from research.training.policy import Policy
from research.training.requirements import are_alike
from research.training.saving.checkpoint import load_file
from research.training.saving.retention import read_manifest
from research.training.saving.spaces import Spaces, read_spaces

CheckpointName: TypeAlias = Literal["best", "last"]


class LoadedPolicy:
    """Acts as the policy of a run does when it is evaluated, in the environment's own units.

    Of a classifier it gives the class, of a regression the values.

    If the algorithm keeps a memory, it lasts from call to call; ``reset`` begins an episode.

    Args:
        run: where the policy comes from.
        policy: acts on standardised observations, in evaluation mode.
        spaces: of the policy and of its environment.
        step: steps of the run at the checkpoint.

    Attributes:
        config: of the run, resolved.

    """

    def __init__(self, run: StoredRun, policy: Policy, spaces: Spaces, step: int) -> None:
        self.run = run
        self.policy = policy
        self.spaces = spaces
        self.step = step
        self.config: DictConfig = run.config
        self.memory: Any = None
        self.own_box = own_box(spaces)
        self.info_names = list(run.config.trainer.infos or ())

    def __call__(self, obs: Any, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """The action (A,) for an observation (O,), or actions (E, A) for observations (E, O).

        Args:
            obs: as the environment gives it, or as it was standardised for training; of images
                (H, W), (1, H, W) is a single one, standardised.
            info: of the environment, of the same step; needed if ``trainer.infos`` names any.

        Raises:
            ValueError: the observation has neither of these shapes, is not finite, or does not fit
                its dtype; or an info is missing.

        """
        batch, is_single = to_batch(self.spaces, obs)
        infos: dict[str, np.ndarray] = {}
        for name in self.info_names:
            if info is None or name not in info:
                raise ValueError(f"the policy acts on the info '{name}': policy(obs, info)")
            value = np.asarray(info[name], np.float32)
            infos[name] = value[None] if is_single else value
        if self.memory is None:
            self.memory = self.policy.alg.initial_memory(count(batch))
        action, self.memory, _ = self.policy.respond(
            batch, self.memory, infos, step=self.step, explore=False
        )
        if self.own_box is not None:
            action = scale_to(self.own_box, action)
        return action[0] if is_single else action

    @property
    def network(self) -> nn.Module:
        """The network of the algorithm, in evaluation mode."""
        return self.policy.alg.get_submodule("network")

    def reset(self) -> None:
        """Begin an episode."""
        self.memory = None

    def env(self, **changes: Any) -> gymnasium.Env:
        """One environment as in training, except that its actions are in its own units.

        Args:
            **changes: of keys in the run's ``env`` group, such as ``max_episode_steps=100``.

        Raises:
            UserError: the run has none, or only a vector that steps several at once; the
                environment's package is missing, or a change is not valid.

        """
        for key in ("num_envs", "subprocesses"):
            if key in changes:
                raise UserError(f"env() makes one environment, in this process; leave out {key}")
        vector = self.make_vector(num_envs=1, subprocesses=False, **changes)
        if not isinstance(vector, SyncVectorEnv):
            what = "has no environment" if vector.num_envs == 0 else "steps all copies at once"
            raise UserError(f"{self.run.folder}: env={self.config.env._target_} {what}")
        env = vector.envs[0]
        if self.own_box is None:
            return env
        return TransformAction(env, partial(scale_from, self.own_box), self.own_box)

    def make_vector(self, *, episodes: int = 0, renders: bool = False, **changes: Any) -> Any:
        """The run's vector environment, standardised, as in its evaluations.

        Args:
            episodes: number of episodes, if that is more than in the run's evaluations.
            renders: whether to make it in this process, and able to render frames.
            **changes: of keys in the run's ``env`` group; those of ``num_envs`` and
                ``subprocesses`` are ignored where it has no such key.

        Raises:
            UserError: the policy cannot act there, or as by ``build_env``.

        """
        config = self.config.copy()
        kept = {
            key: value
            for key, value in changes.items()
            if key in config.env or key not in ("num_envs", "subprocesses")
        }
        config.merge_with({"env": kept})
        episodes = max(episodes, config.trainer.evaluation.episodes)
        env = build_env(
            config.env, episodes=None if "num_envs" in changes else episodes, renders=renders
        )
        if isinstance(env, VectorEnv):
            given = env.single_observation_space, env.single_action_space
            for space, taken in zip(given, self.spaces[:2], strict=True):
                if not are_alike(space, taken):
                    env.close()
                    raise UserError(
                        f"{self.run.folder}: the policy was trained with {taken}, but the "
                        f"environment has {space}; change env as the spaces allow"
                    )
        return env


def load(
    path: str | os.PathLike[str],
    checkpoint: CheckpointName = "best",
    *,
    device: str = "cpu",
    trusted_modules: Sequence[str] = (),
) -> LoadedPolicy:
    """The policy of a run, with its processor; nothing else of the run is built.

    Args:
        path: the run directory.
        checkpoint: the one with the best score, or the last.
        device: as the config key.
        trusted_modules: modules of yours from which the run's config may build parts; those that
            the run names itself do not count, since anybody may have written them.

    Raises:
        UserError: it is no run, has no such checkpoint or a damaged one, or does not fit this code.

    """
    run = read_run(path)
    config = run.config
    config.trusted_modules = list(trusted_modules)
    folder = find_checkpoint(run.folder, checkpoint)
    spaces = read_spaces(run.folder)
    weights = load_file(folder / "weights.pt")
    target = choose_device(device)
    processor = build(config.processor, spaces.observation, spaces.action)
    network = build(config.network, processor.observation_space, processor.action_space)
    alg = build(config.alg, network)
    try:
        alg.load_state_dict(weights.get("average", weights["alg"]))
        processor.load_state_dict(weights["processor"])
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise Misfit(f"{folder} does not fit this code or config: {message_of(error)}") from error
    alg.to(target).eval().requires_grad_(False)
    policy = Policy(alg, processor.to(target).eval(), config.trainer.precision)
    return LoadedPolicy(run, policy, spaces, int(folder.name.rstrip("+")))


def find_checkpoint(run_dir: Path, name: CheckpointName) -> Path:
    """The folder of a run's best or last checkpoint, of this version.

    Raises:
        UserError: there is none.
        DamagedFile: it is incomplete, or of another version.

    """
    if name not in ("best", "last"):
        raise UserError(f"checkpoint={name} is not a choice; allowed: best, last")
    link = run_dir / "checkpoints" / name
    if not os.path.lexists(link):
        status = read_status(run_dir) or {}
        has_failed = status.get("state") == "failed"
        why = f": it failed, {status['exit_reason']}" if has_failed else " yet"
        raise UserError(f"{run_dir} has no {name} checkpoint{why}")
    folder = Path(os.path.realpath(link))
    if not folder.name.rstrip("+").isdigit():
        raise DamagedFile(f"{link} is damaged: it links to {folder.name}")
    read_manifest(folder)
    return folder


def own_box(spaces: Spaces) -> Box | None:
    """The box of actions that the policy's are to be scaled to; None if they are its own."""
    own = spaces.own_action
    return own if isinstance(own, Box) and own != spaces.action else None


def scale_from(box: Box, action: np.ndarray) -> np.ndarray:
    """``action``, scaled from the bounds of ``box`` to [-1, 1]: the inverse of ``scale_to``."""
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    return ((action - low) / (high - low) * 2 - 1).astype(np.float32)


def count(batch: Any) -> int:
    """The number of observations."""
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
