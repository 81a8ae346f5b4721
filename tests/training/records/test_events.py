"""A resumed run's event files hold what an uninterrupted run's do, whatever the crash left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from research.training.records.clock import Clock
from research.training.records.events import event_record, scalar_values
from research.training.records.logger import Logger
from research.training.records.trackers.tensorboard import TensorBoard


def clock(step: int) -> Clock:
    return Clock(step=step, frames=step, updates=step, epoch=0, seconds=0.0)


def log(logger: Logger, steps: range) -> None:
    for step in steps:
        logger.log("train", {"q": step / 7, "loss": -float(step)}, clock(step))
        if step % 3 == 0:
            logger.log("eval", {"return": step / 3}, clock(step))


def logged(run_dir: Path, steps: range) -> Path:
    """The event file of a new logger that logged ``steps``."""
    before = set(run_dir.iterdir())
    log(Logger(run_dir, [TensorBoard(run_dir)]), steps)
    (path,) = (path for path in run_dir.glob("events.*") if path not in before)
    return path


def resumed(run_dir: Path, step: int) -> Logger:
    logger = Logger(run_dir, [TensorBoard(run_dir)])
    logger.rewind(step)
    return logger


def shown(page: EventAccumulator) -> list[int]:
    """The steps of a curve, as TensorBoard shows it after a look at the files."""
    return [point.step for point in page.Reload().Scalars("train/q")]


def points(run_dir: Path) -> list[tuple[str, int, float]]:
    """Every tag, step and value in the event files, in TensorBoard's order, nothing purged."""
    return [
        (value.tag, event.step, value.tensor.float_val[0] if value.tensor.float_val else 0.0)
        for path in sorted(run_dir.glob("events.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


@settings(max_examples=15, deadline=None)
@given(attempts=st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 12)), max_size=4))
@example(attempts=[(12, 12), (12, 12)])
@example(attempts=[(10, 8), (9, 3), (7, -1)])
def test_files_of_a_resumed_run_hold_what_an_uninterrupted_ones_do(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]]
) -> None:
    whole, interrupted = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("interrupted")
    reached = -1
    for end, checkpoint in attempts:
        logger = resumed(interrupted, reached)
        log(logger, range(reached + 1, end + 1))
        if end == 12:
            logger.finish({"lr": 0.1}, {"best/score": 1.0, "last/score": 2.0})
        reached = min(checkpoint, max(end, reached))
    for run_dir, start in ((whole, -1), (interrupted, reached)):
        logger = resumed(run_dir, start)
        log(logger, range(start + 1, 15))
        logger.finish({"lr": 0.1}, {"best/score": 3.0, "last/score": 4.0})
    assert sorted(points(interrupted)) == sorted(points(whole))
    assert shown(EventAccumulator(str(interrupted))) == list(range(15))


def test_extended_run_ends_once(tmp_path: Path) -> None:
    logger = resumed(tmp_path, -1)
    log(logger, range(4))
    before = points(tmp_path)
    logger.finish({"lr": 0.1}, {"best/score": 9.0, "any name": 1.0})
    assert len(points(tmp_path)) == len(before) + 4
    resumed(tmp_path, 3)
    assert points(tmp_path) == before


@pytest.mark.parametrize("tail", [b"", b"\0" * 50, b"garbage" * 10], ids=["torn", "zeros", "noise"])
def test_damaged_tail_is_cut_off_wherever_it_starts(tmp_path: Path, tail: bytes) -> None:
    path = logged(tmp_path, range(2))
    sound, before = path.read_bytes(), points(tmp_path)
    record = event_record(1, {"summary": {"value": scalar_values({"train/q": 1.0})}})
    for length in range(len(record)):
        path.write_bytes(sound + record[:length] + tail)
        resumed(tmp_path, 1)
        assert path.read_bytes() == sound
    assert points(tmp_path) == before


def test_damage_inside_a_record_costs_that_record_alone(tmp_path: Path) -> None:
    path = logged(tmp_path, range(1, 3))
    content = path.read_bytes()
    place = content.index(b"train/q")
    path.write_bytes(content[:place] + b"T" + content[place + 1 :])
    resumed(tmp_path, 2)
    assert {step for _, step, _ in points(tmp_path)} == {2}
    assert len(path.read_bytes()) < len(content)


