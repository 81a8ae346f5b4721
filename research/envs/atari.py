"""Atari 2600 games, preprocessed as by Machado et al., 2018, https://arxiv.org/abs/1709.06009."""

import importlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import AtariPreprocessing

from research.envs.gymnasium_env import one_line_errors
from research.envs.images import stacking
from research.envs.vector import Vector, vectorize
from research.errors import UserError
from research.ranges import Fraction, NonNegativeInt, PositiveInt

FPS = 60
"""Frames per second of the console."""


class Atari(gymnasium.Wrapper, RecordConstructorArgs):
    """Counts the frames of a step, and keeps the game's own infos out of the logs.

    If an episode ends before the last repeat of an action, ``action_repeat/skipped_frames`` counts
    the rest. With ``clip_rewards``, a reward becomes its sign (Mnih et al., 2015), and the info
    ``score`` is the reward as it was.
    """

    def __init__(self, env: AtariPreprocessing, *, clip_rewards: bool) -> None:
        RecordConstructorArgs.__init__(self, clip_rewards=clip_rewards)  # for ``spec``
        gymnasium.Wrapper.__init__(self, env)
        self.frame_skip, self.clip_rewards = env.frame_skip, clip_rewards
        self.metadata = {**env.metadata, "render_fps": FPS}
        self.frame = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, which begins after a random number of frames without an action."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.frame = info["episode_frame_number"]
        return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeat an action; the observation is the maximum of the last two frames."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward, infos = float(reward), {}
        skipped = self.frame + self.frame_skip - info["episode_frame_number"]
        self.frame = info["episode_frame_number"]
        if skipped:
            infos["action_repeat/skipped_frames"] = skipped
        if self.clip_rewards:
            infos["score"], reward = reward, float(np.sign(reward))
        return obs, reward, terminated, truncated, infos


def make_one(
    game: str, kwargs: Mapping[str, Any], options: Mapping[str, Any], *, clip_rewards: bool
) -> gymnasium.Env:
    """One game; ``options`` are those of gymnasium's ``AtariPreprocessing``."""
    import_packages()
    require_game(game)
    id = f"ALE/{game}-v5"
    with one_line_errors(id, kwargs):
        env = gymnasium.make(id, frameskip=1, disable_env_checker=True, **kwargs)
        return Atari(AtariPreprocessing(env, **options), clip_rewards=clip_rewards)


def import_packages() -> None:
    """Let ale-py register its games, and see whether OpenCV is there, which scales the frames."""
    try:
        ale_py = importlib.import_module("ale_py")
        importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"env=atari needs ale-py and OpenCV: pip install -e '.[atari]' ({error})"
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it prints its name at every game


def require_game(game: str) -> None:
    """Refuse a name that is no game's; the message lists the nearest ones."""
    games = list(list_games())
    if game not in games:
        by_lower = {name.lower(): name for name in games}
        plain = game.lower().replace("_", "")
        nearest = get_close_matches(plain, by_lower, n=3, cutoff=0.3)
        raise ValueError(
            f"no game is called '{game}'; the nearest of {len(games)}: "
            f"{', '.join(by_lower[name] for name in nearest) or 'none'}"
        )


def list_games() -> Iterable[str]:
    """The names of all games, such as SpaceInvaders."""
    ids = (id for id in gymnasium.registry if id.startswith("ALE/"))
    return (id.removeprefix("ALE/").removesuffix("-v5") for id in ids)


def make_atari(
    *,
    game: str,
    kwargs: Mapping[str, Any],
    num_envs: PositiveInt,
    subprocesses: bool,
    action_repeat: PositiveInt,
    max_episode_steps: PositiveInt,
    frame_stack: PositiveInt,
    screen_size: PositiveInt,
    grayscale: bool,
    noop_max: NonNegativeInt,
    sticky_actions: Fraction,
    life_loss_ends: bool,
    clip_rewards: bool,
    training: bool,
) -> Vector:
    """``num_envs`` copies of a game, which show uint8 (C * frame_stack, size, size), oldest first.

    The frames that a game begins with, without an action, count for ``max_episode_steps`` and for
    nothing else. A lost life that ends an episode is terminal, and the next episode is a new game,
    where that of Mnih et al., 2015, goes on with the next life.

    Args:
        game: such as Pong; a wrong name lists the nearest ones.
        kwargs: for ``gymnasium.make``.
        num_envs: copies stepped together.
        subprocesses: whether each is in a process of its own.
        action_repeat: frames per step; observed is the maximum of the last two.
        max_episode_steps: frames after which a game is truncated, more than ``noop_max``.
        frame_stack: frames of the last steps in an observation.
        screen_size: height and width of an observation, pixels.
        grayscale: whether frames are grey (C is 1) or in colour (C is 3).
        noop_max: largest number of frames without an action at the beginning.
        sticky_actions: probability that a frame repeats the last frame's action instead.
        life_loss_ends: whether a lost life ends an episode, in training.
        clip_rewards: whether rewards become their sign, in training.
        training: whether these environments are those of training, not of an evaluation.

    Raises:
        ValueError: there is no such game, or it would be truncated before it begins.
        UserError: ale-py or OpenCV is not installed.

    """
    if max_episode_steps <= noop_max:
        raise ValueError(
            f"max_episode_steps must exceed noop_max={noop_max}, got {max_episode_steps}"
        )
    of_game = {
        "repeat_action_probability": sticky_actions,
        "max_num_frames_per_episode": max_episode_steps,
        **kwargs,
    }
    preprocessing = {
        "noop_max": noop_max,
        "frame_skip": action_repeat,
        "screen_size": screen_size,
        "terminal_on_life_loss": life_loss_ends and training,
        "grayscale_obs": grayscale,
        "grayscale_newaxis": True,
    }
    clips = clip_rewards and training
    env = vectorize(
        partial(make_one, game, of_game, preprocessing, clip_rewards=clips),
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=1,  # the preprocessing repeats them
        flatten_obs=False,
        wrap=stacking(frame_stack),
    )
    env.metadata = {**env.metadata, "action_repeat": action_repeat}
    return env
