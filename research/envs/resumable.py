"""Environments that resume in mid-episode in another process, and report whether they did."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import FlattenObservation, TransformAction, TransformObservation

from research.envs.checked import Checked, copy_action
from research.envs.wrappers import ActionRepeat

STATELESS = (ActionRepeat, Checked, FlattenObservation, TransformAction, TransformObservation)
"""The wrappers that keep nothing from one step to the next."""

pack_outcome = struct.Struct("<d??").pack
"""Bytes of a reward, ``terminated`` and ``truncated``."""


@runtime_checkable
class HasState(Protocol):
    """An environment that saves and restores all that its steps have changed since a reset."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as numbers, strings, None and arrays in dicts and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; it is called after a reset with the seed of the same episode."""
        ...

    def compute_obs(self) -> Any:
        """The observation of the last reset or step, computed again."""
        ...


class Resumable(gymnasium.Wrapper, RecordConstructorArgs):
    """Saves where in its episode an environment is, and brings it there after a reset.

    An environment with a state of its own (``HasState``), in stateless wrappers at most, loads its
    state. Any other repeats the same actions. A checksum of observations and rewards shows whether
    that led to the same place; if not, ``is_restored`` is False and only a reset helps.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        RecordConstructorArgs.__init__(self)  # without it, ``spec`` cannot make this
        gymnasium.Wrapper.__init__(self, env)
        inner = env
        while isinstance(inner, gymnasium.Wrapper) and type(inner) in STATELESS:
            inner = inner.env
        self.stateful = inner if isinstance(inner, HasState) else None
        self.actions: list[Any] = []
        self.checksum = 0
        self.is_restored = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.actions.clear()
        self.checksum = add_to_checksum(0, obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        if self.stateful is not None:
            return self.env.step(action)
        # A copy: the caller may write the next action into the same array.
        self.actions.append(copy_action(action))
        step = self.env.step(action)
        obs, reward, terminated, truncated, _ = step
        checksum = add_to_checksum(self.checksum, obs)
        self.checksum = crc32(pack_outcome(reward, terminated, truncated), checksum)
        return step

    @property
    def episode_state(self) -> dict[str, Any]:
        """The place in the episode: plain values and arrays. Reset with its seed before setting."""
        if self.stateful is not None:
            return {"checksum": self.compute_checksum(), "own": self.stateful.state_dict()}
        return {
            "checksum": self.checksum,
            "num_actions": len(self.actions),
            "actions": stack(self.actions) if self.actions else None,
        }

    @episode_state.setter
    def episode_state(self, state: dict[str, Any]) -> None:
        # Any failure, of a foreign environment or a damaged state, means that it is not restored.
        try:
            if self.stateful is not None:
                self.stateful.load_state_dict(state["own"])
            else:
                self.replay(unstack(state["actions"], state["num_actions"]))
            self.is_restored = self.compute_checksum() == state["checksum"]
        except Exception:
            self.is_restored = False

    def replay(self, actions: Iterator[Any]) -> None:
        """Take the actions, up to an end of the episode."""
        for action in actions:
            _, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                break

    def compute_checksum(self) -> int:
        """The checksum of the first and the last observation, or of all steps of the episode."""
        if self.stateful is None:
            return self.checksum
        return add_to_checksum(self.checksum, self.stateful.compute_obs())


def add_to_checksum(checksum: int, obs: Any) -> int:
    """``checksum``, extended by an observation, nested or not."""
    if isinstance(obs, (np.ndarray, np.generic)):
        return crc32(obs.tobytes(), checksum)
    if isinstance(obs, (dict, tuple)):
        for item in obs.values() if isinstance(obs, dict) else obs:
            checksum = add_to_checksum(checksum, item)
        return checksum
    return crc32(repr(obs).encode(), checksum)


def stack(actions: Sequence[Any]) -> Any:
    """One array (T, ...) for T actions, or a dict or list of such arrays."""
    if isinstance(actions[0], dict):
        return {key: stack([action[key] for action in actions]) for key in actions[0]}
    if isinstance(actions[0], tuple):
        return [stack(part) for part in zip(*actions, strict=True)]
    return np.stack(actions)


def unstack(stacked: Any, num_actions: int) -> Iterator[Any]:
    """The actions that were stacked."""
    return (pick(stacked, index) for index in range(num_actions))


def pick(stacked: Any, index: int) -> Any:
    """The action with this index."""
    if isinstance(stacked, dict):
        return {key: pick(part, index) for key, part in stacked.items()}
    if isinstance(stacked, list):
        return tuple(pick(part, index) for part in stacked)
    return stacked[index]
