"""Any environment registered with gymnasium, by its id."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from traceback import walk_tb
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled, Error
from gymnasium.vector import VectorEnv

from research.envs.images import stacking
from research.envs.native import standardise_vector
from research.envs.vector import Vector, vectorize
from research.errors import UserError, did_you_mean
from research.ranges import PositiveInt


def make_gymnasium(
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
    """``num_envs`` copies of ``gymnasium.make(id, **kwargs)``, Box actions scaled to [-1, 1].

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


def make_one(id: str, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """``gymnasium.make`` with errors of one line."""
    with one_line_errors(id, kwargs):
        return gymnasium.make(id, **kwargs)


def make_native(
    *,
    id: str,
    kwargs: Mapping[str, Any],
    num_envs: PositiveInt,
    max_episode_steps: PositiveInt | None,
    flatten_obs: bool,
) -> VectorEnv:
    """The vector class that is registered with ``id``, its Box actions scaled to [-1, 1].

    An episode is truncated after ``max_episode_steps`` steps; None for the registered number.
    """
    spec = gymnasium.registry.get(id)
    if spec is not None and spec.vector_entry_point is None:
        raise ValueError(f"'{id}' has no vector class of its own; try env=gymnasium")
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    keys = {**limit, **kwargs}
    with one_line_errors(id, keys):
        env = gymnasium.make_vec(id, num_envs, "vector_entry_point", **keys)
    return standardise_vector(env, id, flatten_obs=flatten_obs)


@contextmanager
def one_line_errors(id: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Explain in one line why gymnasium cannot make an environment.

    Raises:
        ValueError: there is no such environment, or it does not take these arguments.
        UserError: the environment needs a package that is not installed.

    """
    try:
        yield
    except (DependencyNotInstalled, ImportError) as error:
        raise UserError(f"env.id={id}: {error}") from error
    except Error as error:
        reason = str(error).partition(" Did you mean")[0].rstrip(".")
        mend = how_to_import(id) + did_you_mean(id, gymnasium.registry)
        raise ValueError(f"'{id}' cannot be made by gymnasium: {reason}{mend}") from error
    except TypeError as error:
        if not is_of_call(error.__cause__ or error, kwargs):
            raise
        raise ValueError(f"kwargs must suit '{id}': {error.__cause__ or error}") from error


def how_to_import(id: str) -> str:
    """A hint for an environment of a module that nobody has imported."""
    return (
        "" if ":" in id else f"; if a module of yours registers it, env.id=module:{id} imports it"
    )


def is_of_call(error: BaseException, kwargs: Mapping[str, Any]) -> bool:
    """Whether a TypeError means that a constructor refused ``kwargs``, not that its body failed."""
    steps = [frame for frame, _ in walk_tb(error.__traceback__)]
    is_refused = any(f"unexpected keyword argument '{name}'" in str(error) for name in kwargs)
    return is_refused or steps[-1].f_code.co_name in ("make", "make_vec")
