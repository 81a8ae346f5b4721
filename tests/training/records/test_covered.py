"""A tracker that cannot remove points gets each exactly once, whenever the run is killed."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.training.records.clock import Clock
from research.training.records.covered import Covered
from research.training.records.logger import Logger
from research.training.records.table import read_points
from research.training.records.trackers.base import NOWHERE, AppendOnly, Position

Points = list[tuple[Clock, dict[str, float]]]


class Remote(AppendOnly):
    """Keeps the points of all attempts in ``points``; it can be unreachable."""

    errors = (ConnectionError,)

    def __init__(self, points: Points) -> None:
        self.points = points
        self.is_reachable = True
        self.final: dict[str, float] = {}
        self.videos: list[tuple[int, str, Path]] = []

    def start(self, hyperparameters: Mapping[str, object]) -> Position:
        return max((Position(c.step, c.seconds) for c, _ in self.points), default=NOWHERE)

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        if not self.is_reachable:
            raise ConnectionError("no route to host")
        self.points.append((clock, dict(scalars)))

    def log_video(self, name: str, path: Path, clock: Clock) -> None:
        self.videos.append((clock.step, name, path))

    def finish(self, metrics: Mapping[str, float]) -> None:
        self.final = dict(metrics)

    def close(self) -> None: ...


def clock(step: int, seconds: float) -> Clock:
    return Clock(step=step, frames=step, updates=step, epoch=0, seconds=seconds)


def attempt(run_dir: Path, points: Points, begin: int, end: int, start_s: float) -> Logger:
    """What an attempt logs after the checkpoint at ``begin``; evaluations are at multiples of 3."""
    logger = Logger(run_dir, [Covered(Remote(points), run_dir)])
    logger.rewind(begin)
    logger.start({})
    for step in range(max(begin, 0), end + 1):
        if step > begin:
            logger.log("train", {"q": step / 7}, clock(step, start_s + step))
            logger.log("time", {"update": 0.5}, clock(step, start_s + step))
        if step % 3 == 0 and (step > begin or not evaluated(run_dir, step)):
            logger.log("eval", {"return": step / 3}, clock(step, start_s + step + 0.25))
    return logger


def evaluated(run_dir: Path, step: int) -> bool:
    return any(c.step == step and "eval/return" in row for c, row in read_points(run_dir))


attempts = st.tuples(st.integers(0, 9), st.integers(-1, 9), st.booleans(), st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(kills=st.lists(attempts, max_size=4))
@example(kills=[(6, 6, False, 0), (6, 6, True, 3)])
def test_each_point_arrives_once(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int, bool, int]]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    points: Points = []
    saved = -1
    for number, (steps, checkpoint, is_told, lost) in enumerate(kills):
        reached = min(saved + steps, 20)
        save = saved + min(max(checkpoint, 0), reached - saved)
        logger = attempt(run_dir, points, saved, save, 0.01 * number)
        if save > saved and is_told:
            logger.cover()
        saved = save
        tail = Logger(run_dir, [])  # what the kill leaves after the checkpoint
        for step in range(saved + 1, reached + 1):
            tail.log("train", {"q": step / 7}, clock(step, step + 0.001))
        del points[len(points) - min(lost, len(points)) :]  # it had not reached the tracker's disk
    logger = attempt(run_dir, points, saved, 20, 0.5)
    logger.finish({}, {"best/score": 1.0})
    assert points == read_points(run_dir)
    assert [row["train/q"] for _, row in points if "train/q" in row] == [s / 7 for s in range(21)]
    assert [row["eval/return"] for _, row in points if "eval/return" in row] == list(range(7))


def test_nothing_is_sent_that_a_resumed_run_would_repeat(tmp_path: Path) -> None:
    points: Points = []
    logger = attempt(tmp_path, points, -1, 5, 0.0)
    assert points == []
    logger.cover()
    assert [c.step for c, _ in points] == [0, 0, 1, 2, 3, 3, 4, 5]


def test_a_run_that_goes_back_to_an_older_checkpoint_repeats_no_point(tmp_path: Path) -> None:
    points: Points = []
    attempt(tmp_path, points, -1, 6, 0.0).cover()
    before = list(points)
    attempt(tmp_path, points, 3, 9, 0.125).cover()  # that of step 6 is damaged
    assert points[: len(before)] == before
    assert [c.step for c, _ in points[len(before) :]] == [7, 8, 9, 9]


def test_a_tracker_that_is_added_later_gets_everything(tmp_path: Path) -> None:
    points: Points = []
    attempt(tmp_path, [], -1, 6, 0.0).cover()
    attempt(tmp_path, points, 6, 6, 0.0)
    assert points == read_points(tmp_path)
    assert len(points) == 10


def test_numbers_that_are_not_finite_and_late_columns_are_read_back(tmp_path: Path) -> None:
    logger = Logger(tmp_path, [])
    logger.log("train", {"q": math.nan}, clock(1, 0.1))
    logger.log("train", {"loss": -math.inf}, clock(2, 0.2))
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    (_, first), (_, second) = read_points(tmp_path)
    assert math.isnan(first.pop("train/q"))
    assert (first, second) == ({}, {"train/loss": -math.inf})


def test_points_wait_while_the_tracker_cannot_be_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote([])
    logger = Logger(tmp_path, [Covered(remote, tmp_path)])
    remote.is_reachable = False
    logger.log("train", {"q": 1.0}, clock(3, 1.0))
    with caplog.at_level(logging.WARNING):
        logger.cover()
    assert "Remote did not take the points from step 3 on: no route to host" in caplog.text
    with pytest.raises(UserError, match=r"from step 3 on: no route.*type the command again"):
        logger.finish({}, {})
    remote.is_reachable = True
    logger.finish({}, {"best/score": 2.0})
    assert remote.points == [(clock(3, 1.0), {"train/q": 1.0})]
    assert remote.final == {"best/score": 2.0}


def test_a_video_waits_too(tmp_path: Path) -> None:
    remote = Remote([])
    covered = Covered(remote, tmp_path)
    covered.log_video("eval/video", tmp_path / "3.mp4", b"gif", clock(3, 1.0))
    covered.log_video("eval/video", tmp_path / "4.mp4", b"gif", clock(4, 2.0))
    covered.rewind(3)
    assert remote.videos == []
    covered.cover()
    assert remote.videos == [(3, "eval/video", tmp_path / "3.mp4")]
