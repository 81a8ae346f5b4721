"""Observations as a user has them, checked, for a trained policy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space, flatten

from research.envs.images import channels_first_space, move_channels
from research.envs.wrappers import cast_to
from research.training.saving.spaces import Spaces


def to_batch(spaces: Spaces, obs: Any) -> tuple[Any, bool]:
    """The observations (E, O) as the processor takes them, and whether ``obs`` is a single one.

    Args:
        spaces: of the policy and of its environment.
        obs: of either's observation space, one or E of them.

    Raises:
        ValueError: it has neither of the shapes, is not finite, or its dtype cannot hold it.

    """
    space, own = spaces.observation, spaces.own_observation
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
