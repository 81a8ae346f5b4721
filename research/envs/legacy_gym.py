"""Environments registered with ``gym``, the package that gymnasium replaced, by their id."""

import importlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
from gymnasium import spaces

from research.envs.gymnasium_env import is_of_call
from research.envs.vector import Vector, vectorize
from research.errors import UserError, did_you_mean


class LegacyGym(gymnasium.Env[Any, Any]):
    """An environment of gym 0.26 as one of gymnasium; the two differ in their spaces' classes.

    One of the older API (``step`` returns four values) needs ``apply_api_compatibility`` among
    its ``kwargs``, which is gym's own.

    Raises:
        ValueError: gym cannot make the environment, or has a space that gymnasium has not.
        UserError: the environment needs a package that is not installed.

    """

    def __init__(self, id: str, kwargs: Mapping[str, Any]) -> None:
        self.gym_env = make_gym(id, kwargs)
        self.metadata = dict(self.gym_env.metadata)
        self.render_mode = self.gym_env.render_mode
        self.observation_space = convert_space(self.gym_env.observation_space)
        self.action_space = convert_space(self.gym_env.action_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        return self.gym_env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment."""
        obs, reward, terminated, truncated, info = self.gym_env.step(action)
        return obs, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """What the environment's ``render_mode`` shows."""
        return self.gym_env.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self.gym_env.close()


def make_gym(id: str, kwargs: Mapping[str, Any]) -> Any:
    """``gym.make`` with errors of one line."""
    try:
        gym: Any = importlib.import_module("gym")
    except ImportError as error:
        raise UserError("env=gym needs the package gym: pip install -e '.[gym]'") from error
    try:
        # gym's checker uses np.bool8, which NumPy 2 has not.
        return gym.make(id, disable_env_checker=True, **kwargs)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"env.id={id}: {error}") from error
    except gym.error.Error as error:
        reason = str(error).partition(" Did you mean")[0].rstrip(".")
        guess = did_you_mean(id, gym.envs.registry)
        raise ValueError(f"'{id}' cannot be made by gym: {reason}{guess}") from error
    except TypeError as error:
        if not is_of_call(error.__cause__ or error, kwargs):
            raise
        raise ValueError(f"kwargs must suit '{id}': {error}") from error


def convert_space(space: Any) -> spaces.Space:
    """The gymnasium space of the same values as a gym space."""
    kind = type(space).__name__
    if kind == "Box":
        return spaces.Box(space.low, space.high, space.shape, space.dtype)
    if kind == "Discrete":
        return spaces.Discrete(space.n, start=space.start)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(space.nvec)
    if kind == "MultiBinary":
        return spaces.MultiBinary(space.n)
    if kind == "Tuple":
        return spaces.Tuple([convert_space(inner) for inner in space.spaces])
    if kind == "Dict":
        return spaces.Dict(OrderedDict((k, convert_space(v)) for k, v in space.spaces.items()))
    raise ValueError(f"gymnasium has no space for {space}")


def make_legacy_gym(
    *,
    id: str,
    kwargs: Mapping[str, Any],
    num_envs: int,
    subprocesses: bool,
    action_repeat: int,
    flatten_obs: bool,
) -> Vector:
    """``num_envs`` copies of ``gym.make(id, **kwargs)``, Box actions scaled to [-1, 1]."""
    return vectorize(
        partial(LegacyGym, id, dict(kwargs)),
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=action_repeat,
        flatten_obs=flatten_obs,
    )
