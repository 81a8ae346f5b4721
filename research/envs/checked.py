"""Checks what an environment returns against gymnasium's API."""

import copy
import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from research.errors import UserError

ARRAYS = (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)
"""The spaces whose elements are arrays of one shape."""

MADE = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""The wrappers that ``gymnasium.make`` adds; they assume that the environment keeps the API."""


class Checked(gymnasium.Wrapper):
    """Refuses in one line a result that violates gymnasium's API; rewards become floats.

    A reward may be an array of one number. The environment may write into the action, since it
    gets a copy.

    Raises:
        ValueError: ``reset`` is of the API before gym 0.26.

    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.name = env.spec.id if env.spec else str(env.unwrapped)
        self.declared = env.observation_space
        require_seeded_reset(env.unwrapped.reset, self.name)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise UserError(f"{self.name}: reset must return (obs, info), got {name_types(result)}")
        self.check_obs(result[0])
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment."""
        result = self.env.step(copy_action(action))
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            raise UserError(
                f"{self.name}: step must return (obs, reward, terminated, truncated, info), got "
                f"{name_types(result)}"
            )
        obs, reward, terminated, truncated, info = result
        self.check_obs(obs)
        return obs, self.to_number(reward), bool(terminated), bool(truncated), info

    def check_obs(self, obs: Any) -> None:
        """Refuse an observation whose form differs from the declared space's."""
        if difference := find_difference(self.declared, obs):
            raise UserError(f"{self.name}: {difference}")

    def to_number(self, reward: Any) -> float:
        """The reward, which may be an array of one number."""
        try:
            return float(reward.item() if isinstance(reward, np.ndarray) else reward)
        except (TypeError, ValueError) as error:
            got = reprlib.repr(reward)
            raise UserError(f"{self.name}: a reward must be one number, got {got}") from error

    @property
    def spec(self) -> EnvSpec | None:
        """The spec of the environment without this wrapper."""
        return self.env.spec


def check_env(env: gymnasium.Env) -> gymnasium.Env:
    """``env`` with a ``Checked`` beneath the wrappers that ``gymnasium.make`` has added."""
    outer, inner = None, env
    while isinstance(inner, MADE):
        outer, inner = inner, inner.env
    if outer is None:
        return Checked(inner)
    outer.env = Checked(inner)
    return env


def require_seeded_reset(reset: Callable[..., Any], name: str, mend: str = "") -> None:
    """Refuse a ``reset`` that takes no seed or no options; ``mend`` ends the message."""
    parameters = inspect.signature(reset).parameters.values()
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    missing = {"seed", "options"} - {parameter.name for parameter in parameters}
    if missing and not is_open:
        raise ValueError(
            f"{name}: reset must take seed and options, and return (obs, info); this one takes no "
            f"{' and no '.join(sorted(missing, reverse=True))}{mend}"
        )


def copy_action(action: Any) -> Any:
    """A copy of an action, nested parts included."""
    return action.copy() if isinstance(action, np.ndarray) else copy.deepcopy(action)


def name_types(result: Any) -> str:
    """The number and types of the values in ``result``, for an error message."""
    if isinstance(result, tuple):
        return f"{len(result)} values: ({', '.join(type(value).__name__ for value in result)})"
    return f"one {type(result).__name__}"


def find_difference(space: gymnasium.Space, obs: Any, name: str = "observation") -> str | None:
    """How the form of ``obs`` differs from that of the elements of ``space``, or None."""
    if isinstance(space, ARRAYS):
        shape = obs.shape if isinstance(obs, np.ndarray) else np.shape(obs)
        if shape != space.shape:
            return f"{name} must be of shape {space.shape}, as declared, got {shape}"
    elif isinstance(space, spaces.Discrete):
        if not space.contains(obs):
            return f"{name} must be one of {space}, as declared, got {reprlib.repr(obs)}"
    elif isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or obs.keys() != space.keys():
            got = sorted(obs) if isinstance(obs, Mapping) else type(obs).__name__
            return f"{name} must have the keys {sorted(space)}, as declared, got {got}"
        parts = (find_difference(space[key], obs[key], f"{name}[{key!r}]") for key in space)
        return next(filter(None, parts), None)
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space):
            return f"{name} must be a tuple of {len(space)}, as declared, got {name_types(obs)}"
        pairs = enumerate(zip(space.spaces, obs, strict=True))
        parts = (find_difference(*pair, f"{name}[{index}]") for index, pair in pairs)
        return next(filter(None, parts), None)
    return None
