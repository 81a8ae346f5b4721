"""Frames instead of states, stacked as in DrQ-v2: Yarats et al., 2021, arxiv.org/abs/2107.09645."""

from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from annotated_types import Interval
from gymnasium import spaces

from research.envs.resumable import HasState

PixelSize: TypeAlias = Annotated[int, Interval(ge=1, le=480)]
"""Up to the height of the buffer that MuJoCo renders into, unless a model asks for more."""


@runtime_checkable
class HasFrames(HasState, Protocol):
    """An environment with a state of its own that can be rendered in any size."""

    def render_frame(self, height: int, width: int) -> np.ndarray:
        """The current frame, uint8 (H, W, 3)."""
        ...


class Pixels(gymnasium.Wrapper):
    """Shows the frames after the last ``frame_stack`` steps, one per step.

    | space | what |
    | --- | --- |
    | observation | uint8 (3 * frame_stack, H, W): oldest frame first, each red, green and blue |

    The first frame of an episode fills the stack. If actions are repeated, a step renders only the
    last frame. Wrappers between this one and the innermost environment must have no state.

    Raises:
        ValueError: the innermost environment cannot be rendered in any size.

    """

    def __init__(self, env: gymnasium.Env, *, pixel_size: int, frame_stack: int) -> None:
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, HasFrames):
            raise ValueError(f"pixels need an environment with frames of any size, got {inner}")
        self.inner, self.pixel_size, self.frame_stack = inner, pixel_size, frame_stack
        self.metadata = {**env.metadata, "frame_stack": frame_stack}
        shape = (3 * frame_stack, pixel_size, pixel_size)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.frames = np.zeros(shape, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        _, info = self.env.reset(seed=seed, options=options)
        self.frames = np.tile(self.render_newest(), (self.frame_stack, 1, 1))
        return self.frames, info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step the environment and render once."""
        _, reward, terminated, truncated, info = self.env.step(action)
        self.frames = np.concatenate([self.frames[3:], self.render_newest()])
        return self.frames, reward, terminated, truncated, info

    def render_newest(self) -> np.ndarray:
        """The current frame (3, H, W)."""
        return self.inner.render_frame(self.pixel_size, self.pixel_size).transpose(2, 0, 1)

    def compute_obs(self) -> np.ndarray:
        """The observation of the last reset or step, its newest frame rendered again."""
        return np.concatenate([self.frames[:-3], self.render_newest()])

    def state_dict(self) -> dict[str, Any]:
        """The innermost environment's state, and all frames but the newest, which it determines."""
        return {"frames": self.frames[:-3].copy(), "env": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; call this after a reset with the seed of the same episode.

        Raises:
            ValueError: ``state`` is not one of this environment; then nothing has changed.

        """
        older = state["frames"]
        if older.dtype != np.uint8 or older.shape != self.frames[:-3].shape:
            raise ValueError("these are not the frames of an episode in the same size")
        self.inner.load_state_dict(state["env"])
        self.frames = np.concatenate([older, self.render_newest()])
