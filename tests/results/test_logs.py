"""A metric is read from a run's logs, however long they are and whatever state they are in."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.errors import DamagedFile, UserError
from research.results.logs import LONG_BYTES, metrics_of, read_curve
from research.training.records.clock import Clock
from research.training.records.logger import Logger
from tests.results.made_runs import write_log


def log(folder: Path, values: list[float], group: str = "eval", name: str = "return") -> None:
    """Log these values as training does."""
    logger = Logger(folder, [])
    for step, value in enumerate(values, 1):
        logger.log(group, {name: value}, Clock(step, 2 * step, 3 * step, 0, 0.25 * step))


def write_long_log(path: Path, num_rows: int, name: str = "loss") -> None:
    """A log whose value is the square root of its step."""
    with path.open("w") as file:
        file.write(f"step,frames,updates,epoch,seconds,{name}\n")
        file.writelines(f"{step},0,0,0,0.5,{step**0.5!r}\n" for step in range(num_rows))


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_what_was_logged_is_read_to_the_bit(
    values: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    log(folder, values)
    steps = np.arange(1, len(values) + 1)
    for x, scale in {"step": 1, "frames": 2, "updates": 3, "seconds": 0.25}.items():
        curve = read_curve(folder, "eval/return", x)
        np.testing.assert_array_equal(curve.x, scale * steps)
        np.testing.assert_array_equal(curve.y, values)


def test_a_metric_that_was_logged_now_and_then(tmp_path: Path) -> None:
    log(tmp_path, [1.0, 2.0], name="q")
    logger = Logger(tmp_path, [])
    logger.log("eval", {"late": 7.0}, Clock(3, 3, 3, 0, 3.0))
    assert read_curve(tmp_path, "eval/q").x.tolist() == [1, 2]
    assert read_curve(tmp_path, "eval/late").y.tolist() == [7]
    assert metrics_of(tmp_path) == ["eval/q", "eval/late"]


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    log(tmp_path, [1.0, 2.0])
    with (tmp_path / "eval.csv").open("a") as file:
        file.write("3,6,9,0,0.75,3")
    assert read_curve(tmp_path, "eval/return").y.tolist() == [1, 2]


def test_a_log_of_a_header_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text("step,frames,updates,epoch,seconds,return\n")
    assert read_curve(tmp_path, "eval/return").x.size == 0


def test_rows_are_sorted(tmp_path: Path) -> None:
    write_log(tmp_path / "eval.csv", [{"step": step, "return": -step} for step in (3, 1, 2)])
    curve = read_curve(tmp_path, "eval/return")
    assert curve.x.tolist() == [1, 2, 3]
    assert curve.y.tolist() == [-1, -2, -3]


def test_the_last_of_several_rows_at_one_x_counts(tmp_path: Path) -> None:
    rows = [{"step": step, "epoch": step // 2, "loss": step} for step in range(5)]
    write_log(tmp_path / "train.csv", rows)
    curve = read_curve(tmp_path, "train/loss", "epoch")
    assert curve.x.tolist() == [0, 1, 2]
    assert curve.y.tolist() == [1, 3, 4]


@pytest.mark.parametrize("num_rows", [2001, 300_000])
def test_a_long_log_is_thinned_evenly_with_its_ends(tmp_path: Path, num_rows: int) -> None:
    write_long_log(tmp_path / "train.csv", num_rows)
    curve = read_curve(tmp_path, "train/loss", max_rows=500)
    assert len(curve.x) == 500
    assert (curve.x[0], curve.x[-1]) == (0, num_rows - 1)
    np.testing.assert_array_equal(curve.y, curve.x**0.5)
    gaps = np.diff(curve.x)
    assert gaps.min() > 0.5 * num_rows / 500
    assert gaps.max() < 2 * num_rows / 500


def test_a_million_rows_are_read_in_part(tmp_path: Path) -> None:
    write_long_log(tmp_path / "train.csv", 1_000_000)
    size = (tmp_path / "train.csv").stat().st_size
    before = read_bytes()
    tracemalloc.start()
    curve = read_curve(tmp_path, "train/loss")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(curve.x) == 2000
    assert peak < 4 * LONG_BYTES < size
    assert read_bytes() - before < size / 2


def read_bytes() -> int:
    """The bytes that this process has asked the system to read."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_a_long_log_may_end_in_a_row_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write_long_log(path, 100_000)
    with path.open("a") as file:
        file.write("100000,0,0,0,0.5,31")
    assert read_curve(tmp_path, "train/loss").x[-1] == 99_999


def test_a_rare_metric_of_a_long_log_is_found(tmp_path: Path) -> None:
    with (tmp_path / "train.csv").open("w") as file:
        file.write("step,frames,updates,epoch,seconds,rare\n")
        for step in range(200_000):
            file.write(f"{step},0,0,0,0.5,{step if step % 10 == 0 else ''}\n")
    curve = read_curve(tmp_path, "train/rare", max_rows=100)
    assert len(curve.x) > 90
    np.testing.assert_array_equal(curve.x, curve.y)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: str) -> None:
    write_log(tmp_path / "eval.csv", [{"step": 10, "return": 1}, {"step": 20, "return": value}])
    with pytest.raises(UserError, match=f"{tmp_path}: eval/return is {value} at step 20"):
        read_curve(tmp_path, "eval/return", "frames")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("eval/retrun", "did you mean 'eval/return'?"),
        ("return", "did you mean 'eval/return'?"),
        ("eval/step", "has not logged eval/step; it has eval/return"),
        ("../eval/return", "has not logged"),
        ("", "has not logged"),
    ],
)
def test_a_metric_that_is_not_there_is_told_with_the_nearest(
    tmp_path: Path, metric: str, words: str
) -> None:
    log(tmp_path, [1.0])
    with pytest.raises(UserError) as error:
        read_curve(tmp_path, metric)
    assert words in str(error.value)


def test_a_run_without_logs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has logged nothing yet"):
        read_curve(tmp_path, "eval/return")


def test_an_unknown_clock_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x=stpe; allowed: step, frames.*did you mean 'step'\?"):
        read_curve(tmp_path, "eval/return", "stpe")


@pytest.mark.parametrize("row", ["5,5", "5,5,5,0,0.5,x", "\0" * 20, "5,5,5,0,0.5,1,1"])
def test_a_damaged_row_is_named(tmp_path: Path, row: str) -> None:
    log(tmp_path, [1.0])
    with (tmp_path / "eval.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DamagedFile, match=r"eval.csv: a row"):
        read_curve(tmp_path, "eval/return")


def test_other_files_are_no_logs(tmp_path: Path) -> None:
    log(tmp_path, [1.0])
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    (tmp_path / "folder.csv").mkdir()
    os.symlink(tmp_path / "absent", tmp_path / "broken.csv")
    assert metrics_of(tmp_path) == ["eval/return"]
