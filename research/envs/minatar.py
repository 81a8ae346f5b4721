"""MinAtar, five Atari games on a small grid: Young and Tian, 2019, arxiv.org/abs/1903.03176."""

import colorsys
import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from research.envs.dm_control import require_choice
from research.envs.vector import Vector, vectorize
from research.errors import UserError
from research.ranges import Fraction, PositiveInt

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")

SCALE = 16
"""Width of a cell of the grid in a rendered frame, pixels."""


class MinAtar(gymnasium.Env[np.ndarray, Any]):
    """One game, where every kind of thing has a plane of its own.

    | space | what |
    | --- | --- |
    | observation | uint8 (C, 10, 10), 0 or 1; C is 4 to 10, by the game |
    | action | one of 6, or of those that the game uses if ``minimal_actions`` |

    Unlike the environments that the package registers itself, an episode follows from its seed and
    its actions: none begins with the last action of the one before it.

    Args:
        game: one of ``GAMES``.
        sticky_actions: probability that a step repeats the last action instead.
        difficulty_ramping: whether the game becomes harder over an episode.
        minimal_actions: whether there are only the actions that this game uses.
        render_mode: ``rgb_array``, or None.

    Raises:
        ValueError: there is no such game.
        UserError: MinAtar is not installed.

    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        *,
        game: str,
        sticky_actions: Fraction,
        difficulty_ramping: bool,
        minimal_actions: bool,
        render_mode: str | None = None,
    ) -> None:
        require_choice("game", game, GAMES)
        minatar = import_minatar()
        self.game = minatar.Environment(game, sticky_actions, difficulty_ramping)
        self.actions = list(range(self.game.num_actions()))
        if minimal_actions:
            self.actions = self.game.minimal_action_set()
        self.render_mode = render_mode
        height, width, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0, 1, (channels, height, width), np.uint8)
        self.action_space = spaces.Discrete(len(self.actions))
        hues = [colorsys.hsv_to_rgb(plane / channels, 0.8, 1) for plane in range(channels)]
        self.colours = (255 * np.array([(0, 0, 0), *hues])).astype(np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; with ``seed`` (below 2**32) it does not depend on earlier ones."""
        super().reset(seed=seed)
        self.game.seed(seed)
        self.game.last_action = 0
        self.game.reset()
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance the game by one frame."""
        reward, is_over = self.game.act(self.actions[int(action)])
        return self.observe(), float(reward), bool(is_over), False, {}

    def observe(self) -> np.ndarray:
        """The planes of the grid."""
        return np.ascontiguousarray(self.game.state().transpose(2, 0, 1), np.uint8)

    def render(self) -> np.ndarray:
        """The grid in colours, uint8 (H, W, 3); where things meet, that of the last plane."""
        planes = self.observe()
        number = (planes * np.arange(1, 1 + len(planes))[:, None, None]).max(axis=0)
        return self.colours[number].repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def import_minatar() -> Any:
    """The package MinAtar."""
    try:
        return importlib.import_module("minatar")
    except ImportError as error:
        raise UserError(
            f"env=minatar needs MinAtar: pip install -e '.[minatar]' ({error})"
        ) from error


def make_one(max_episode_steps: int | None, arguments: Mapping[str, Any]) -> gymnasium.Env:
    """One game, whose episodes are truncated after so many frames; None for no limit."""
    env = MinAtar(**arguments)
    return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)


def make_minatar(
    *,
    game: str,
    kwargs: Mapping[str, Any],
    num_envs: PositiveInt,
    subprocesses: bool,
    action_repeat: PositiveInt,
    max_episode_steps: PositiveInt | None,
    sticky_actions: Fraction,
    difficulty_ramping: bool,
    minimal_actions: bool,
) -> Vector:
    """``num_envs`` copies of a game; ``kwargs`` are further ones of ``MinAtar``.

    An episode is truncated after ``max_episode_steps`` frames; None for no limit.
    """
    arguments = {
        "game": game,
        "sticky_actions": sticky_actions,
        "difficulty_ramping": difficulty_ramping,
        "minimal_actions": minimal_actions,
        **kwargs,
    }
    return vectorize(
        partial(make_one, max_episode_steps, arguments),
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=action_repeat,
        flatten_obs=False,
    )
