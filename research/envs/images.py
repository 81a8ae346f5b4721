"""Images as networks take them: channels first, and the newest frames in one stack."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TransformObservation

MAX_CHANNELS = 4
"""Of an image (H, W, C): grey, red, green and blue, and opacity."""


def channels_first(env: gymnasium.Env) -> gymnasium.Env:
    """``env`` with its uint8 images (H, W, C) or (H, W) as (C, H, W), also within a Dict.

    Images (H, W, C) are told from images (C, H, W) by C: it is 1 to 4, and both other sides are
    larger.
    """
    space = channels_first_space(env.observation_space)
    if space == env.observation_space:
        return env
    return TransformObservation(env, partial(move_channels, env.observation_space), space)


def channels_first_space(space: spaces.Space) -> spaces.Space:
    """The space of what ``move_channels`` returns."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict(OrderedDict((key, channels_first_space(space[key])) for key in space))
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return space
    low, high = (move_channels(space, bound) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype.type)


def move_channels(space: spaces.Space, obs: Any) -> Any:
    """Observations of ``space``, one or several, with the channels of their images first."""
    if isinstance(space, spaces.Dict):
        return {key: move_channels(space[key], obs[key]) for key in space}
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return obs
    if has_channels_last(space):
        return np.ascontiguousarray(np.moveaxis(obs, -1, -3))
    return np.expand_dims(obs, -3) if len(space.shape) == 2 else obs


def has_channels_last(box: spaces.Box) -> bool:
    """Whether the elements of a box are images (H, W, C)."""
    if box.dtype != np.uint8 or len(box.shape) != 3:
        return False
    height, width, channels = box.shape
    return channels <= MAX_CHANNELS and channels < min(height, width)


def stack_frames(env: gymnasium.Env, frame_stack: int) -> gymnasium.Env:
    """``env`` that shows its newest images in one, uint8 (frame_stack * C, H, W), oldest first.

    So does every image of a Dict; its other parts are the newest alone. The first image of an
    episode fills the stack. ``metadata["frame_stack"]`` says how many there are, so that a replay
    buffer stores each of them once. ``env`` has its channels first.

    Raises:
        ValueError: observations have no images, uint8 (C, H, W).

    """
    space = env.observation_space
    stacked = stacked_space(space, frame_stack)
    if stacked == space:
        shown, hint = str(space), ""
        if isinstance(space, spaces.Box):
            shown = f"{space.dtype} {space.shape}"
            hint = "for those of a Dict set env.flatten_obs=false, or "
        raise ValueError(
            f"frame_stack={frame_stack} needs images, uint8 (H, W, C), (C, H, W) or (H, W), got "
            f"{shown}; {hint}leave it out: env.frame_stack=null"
        )
    env = FrameStackObservation(env, frame_stack)
    env = TransformObservation(env, partial(join_frames, space), stacked)
    env.metadata = {**env.metadata, "frame_stack": frame_stack}
    return env


def stacked_space(space: spaces.Space, frame_stack: int) -> spaces.Space:
    """The space of what ``join_frames`` returns."""
    if isinstance(space, spaces.Dict):
        parts = ((key, stacked_space(space[key], frame_stack)) for key in space)
        return spaces.Dict(OrderedDict(parts))
    if not is_frame(space):
        return space
    low, high = (np.concatenate([bound] * frame_stack) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=np.uint8)


def join_frames(space: spaces.Space, newest: Any) -> Any:
    """One observation of the newest ones, (frame_stack, ...) of ``space``: all of their images."""
    if isinstance(space, spaces.Dict):
        return {key: join_frames(space[key], newest[key]) for key in space}
    return newest.reshape(-1, *newest.shape[-2:]) if is_frame(space) else newest[-1]


def is_frame(space: spaces.Space) -> TypeGuard[spaces.Box]:
    """Whether the elements of a space are images (C, H, W)."""
    return isinstance(space, spaces.Box) and is_image(space) and len(space.shape) == 3


def is_image(box: spaces.Box) -> bool:
    """Whether the elements of a box are images or stacks of images."""
    return box.dtype == np.uint8 and len(box.shape) > 1


def stacking(frame_stack: int | None) -> Callable[[gymnasium.Env], gymnasium.Env] | None:
    """What ``vectorize`` wraps each environment in; None for no stack, and for one of one frame."""
    if frame_stack is None or frame_stack == 1:
        return None
    return partial(stack_frames, frame_stack=frame_stack)
