"""Environments registered with ``gym``, the package that gymnasium replaced, by their id."""

import importlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from research.envs.checked import require_seeded_reset
from research.envs.gymnasium_env import how_to_import, is_of_call
from research.envs.images import stacking
from research.envs.vector import Vector, vectorize
from research.errors import UserError, did_you_mean
from research.ranges import PositiveInt


class LegacyGym(gymnasium.Env[Any, Any]):
    """An environment of gym 0.26 as one of gymnasium; the two differ in their spaces' classes.

    An environment of the older API (``step`` returns four values) needs gym's own option
    ``apply_api_compatibility`` in its ``kwargs``. gym's time limit is removed.

    Raises:
        ValueError: gym cannot make the environment, it is of the older API, or it has a space that
            gymnasium lacks.
        UserError: the environment needs a package that is not installed.

    Attributes:
        max_episode_steps: gym's time limit, or None.

    """

    def __init__(self, id: str, kwargs: Mapping[str, Any]) -> None:
        self.gym_env = make_gym(id, kwargs)
        self.max_episode_steps: int | None = None
        for kind in ("TimeLimit", "OrderEnforcing"):  # they unpack results before they are checked
            if type(self.gym_env).__name__ == kind:
                limit = getattr(self.gym_env, "_max_episode_steps", None)
                self.max_episode_steps = self.max_episode_steps or limit
                self.gym_env = self.gym_env.env
        self.id = id
        adapt = "; '+env.kwargs.apply_api_compatibility=true' adapts it"
        require_seeded_reset(self.gym_env.unwrapped.reset, id, adapt)
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
        return self.gym_env.step(action)

    def __str__(self) -> str:
        """The environment's id."""
        return self.id

    def render(self) -> Any:
        """The frame or text that the environment's ``render_mode`` produces."""
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
        # gym's checker uses np.bool8, which NumPy 2 lacks.
        return gym.make(id, disable_env_checker=True, **kwargs)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"env.id={id}: {error}") from error
    except gym.error.Error as error:
        reason = str(error).partition(" Did you mean")[0].rstrip(". ")
        mend = how_to_import(id) + did_you_mean(id, gym.envs.registry)
        raise ValueError(f"'{id}' cannot be made by gym: {reason}{mend}") from error
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


def make_one(id: str, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """``gym.make(id, **kwargs)`` with gymnasium's time limit in place of gym's."""
    env = LegacyGym(id, kwargs)
    return env if env.max_episode_steps is None else TimeLimit(env, env.max_episode_steps)


def make_legacy_gym(
    *,
    id: str,
    kwargs: Mapping[str, Any],
    num_envs: PositiveInt,
    subprocesses: bool,
    action_repeat: PositiveInt,
    max_episode_steps: PositiveInt | None,
    flatten_obs: bool,
    frame_stack: PositiveInt | None = None,
) -> Vector:
    """``num_envs`` copies of ``gym.make(id, **kwargs)``, Box actions scaled to [-1, 1].

    An episode is truncated after ``max_episode_steps`` frames; None for the registered number.
    Observations show the images of the last ``frame_stack`` steps; None for one, unstacked.
    """
    return vectorize(
        partial(make_one, id, {"max_episode_steps": max_episode_steps, **kwargs}),
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=action_repeat,
        flatten_obs=flatten_obs,
        wrap=stacking(frame_stack),
    )
