"""Videos of a run's policy in its environment."""

import logging
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image

from research.errors import UserError
from research.files import write_whole
from research.ranges import PositiveFloat, PositiveInt, Seed
from research.results.contact_sheet import contact_sheet
from research.results.load import CheckpointName, load
from research.training.evaluation import run_episodes
from research.training.filming import Camera, frame_rate
from research.training.infos import Infos
from research.training.records.progress import Bar, is_terminal
from research.training.records.video import Video, import_av, join

SHEET_FRAMES = 8
"""Frames of an episode on the contact sheet."""

TELL_S = 10
"""Seconds between two lines of progress where there is no terminal."""

log = logging.getLogger(__name__)


class WatchOptions(NamedTuple):
    """What to watch.

    Attributes:
        checkpoint: the one with the best score, or the last.
        episodes: number of episodes, which are those of an evaluation with the same seed.
        seed: of the episodes; None for the run's own.
        fps: largest number of frames per second; the speed stays true, and frames are left out.
            None for a frame of each step.
        size: of a frame, as ``640x480``; None for the environment's own.
        out: the file, which ends with ``.mp4``; None for ``videos/<step>-seed<seed>.mp4`` in the
            run directory.
        device: as the config key.
        trusted_modules: modules of yours from which the run's config may build parts.
        env: changes of the run's group ``env``.

    """

    checkpoint: CheckpointName = "best"
    episodes: PositiveInt = 3
    seed: Seed | None = None
    fps: PositiveFloat | None = None
    size: str | None = None
    out: str | None = None
    device: str = "cpu"
    trusted_modules: Sequence[str] = ()
    env: Mapping[str, Any] = MappingProxyType({})


class Watched(NamedTuple):
    """The files of a video and of its contact sheet, and the metrics of its episodes."""

    video: Path
    sheet: Path
    episodes: list[dict[str, float]]


def watch(folder: Path, options: WatchOptions) -> Watched:
    """Film episodes of a run's policy.

    Raises:
        UserError: the run cannot be loaded, or has no environment that can be rendered; an option
            does not suit it, or a package is missing.

    """
    import_av()
    size = parse_size(options.size)
    policy = load(
        folder, options.checkpoint, device=options.device, trusted_modules=options.trusted_modules
    )
    seed = policy.config.seed if options.seed is None else options.seed
    video = choose_file(folder, options.out, f"{policy.step}-seed{seed}")
    changes = dict(options.env)
    if size and {"height", "width"} <= set(policy.config.env):
        changes |= {"width": size[0], "height": size[1]}
    with closing(policy.make_vector(episodes=options.episodes, renders=True, **changes)) as env:
        if not isinstance(env, VectorEnv):
            raise UserError(
                f"{folder} has no environment to watch; python -m research.evaluate {folder} "
                "tells what it predicts for examples"
            )
        every = steps_per_frame(frame_rate(env), options.fps)
        film = Film(options.episodes, frame_rate(env) / every, size)
        camera = Camera(
            env, num_episodes=options.episodes, every=every, max_frames=None, take=film.add
        )
        with closing(film.progress):
            episodes = run_episodes(
                policy.policy,
                env,
                num_episodes=options.episodes,
                seed=seed,
                step=policy.step,
                infos=Infos(policy.config.trainer.infos or {}),
                look=camera,
            )
    return film.write(video, episodes)


class Film:
    """One video for each episode, as they grow side by side.

    Args:
        num_episodes: how many there are.
        fps: frames per second.
        size: width and height to which frames are scaled; None for their own.

    """

    def __init__(self, num_episodes: int, fps: Fraction, size: tuple[int, int] | None) -> None:
        self.videos = [Video(fps) for _ in range(num_episodes)]
        self.fps = fps
        self.size = size
        self.shape: tuple[int, ...] = ()
        self.progress = Bar(unit=" frames", disable=not is_terminal(sys.stderr))
        self.told = time.monotonic()

    def add(self, episode: int, frame: np.ndarray) -> None:
        """Append a frame to the video of an episode, and show the progress."""
        if self.size and frame.shape[1::-1] != self.size:
            frame = np.asarray(Image.fromarray(frame).resize(self.size))
        self.videos[episode].add(frame)
        self.shape = frame.shape
        self.progress.update()
        if self.progress.disable and time.monotonic() > self.told + TELL_S:
            self.told = time.monotonic()
            log.info("%d frames", sum(video.num_frames for video in self.videos))

    def write(self, path: Path, episodes: list[dict[str, float]]) -> Watched:
        """Write all of them as one video, with the contact sheet beside it."""
        for number, episode in enumerate(episodes):
            log.info("episode %d: %s", number, caption(episode, ", "))
        contents = [video.close() for video in self.videos]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, join(contents))
        sheet = path.with_suffix(".png")
        captions = [caption(episode, "\n") for episode in episodes]
        write_whole(sheet, contact_sheet(contents, captions, SHEET_FRAMES))
        num_frames = sum(video.num_frames for video in self.videos)
        height, width = self.shape[:2]
        log.info(
            "%s: %d frames of %dx%d, %.4g per second, %.1f s",
            *(path, num_frames, width, height, self.fps, num_frames / self.fps),
        )
        log.info("%s: the same at a glance", sheet)
        return Watched(path, sheet, episodes)


def caption(episode: dict[str, float], separator: str) -> str:
    """Return, length and success of an episode."""
    parts = [f"return {episode['return']:.6g}", f"{episode['length']:.0f} steps"]
    parts += [f"success {episode['success']:g}"] if "success" in episode else []
    return separator.join(parts)


def steps_per_frame(rate: Fraction, fps: float | None) -> int:
    """Steps between two frames, so that a second has ``fps`` of them at most.

    Raises:
        UserError: there are fewer steps in a second.

    """
    if fps is not None and fps > rate:
        raise UserError(f"fps={fps:g} is above the environment's {float(rate):.4g} per second")
    return 1 if fps is None else math.ceil(rate / Fraction(fps))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height of ``640x480``.

    Raises:
        UserError: the text is something else.

    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise UserError(f"size must be WIDTHxHEIGHT, such as 640x480, got {text}")
    return int(match[1]), int(match[2])


def choose_file(folder: Path, out: str | None, name: str) -> Path:
    """Where the video goes.

    Raises:
        UserError: ``out`` is no name of a video.

    """
    if out is None:
        return folder / "videos" / f"{name}.mp4"
    if not out.endswith(".mp4") or Path(out).is_dir():
        raise UserError(f"out must be a file that ends with .mp4, got {out}")
    return Path(out)
