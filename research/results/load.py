"""The policy of a trained run: ``policy = load("outputs/..."); action = policy(obs)``."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, flatten
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TransformAction
from omegaconf import DictConfig
from torch import nn

from research.config import build, build_env
from research.envs.images import channels_first_space, move_channels
from research.envs.wrappers import cast_to, scale_to
from research.errors import DamagedFile, Misfit, UserError, message_of
from research.machine.device import choose_device
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
        batch, is_single = self.to_batch(obs)
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

    def to_batch(self, obs: Any) -> tuple[Any, bool]:
        """The observations (E, O) as the processor takes them, and whether ``obs`` is a single one.

        Raises:
            ValueError: it has neither of the shapes, is not finite, or its dtype cannot hold it.

        """
        space = self.spaces.observation
        own = self.spaces.own_observation
        require_keys(space, own, obs)
        is_flat = isinstance(obs, np.ndarray) and obs.shape[-1:] == space.shape
        if isinstance(space, Box) and not (own is None or isinstance(own, Box) or is_flat):
            obs = flatten(own, obs)
        elif isinstance(own, Dict) == isinstance(obs, Mapping):
            obs = to_standard(own, space, obs)
        for name, array, part in name_arrays(space, obs):
            require_numbers(name, array, part)
        obs = cast_to(space, obs)
        arrays = name_arrays(space, obs)
        is_single = arrays[0][1].shape == arrays[0][2].shape
        for name, array, part in arrays:
            if (array.shape if is_single else array.shape[1:]) != part.shape:
                raise ValueError(
                    f"{name} has shape {array.shape}; the policy takes {part.shape}, "
                    "or E such of every part; env() gives such"
                )
        if is_single and isinstance(obs, dict):
            return {key: part[None] for key, part in obs.items()}, True
        if is_single:
            return arrays[0][1][None], True
        if len({len(array) for _, array, _ in arrays}) > 1:
            sizes = ", ".join(f"{len(array)} of {name}" for name, array, _ in arrays)
            raise ValueError(f"the policy takes as many of every part, got {sizes}")
        return obs, False

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


def require_keys(space: Space[Any], own: Space[Any] | None, obs: Any) -> None:
    """Refuse observations that lack a part of a Dict, or are no dict where one is needed."""
    keys = next((list(each) for each in (space, own) if isinstance(each, Dict)), None)
    if keys is None:
        return
    if not isinstance(obs, Mapping):
        if isinstance(space, Dict):
            raise ValueError(f"obs must be a dict of {', '.join(keys)}, got {type(obs).__name__}")
    elif missing := [key for key in keys if key not in obs]:
        raise ValueError(f"obs lacks {', '.join(missing)}; the policy takes {', '.join(keys)}")


def to_standard(own: Space[Any] | None, space: Space[Any], obs: Any) -> Any:
    """Observations of ``space``, or of ``own`` if their images come with the channels first then.

    The others, such as single frames for stacks, are returned as they are.
    """
    if isinstance(own, Dict) and isinstance(space, Dict):
        parts = ((key, own.spaces.get(key), space[key]) for key in space)
        return {key: to_standard(each, part, obs[key]) for key, each, part in parts}
    if not (isinstance(own, Box) and isinstance(space, Box)) or ends_with(obs, space.shape):
        return obs
    is_moved = channels_first_space(own).shape == space.shape
    return move_channels(own, obs) if is_moved and ends_with(obs, own.shape) else obs


def ends_with(obs: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``obs`` is of this shape, or several of it."""
    return np.shape(obs)[-len(shape) :] == shape


def require_numbers(name: str, array: np.ndarray, space: Space[Any]) -> None:
    """Refuse what is not finite, and numbers that a cast to the integers of ``space`` changes."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} is NaN or infinite")
    if space.dtype is None or space.dtype.kind == "f" or array.dtype == space.dtype:
        return
    changed = array[array.astype(space.dtype) != array]
    if changed.size:
        raise ValueError(f"{name} holds {changed[0]:g}; the policy takes {space.dtype}")


def name_arrays(space: Space[Any], obs: Any) -> list[tuple[str, np.ndarray, Space[Any]]]:
    """The arrays of observations, each with its name and its space."""
    if isinstance(space, Dict):
        return [(f"obs[{key!r}]", np.asarray(obs[key]), part) for key, part in space.items()]
    return [("obs", np.asarray(obs), space)]


def count(batch: Any) -> int:
    """The number of observations."""
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
