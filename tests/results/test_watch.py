"""What is watched is what is evaluated, in a video that plays anywhere."""

import io
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from PIL import Image

from research.envs import dm_control
from research.errors import UserError
from research.results.arguments import parse
from research.results.evaluate import EvaluationOptions, evaluate_run
from research.results.load import load
from research.results.watch import WatchOptions, watch
from research.training.seed import derive_seed
from research.watch import main
from tests.results.small_runs import EXAMPLES, PENDULUM, RL, train_each

RUNS = {
    "two": [*PENDULUM, "env.num_envs=2", "env.subprocesses=true"],
    "cheetah": [
        *("alg=td3", "env=cheetah", "env.action_repeat=4", "env.max_episode_steps=40", *RL),
        *("env.height=48", "env.width=65", "trainer.evaluation.episodes=1"),
    ],
    "native": ["alg=dqn", "env=native", "env.id=CartPole-v1", "env.num_envs=3", *RL],
    "digits": ["alg=classification", "dataset=digits", *EXAMPLES],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of several kinds."""
    return train_each(tmp_path_factory.mktemp("runs"), RUNS)


def look(path: Path) -> tuple[int, tuple[int, int], Fraction | None, str]:
    """Number of frames, size, frames per second, and pixel format of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        size = stream.width, stream.height
        return stream.frames, size, stream.average_rate, str(stream.pix_fmt)


@pytest.mark.parametrize(
    ("name", "size", "fps"),
    [("two", (500, 500), 30), ("cheetah", (66, 48), 25), ("native", (600, 400), 50)],
)
def test_the_episodes_are_those_of_an_evaluation(
    runs: Path, tmp_path: Path, name: str, size: tuple[int, int], fps: int
) -> None:
    torch.set_num_threads(1)
    out = str(tmp_path / "new" / "a.mp4")
    watched = watch(runs / name, WatchOptions(episodes=2, seed=4, out=out))
    evaluated = evaluate_run(runs / name, EvaluationOptions(episodes=2, seed=4))
    assert watched.episodes == evaluated.results["episodes"]
    steps = sum(int(episode["length"]) for episode in watched.episodes)
    assert look(watched.video) == (steps + 2, size, fps, "yuv420p")


def test_the_frames_show_the_actions_of_the_policy(runs: Path, tmp_path: Path) -> None:
    """By another way: the policy is asked, and gymnasium's own environment rendered."""
    torch.set_num_threads(1)
    policy = load(runs / "two")
    watched = watch(runs / "two", WatchOptions(episodes=1, out=str(tmp_path / "a.mp4")))
    with av.open(str(watched.video)) as container:
        shown = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    env = gymnasium.make("Pendulum-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=derive_seed(0, "evaluation", policy.step, 0))
    for index, frame in enumerate(shown):
        expected = np.asarray(env.render(), float)
        assert np.abs(frame - expected).mean() < 2, index
        obs = env.step(policy(obs))[0]


def test_a_video_lies_in_the_run_with_a_picture_of_a_row_for_each_episode(
    runs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs / "two", tmp_path / "run", symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    watched = watch(run, WatchOptions(seed=7, checkpoint="last"))
    assert watched.video == run / "videos" / "60-seed7.mp4"
    assert watched.sheet == run / "videos" / "60-seed7.png"
    with Image.open(watched.sheet) as sheet:
        picture = np.asarray(sheet)
    heights = np.flatnonzero((picture[:, 150] == 255).all(axis=-1))  # white, between grey gaps
    assert 1 + np.count_nonzero(np.diff(heights) > 1) == 3
    assert picture.shape[1] == 140 + 8 * 164
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    ("words", "size", "fps", "frames"),
    [
        (["fps=7"], (500, 500), 6, 7),
        (["fps=30", "size=101x50"], (102, 50), 30, 31),
        (["env.max_episode_steps=4"], (500, 500), 30, 5),
    ],
)
def test_size_and_speed_on_request(
    runs: Path, tmp_path: Path, words: list[str], size: tuple[int, int], fps: int, frames: int
) -> None:
    words = [str(runs / "two"), "episodes=1", f"out={tmp_path / 'a.mp4'}", *words]
    (folder,), options = parse(words, WatchOptions)
    assert look(watch(folder, options).video) == (frames, size, fps, "yuv420p")


def test_dm_control_is_rendered_in_the_size_and_by_the_camera(runs: Path, tmp_path: Path) -> None:
    pictures = []
    for camera in (0, 1):
        options = WatchOptions(
            episodes=1, size="96x64", env={"camera_id": camera}, out=str(tmp_path / f"{camera}.mp4")
        )
        watched = watch(runs / "cheetah", options)
        assert look(watched.video)[1] == (96, 64)
        pictures.append(np.asarray(Image.open(watched.sheet)))
    assert not np.array_equal(*pictures)


def fail(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line by which the command ends."""
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("digits", [], "has no environment to watch; python -m research.evaluate"),
        ("two", ["size=big"], "size must be WIDTHxHEIGHT, such as 640x480, got big"),
        ("two", ["fps=31"], "fps=31 is above the environment's 30 per second"),
        ("two", ["out=a.avi"], "out must be a file that ends with .mp4, got a.avi"),
        ("two", ["other"], "one run at a time, got "),
        ("two", ["episode=3"], "episode is not an option"),
        ("absent", [], "does not exist"),
    ],
)
def test_what_cannot_be_watched_is_told_in_one_line(
    runs: Path, name: str, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in fail(str(runs / name), *words, capsys=capsys)


def test_a_missing_package_or_checkpoint_is_told_in_one_line(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(runs / "two", tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "checkpoints")
    assert "has no best checkpoint yet" in fail(str(run), capsys=capsys)
    monkeypatch.setitem(sys.modules, "pygame", None)
    line = fail(str(runs / "native"), capsys=capsys)
    assert "pip install -e '.[results]'" in line
    monkeypatch.setitem(sys.modules, "av", None)
    assert "needs the package av: pip install -e '.[results]'" in fail(str(run), capsys=capsys)


class Blind(PendulumEnv):
    """A pendulum that cannot be rendered."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)

    def render(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (Blind, "Blind-v0 cannot be rendered"),
        (lambda: Blind(), "env cannot be rendered: env: kwargs must suit 'Blind-v0'"),
    ],
)
def test_an_environment_that_cannot_be_rendered_is_told_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, line: str
) -> None:
    gymnasium.register("Blind-v0", entry_point=make)
    run = shutil.copytree(runs / "two", tmp_path / "run", symlinks=True)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("Pendulum-v1", "Blind-v0"))
    told = fail(str(run), capsys=capsys)
    assert line in told
    assert "environment creator" not in told  # gymnasium's own words around the error
    assert not (run / "videos").exists()


def test_no_renderer_is_told_in_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def render_frame(self: object, height: int, width: int) -> None:
        raise UserError("cannot render by egl (no library) or osmesa (none); apt-get install ...")

    monkeypatch.setattr(dm_control.DMControl, "render_frame", render_frame)
    assert "cannot render by egl" in fail(str(runs / "cheetah"), capsys=capsys)


def test_it_is_said_how_far_it_is_where_there_is_no_terminal(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("research.results.watch.TELL_S", 0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    watch(runs / "two", WatchOptions(episodes=1, out=str(tmp_path / "a.mp4")))
    assert "20 frames" in caplog.messages
    assert "episode 0: return" in caplog.text
