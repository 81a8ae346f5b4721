"""Rows survive late names, resumption and full disks; TensorBoard and W&B see the same."""

import csv
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore

from research.errors import UserError
from research.training.records.clock import Clock
from research.training.records.hyperparameters import flatten
from research.training.records.logger import Logger
from research.training.records.trackers.tensorboard import TensorBoard


def clock(step: int) -> Clock:
    return Clock(step=step, frames=2 * step, updates=step - 1, epoch=0, seconds=step / 3)


def csv_logger(run_dir: Path) -> Logger:
    return Logger(run_dir, [])


def events_logger(run_dir: Path) -> Logger:
    return Logger(run_dir, [TensorBoard(run_dir)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, strict=True))


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir)).Reload()


def curve(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events(run_dir).Scalars(tag)]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """As on a full disk: a write beyond ``num_bytes`` of a file is done in part, then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_row_starts_with_the_clock_and_names_metrics_without_the_group(tmp_path: Path) -> None:
    csv_logger(tmp_path).log("train", {"q": 0.1, "critic_loss": 2.0}, clock(3))
    assert (tmp_path / "train.csv").read_text() == (
        "step,frames,updates,epoch,seconds,q,critic_loss\n3,6,2,0,1.0,0.1,2.0\n"
    )


def test_single_precision_is_written_as_the_number_it_is(tmp_path: Path) -> None:
    metrics = {"numpy": np.float32(0.1), "torch": torch.tensor(0.1)}
    csv_logger(tmp_path).log("train", metrics, clock(1))  # type: ignore[arg-type]
    (row,) = rows(tmp_path / "train.csv")
    assert row["numpy"] == row["torch"] == "0.10000000149011612"


names = st.sampled_from(["q", "loss", "a.b/c-d", "Return_2"])
metrics = st.dictionaries(names, st.floats(allow_nan=True, allow_infinity=True))


@settings(max_examples=20, deadline=None)
@given(logged=st.lists(st.tuples(metrics, st.booleans()), min_size=1, max_size=8))
def test_any_sequence_of_rows_reads_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, logged: list[tuple[dict[str, float], bool]]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    logger = csv_logger(run_dir)
    for step, (row, reopen) in enumerate(logged):
        logger = csv_logger(run_dir) if reopen else logger
        logger.log("env", row, clock(step))
    read = rows(run_dir / "env.csv")
    assert [int(row["step"]) for row in read] == list(range(len(logged)))
    for (row, _), cells in zip(logged, read, strict=True):
        assert None not in cells.values()  # a row shorter than the header
        filled = {name: cell for name, cell in cells.items() if cell and name not in Clock._fields}
        assert {name: repr(float(cell)) for name, cell in filled.items()} == {
            name: repr(value) for name, value in row.items()
        }


def test_rows_are_in_the_file_as_soon_as_logged(tmp_path: Path) -> None:
    logger = csv_logger(tmp_path)
    for step in range(3):
        logger.log("train", {"q": 1.0}, clock(step))
        assert len(rows(tmp_path / "train.csv")) == step + 1


def test_half_a_row_left_by_a_crash_is_dropped(tmp_path: Path) -> None:
    csv_logger(tmp_path).log("train", {"q": 1.0}, clock(1))
    with (tmp_path / "train.csv").open("a") as file:
        file.write("2,4,1")
    csv_logger(tmp_path).log("train", {"q": 3.0}, clock(3))
    assert [row["step"] for row in rows(tmp_path / "train.csv")] == ["1", "3"]


def test_half_a_header_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,frames,updates,epoch,seconds,q")
    logger = csv_logger(tmp_path)
    logger.rewind(-1)
    logger.log("train", {"loss": 1.0}, clock(1))
    assert [row["loss"] for row in rows(tmp_path / "train.csv")] == ["1.0"]


def test_someone_elses_csv_is_neither_continued_nor_rewound(tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text("name,value\n9,9\n")
    logger = csv_logger(tmp_path)
    logger.rewind(0)
    with pytest.raises(UserError, match=r"eval\.csv is in the way"):
        logger.log("eval", {"return": 1.0}, clock(1))
    assert (tmp_path / "eval.csv").read_text() == "name,value\n9,9\n"


@pytest.mark.parametrize("group", ["", "Train", "../train", "train.csv", "train 2"])
def test_group_that_names_no_file_is_refused(tmp_path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="a group of metrics is named"):
        csv_logger(tmp_path).log(group, {"q": 1.0}, clock(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a,b", "a\nb", 'a"b', "step", "seconds"])
def test_metric_that_names_no_column_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a metric of 'train' is named"):
        csv_logger(tmp_path).log("train", {name: 1.0}, clock(1))
    assert not list(tmp_path.iterdir())


def test_rewind_drops_later_rows_of_every_group(tmp_path: Path) -> None:
    logger = csv_logger(tmp_path)
    for step in (1, 2, 3):
        logger.log("train", {"q": 1.0}, clock(step))
    logger.log("eval", {"return": 1.0}, clock(3))
    resumed = csv_logger(tmp_path)
    resumed.rewind(2)
    resumed.log("train", {"q": 2.0, "new": 1.0}, clock(3))
    assert [(row["step"], row["q"]) for row in rows(tmp_path / "train.csv")] == [
        ("1", "1.0"),
        ("2", "1.0"),
        ("3", "2.0"),
    ]
    assert rows(tmp_path / "eval.csv") == []


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\0" * 40 + b"\n", b"\xff\xfe,\n4,", b"3,\0,\n"])
def test_rewind_drops_what_a_power_cut_left_of_later_rows(tmp_path: Path, damage: bytes) -> None:
    logger = csv_logger(tmp_path)
    for step in (1, 2):
        logger.log("train", {"q": 1.0, "loss": float("nan")}, clock(step))
    with (tmp_path / "train.csv").open("ab") as file:
        file.write(damage)
    resumed = csv_logger(tmp_path)
    resumed.rewind(2)
    resumed.log("train", {"q": -1e-9, "loss": float("inf")}, clock(3))
    resumed.rewind(3)
    assert [row["step"] for row in rows(tmp_path / "train.csv")] == ["1", "2", "3"]


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that went to the disk, with their sizes where files."""
    names: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        names.append(f"{path.name} {path.stat().st_size}" if path.is_file() else path.name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return names


def test_flush_brings_every_row_and_event_to_the_disk(tmp_path: Path, flushed: list[str]) -> None:
    logger = events_logger(tmp_path)
    for step in (1, 2):
        logger.log("train", {"q": 1.0}, clock(step))
    logger.log("eval", {"return": 1.0}, clock(2))
    flushed.clear()
    logger.flush()
    paths = [*tmp_path.glob("events.*"), tmp_path / "train.csv", tmp_path / "eval.csv"]
    files = {f"{path.name} {path.stat().st_size}" for path in paths}
    assert len(files) == 3
    assert set(flushed) == files | {tmp_path.name}


def test_flush_touches_nothing_but_what_grew_since_the_last(
    tmp_path: Path, flushed: list[str]
) -> None:
    logger = csv_logger(tmp_path)
    logger.log("train", {"q": 1.0}, clock(1))
    logger.log("eval", {"return": 1.0}, clock(1))
    logger.flush()
    flushed.clear()
    logger.flush()
    assert flushed == []
    logger.log("eval", {"return": 1.0}, clock(2))
    logger.flush()
    assert {name.split()[0] for name in flushed} == {"eval.csv", tmp_path.name}


def test_end_of_a_run_is_on_the_disk(tmp_path: Path, flushed: list[str]) -> None:
    logger = events_logger(tmp_path)
    logger.finish({"lr": 0.1}, {"best/score": 1.0})
    (path,) = tmp_path.glob("events.*")
    assert f"{path.name} {path.stat().st_size}" in flushed


def test_full_disk_raises_and_keeps_every_complete_row(tmp_path: Path) -> None:
    logger = csv_logger(tmp_path)
    logger.log("train", {"q": 1.0}, clock(1))
    before = (tmp_path / "train.csv").read_text()
    with largest_file(len(before) + 5), pytest.raises(OSError, match="too large"):
        logger.log("train", {"q": 2.0}, clock(2))
    assert (tmp_path / "train.csv").read_text() == before
    with largest_file(len(before) + 5), pytest.raises(OSError, match="too large"):
        logger.log("train", {"a_late_name": 2.0}, clock(2))
    assert (tmp_path / "train.csv").read_text() == before
    logger.log("train", {"q": 3.0}, clock(3))
    assert [row["q"] for row in rows(tmp_path / "train.csv")] == ["1.0", "3.0"]


def test_full_disk_leaves_tensorboard_its_complete_points(tmp_path: Path) -> None:
    logger = events_logger(tmp_path)
    logger.log("train", {"q": 1.0}, clock(1))
    (path,) = tmp_path.glob("events.*")
    with largest_file(path.stat().st_size + 9), pytest.raises(OSError, match="too large"):
        logger.log("train", {"q": 2.0}, clock(2))
    logger.log("train", {"q": 3.0}, clock(3))
    assert curve(tmp_path, "train/q") == [(1, 1.0), (3, 3.0)]


def test_tensorboard_has_each_metric_over_steps(tmp_path: Path) -> None:
    logger = events_logger(tmp_path)
    logger.log("train", {"q": 0.5, "loss": 2.0}, clock(1))
    logger.log("eval", {"q": 7.0}, clock(2))
    assert set(events(tmp_path).Tags()["scalars"]) == {"train/q", "train/loss", "eval/q"}
    assert curve(tmp_path, "train/q") == [(1, 0.5)]
    assert curve(tmp_path, "eval/q") == [(2, 7.0)]


def test_tensorboard_forgets_what_a_resumed_run_redoes(tmp_path: Path) -> None:
    logger = events_logger(tmp_path)
    for step in (1, 2, 3, 4):
        logger.log("train", {"q": 1.0}, clock(step))
    logger.rewind(2)
    logger.log("train", {"q": 2.0}, clock(3))
    assert curve(tmp_path, "train/q") == [(1, 1.0), (2, 1.0), (3, 2.0)]
    again = events_logger(tmp_path)
    again.rewind(1)
    again.log("train", {"q": 3.0}, clock(2))
    assert curve(tmp_path, "train/q") == [(1, 1.0), (2, 3.0)]


def test_reopened_run_continues_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(12):
        # Files are read by name, which holds the second and the process.
        monkeypatch.setattr(os, "getpid", lambda: 1000 - step)  # noqa: B023
        events_logger(tmp_path).log("train", {"q": float(step)}, clock(step))
    assert curve(tmp_path, "train/q") == [(step, float(step)) for step in range(12)]
    assert [row["q"] for row in rows(tmp_path / "train.csv")] == [f"{i}.0" for i in range(12)]


def test_hyperparameters_and_final_metrics_are_in_the_runs_own_event_file(tmp_path: Path) -> None:
    logger = events_logger(tmp_path)
    logger.log("train", {"q": 1.0}, clock(5))
    hyperparameters = {"alg": {"lr": 0.1, "name": "td3", "nest": {"flag": True}}, "dims": [1, 2]}
    logger.finish(hyperparameters, {"best/score": 9.0})
    assert len(list(tmp_path.rglob("events.*"))) == 1
    content = events(tmp_path).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    values = start.session_start_info.hparams
    assert set(values) == {"alg.lr", "alg.name", "alg.nest.flag", "dims"}
    assert values["alg.lr"].number_value == 0.1
    assert values["alg.name"].string_value == "td3"
    assert values["alg.nest.flag"].bool_value is True
    assert values["dims"].string_value == "[1, 2]"
    end = HParamsPluginData.FromString(content["_hparams_/session_end_info"])
    assert end.session_end_info.status == 1
    assert curve(tmp_path, "best/score") == [(5, 9.0)]


def test_flat_hyperparameters_are_text_unless_finite_numbers_or_bools() -> None:
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": float("inf"), "f": (1,), "g": False, "h": "x"}
    assert flatten(nested) == {
        "a.b.c": 1,
        "a.d": "None",
        "e": "inf",
        "f": "(1,)",
        "g": False,
        "h": "x",
    }


def test_nothing_heavy_is_imported_before_the_first_row(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from research.training.records.logger import Logger\n"
        "from research.training.records.trackers.tensorboard import TensorBoard\n"
        f"run_dir = Path({str(tmp_path)!r})\n"
        "Logger(run_dir, [TensorBoard(run_dir)])\n"
        "assert not {'torch', 'tensorboard', 'wandb', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
