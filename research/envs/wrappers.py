"""The wrappers of every environment: repeated actions in [-1, 1], float32 observations."""

import operator
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TransformAction, TransformObservation

from research.envs.checked import check_env
from research.envs.images import channels_first, is_image


def standardise(env: gymnasium.Env, *, action_repeat: int, flatten_obs: bool) -> gymnasium.Env:
    """``env``, checked, with repeated actions, Box actions in [-1, 1] and float32 observations.

    Images are uint8 (C, H, W). ``flatten_obs`` turns an observation that is not an array into one
    vector, a discrete one into a one-hot vector. ``metadata["own_spaces"]`` holds the spaces of
    observations and actions as they were.

    Raises:
        ValueError: an action has no finite bound, or ``reset`` is of the API before gym 0.26.

    """
    env = check_env(env)
    own_spaces = env.observation_space, env.action_space
    if action_repeat > 1:
        env = ActionRepeat(env, action_repeat)
    env = rescale_action(env)
    if flatten_obs and not isinstance(env.observation_space, spaces.Box):
        env = FlattenObservation(env)
    env = cast_obs(channels_first(env))
    env.metadata = {**env.metadata, "own_spaces": own_spaces}
    return env


class ActionRepeat(gymnasium.Wrapper):
    """Applies an action ``repeats`` times, or until the episode ends, and sums the rewards.

    Numbers in the infos are summed, except that ``success`` becomes its maximum and names that
    begin with ``distance`` keep their last value, as does anything that is not a number. If an
    episode ends before the last repeat, ``action_repeat/skipped_frames`` counts the rest.
    """

    def __init__(self, env: gymnasium.Env, repeats: int) -> None:
        super().__init__(env)
        self.repeats = repeats

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step up to ``repeats`` times; the observation is that of the last step."""
        total, infos = 0.0, {}
        for skipped in reversed(range(self.repeats)):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            infos = combine_infos(infos, info)
            if terminated or truncated:
                if skipped:
                    infos["action_repeat/skipped_frames"] = skipped
                break
        return obs, total, terminated, truncated, infos


def combine_infos(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """One info for two consecutive stretches of an episode."""
    combined = {**earlier, **later}
    for key in earlier.keys() & later.keys():
        if not key.startswith("distance") and is_number(earlier[key]) and is_number(later[key]):
            combine = max if key == "success" else operator.add
            combined[key] = combine(earlier[key], later[key])
    return combined


def is_number(value: object) -> bool:
    """Whether ``value`` is a scalar number, of Python or NumPy; a Boolean counts as one."""
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def rescale_action(env: gymnasium.Env) -> gymnasium.Env:
    """``env`` with float32 actions in [-1, 1], if its actions are a Box.

    Unlike gymnasium's RescaleAction it never exceeds a bound by a rounding error, which
    environments that check their actions would refuse.
    """
    box = env.action_space
    if not isinstance(box, spaces.Box):
        return env
    unit = unit_box(box)
    return env if box == unit else TransformAction(env, partial(scale_to, box), unit)


def unit_box(box: spaces.Box) -> spaces.Box:
    """The float32 box [-1, 1] in the shape of a box of actions, which must be bounded."""
    if not np.issubdtype(box.dtype, np.floating) or not is_bounded(box):
        raise ValueError(f"actions must be floats with finite bounds, got {box}")
    return spaces.Box(-1.0, 1.0, box.shape, np.float32)


def is_bounded(box: spaces.Box) -> bool:
    """Whether all bounds are finite; float32's largest number often stands for infinity."""
    return bool((np.abs([box.low, box.high]) < np.finfo(np.float32).max).all())


def scale_to(box: spaces.Box, action: np.ndarray) -> np.ndarray:
    """``action``, scaled from [-1, 1] to the bounds of ``box`` and clipped to them."""
    share = (np.asarray(action, np.float64) + 1) / 2  # float32 would round small actions away
    scaled = (1 - share) * box.low + share * box.high
    return np.clip(scaled.astype(box.dtype), box.low, box.high)


def cast_obs(env: gymnasium.Env) -> gymnasium.Env:
    """``env`` with observations in float32 unless they are images, also within a Dict."""
    space = float32_space(env.observation_space)
    if space == env.observation_space:
        return env
    return TransformObservation(env, partial(cast_to, space), space)


def float32_space(space: spaces.Space) -> spaces.Space:
    """``space`` with every Box in float32, except images: uint8, two or more axes."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict(OrderedDict((key, float32_space(space[key])) for key in space))
    if not isinstance(space, spaces.Box) or space.dtype == np.float32 or is_image(space):
        return space
    with np.errstate(over="ignore"):  # a bound beyond float32 becomes infinite
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))


def cast_to(space: spaces.Space, obs: Any) -> Any:
    """``obs`` in the dtypes of ``space``."""
    if isinstance(space, spaces.Dict):
        return {key: cast_to(space[key], obs[key]) for key in space}
    return np.asarray(obs, space.dtype) if isinstance(space, spaces.Box) else obs