def test_file_without_later_events_is_not_written_again(tmp_path: Path) -> None:
    path = logged(tmp_path, range(3))
    inode = path.stat().st_ino
    resumed(tmp_path, 2)
    assert path.stat().st_ino == inode


FOREIGN = {
    "empty": b"",
    "noise": b"not events at all",
    "zeros": b"\0" * 100,
    "other records": event_record(9, {"summary": {"value": scalar_values({"q": 1.0})}}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("name", ["1700000000.host.1", "notes", "5"])
def test_file_that_is_named_like_events_but_holds_none_is_left_alone(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / f"events.out.tfevents.{name}"
    path.write_bytes(content)
    (tmp_path / "events.out.tfevents.folder").mkdir()
    log(resumed(tmp_path, 0), range(1, 3))
    assert path.read_bytes() == content


def test_files_are_cut_even_when_nothing_more_goes_to_tensorboard(tmp_path: Path) -> None:
    logged(tmp_path, range(4))
    Logger(tmp_path, []).rewind(1)
    assert {step for _, step, _ in points(tmp_path)} == {0, 1}


def test_rewind_without_event_files_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from research.training.records.logger import Logger\n"
        "from research.training.records.trackers.tensorboard import TensorBoard\n"
        f"run_dir = Path({str(tmp_path)!r})\n"
        "Logger(run_dir, [TensorBoard(run_dir)]).rewind(3)\n"
        "assert not {'torch', 'tensorboard', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_open_tensorboard_forgets_what_is_redone_and_nothing_else(tmp_path: Path) -> None:
    log(resumed(tmp_path, -1), range(6))
    page = EventAccumulator(str(tmp_path))
    assert shown(page) == list(range(6))
    for reached, end in ((3, 5), (-1, 2), (1, 9)):
        log(resumed(tmp_path, reached), range(reached + 1, end))
        assert shown(page) == list(range(end))


def test_files_sort_by_their_making_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for attempt, now in enumerate((1_800_000_000.5, 1_700_000_000.5, 5.0, 1_800_000_001.5)):
        monkeypatch.setattr(time, "time", lambda: now)  # noqa: B023
        monkeypatch.setattr(os, "getpid", lambda: 1000 - attempt)  # noqa: B023
        paths.append(logged(tmp_path, range(attempt, attempt + 1)))
    assert paths == sorted(paths)
    assert [step for tag, step, _ in points(tmp_path) if tag == "train/q"] == [0, 1, 2, 3]


def texts(run_dir: Path) -> list[tuple[int, str]]:
    """The steps and texts of the config, as TensorBoard shows it."""
    page = EventAccumulator(str(run_dir)).Reload()
    return [
        (each.step, each.tensor_proto.string_val[0].decode()) for each in page.Tensors("config")
    ]


def test_the_config_is_shown_once_and_again_where_it_has_changed(tmp_path: Path) -> None:
    for reached, tau in ((-1, 0.1), (3, 0.1), (5, 0.2), (4, 0.2)):
        logger = resumed(tmp_path, reached)
        logger.start({"alg": {"tau": tau}})
        log(logger, range(reached + 1, reached + 5))
    shown = texts(tmp_path)
    assert [step for step, _ in shown] == [0, 4]
    assert [text.strip("`") for _, text in shown] == [
        "yaml\nalg:\n  tau: 0.1\n",
        "yaml\nalg:\n  tau: 0.2\n",
    ]


def test_a_gif_is_an_image_at_its_step(tmp_path: Path) -> None:
    gif = b"GIF89a\x04\x00\x02\x00"
    (tracker,) = resumed(tmp_path, -1).trackers
    tracker.log_video("eval/video", tmp_path / "3.mp4", gif, clock(3))
    (image,) = EventAccumulator(str(tmp_path)).Reload().Images("eval/video")
    assert (image.step, image.encoded_image_string) == (3, gif)
