"""Frames of the episodes of an evaluation, from environments that serve nothing else."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import SyncVectorEnv, VectorEnv

from research.errors import UserError, message_of
from research.training.autoreset import Autoreset
from research.training.evaluation import run_episodes
from research.training.infos import Infos
from research.training.policy import Policy
from research.training.records.video import import_av
from research.training.seed import derive_seed, preserve_random_state

DEFAULT_FPS = 30
"""Steps per second of an environment that does not say how many it has."""

MAX_FPS = 30
"""Frames per second of a training's videos; steps between two frames are left out."""

MAX_FRAMES = 600
"""Frames of a training's video, after which the rest of the episode is left out."""


class Film(NamedTuple):
    """An episode as frames (T, H, W, 3) uint8, and how many of them are a second."""

    frames: np.ndarray
    fps: Fraction


class Videos:
    """Films an episode of the evaluation now and then.

    Args:
        every: steps between two videos; each is made by the first evaluation that reaches the
            multiple, and by the last one.
        make_env: makes environments that can be rendered.

    Raises:
        UserError: the package that encodes videos is missing.

    """

    def __init__(self, every: int, make_env: Callable[[], Any]) -> None:
        import_av()
        self.every = every
        self.make_env = make_env
        self.env: Any = None

    def begin(self, seed: int) -> None:
        """Make the environments and render a frame.

        Raises:
            UserError: they cannot be rendered.

        """
        try:
            with preserve_random_state():
                self.env = self.make_env()
                Autoreset(self.env).begin(
                    [derive_seed(seed, "video")] * self.env.num_envs,
                    np.ones(self.env.num_envs, dtype=np.bool_),
                )
                render(self.env, 0)
        except UserError as error:
            raise UserError(f"trainer.video_every={self.every} needs frames: {error}") from error

    def are_due(self, step: int, before: int) -> bool:
        """Whether the evaluation at ``step`` has a video, if the one ``before`` it was the last."""
        return step // self.every > before // self.every

    def film(
        self,
        policy: Policy,
        *,
        seed: int,
        step: int,
        infos: Infos,
        interruptible: Callable[[], AbstractContextManager[None]],
    ) -> Film:
        """The first episode of the evaluation at ``step``."""
        rate = frame_rate(self.env)
        every = -int(-rate // MAX_FPS)
        frames: list[np.ndarray] = []
        camera = Camera(
            self.env,
            num_episodes=1,
            every=every,
            max_frames=MAX_FRAMES,
            take=lambda _, frame: frames.append(frame),
        )
        run_episodes(
            policy,
            self.env,
            num_episodes=1,
            seed=seed,
            step=step,
            infos=infos,
            interruptible=interruptible,
            look=camera,
        )
        return Film(np.stack(frames), rate / every)


class Camera:
    """Renders the first episodes of an evaluation.

    Args:
        env: environments that can be rendered.
        num_episodes: how many of them.
        every: steps between two frames.
        max_frames: largest number of frames of an episode; None for all.
        take: gets the number of the episode, and its next frame.

    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        num_episodes: int,
        every: int,
        max_frames: int | None,
        take: Callable[[int, np.ndarray], object],
    ) -> None:
        self.env = env
        self.every = every
        self.max_frames = max_frames
        self.take = take
        self.looks = [0] * num_episodes

    def __call__(self, episode: int, index: int) -> None:
        """Take a frame of an episode, which the environment ``index`` shows, if it is due."""
        if episode >= len(self.looks):
            return
        number, rest = divmod(self.looks[episode], self.every)
        self.looks[episode] += 1
        if rest == 0 and (self.max_frames is None or number < self.max_frames):
            with preserve_random_state():  # the episode does not depend on who watches
                frame = render(self.env, index)
            self.take(episode, frame)


def frame_rate(env: VectorEnv[Any, Any, Any]) -> Fraction:
    """Steps per second of the time that the environments simulate."""
    fps = env.metadata.get("render_fps") or DEFAULT_FPS
    return Fraction(fps).limit_denominator(1000) / env.metadata.get("action_repeat", 1)


def render(env: VectorEnv[Any, Any, Any], index: int) -> np.ndarray:
    """What an environment shows, uint8 (H, W, 3).

    Raises:
        UserError: it shows nothing, or needs a package or library that is missing.

    """
    try:
        if isinstance(env, SyncVectorEnv):
            frame = env.envs[index].render()
        else:
            frame = (env.render() or {index: None})[index]
    except (DependencyNotInstalled, ImportError) as error:
        hint = "pip install -e '.[results]' has those of gymnasium's small environments"
        raise UserError(
            f"{name_of(env)} cannot be rendered: {message_of(error)}; {hint}"
        ) from error
    except NotImplementedError as error:
        raise UserError(f"{name_of(env)} cannot be rendered: {message_of(error)}") from error
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
        got = getattr(frame, "dtype", type(frame).__name__), getattr(frame, "shape", "")
        raise UserError(
            f"{name_of(env)} shows no frames: render() must return uint8 (H, W, 3), got "
            f"{got[0]} {got[1]}".rstrip()
        )
    return frame


def name_of(env: VectorEnv[Any, Any, Any]) -> str:
    """The name of an environment for an error message."""
    inner = env.envs[0] if isinstance(env, SyncVectorEnv) else env
    return inner.spec.id if inner.spec else str(inner.unwrapped)
