"""Checkpoints: always one that loads, and nothing in it is code."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from research.errors import DamagedFile, UserError
from research.training.saving import checkpoint
from research.training.saving.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

write = partial(save_checkpoint, keep_last=2, files=[])


def save(run_dir: Path, step: int, *, is_best: bool = False, size: int = 4) -> None:
    weights = {"alg": {"w": torch.full((size,), float(step))}}
    write(run_dir, step, Checkpoint(weights, {"step": step}), is_best=is_best)


def load_step(run_dir: Path, name: str) -> int:
    """The step that a checkpoint's two files agree on."""
    weights, state = load_checkpoint(run_dir / "checkpoints" / name)
    assert (weights["alg"]["w"] == state["step"]).all()
    return state["step"]


def names(run_dir: Path) -> set[str]:
    return set(os.listdir(run_dir / "checkpoints"))


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """As on a full disk: a write beyond ``num_bytes`` of a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_and_plain_values_come_back_to_the_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(2**90).bit_generator
    weights = {"bf16": torch.randn(3).bfloat16(), "nothing": torch.zeros(0, 2), "f64": torch.pi}
    state: dict[str, Any] = {"pcg64": generator.state, "score": None, "pairs": [(1, 2.5), "x"]}
    write(tmp_path, 1, Checkpoint(weights, state), is_best=False)
    loaded = load_checkpoint(tmp_path / "checkpoints" / "last")
    assert loaded.state == state
    assert generator.state["state"]["state"] > 2**64
    assert loaded.weights["bf16"].equal(weights["bf16"])
    assert loaded.weights["nothing"].shape == (0, 2)
    assert loaded.weights["f64"] == torch.pi


def test_the_last_the_best_and_the_one_before_are_kept(tmp_path: Path) -> None:
    for step, is_best in [(10, True), (20, False), (30, True), (40, False), (50, False)]:
        save(tmp_path, step, is_best=is_best)
        assert load_step(tmp_path, "last") == step
        assert load_step(tmp_path, "best") == (10 if step < 30 else 30)
    assert names(tmp_path) == {"last", "best", "0000000030", "0000000040", "0000000050"}


def test_without_a_best_there_is_none(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert names(tmp_path) == {"last", "0000000010"}


def test_what_others_put_into_the_folder_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 10)
    shutil.copytree(tmp_path / "checkpoints" / "last", tmp_path / "checkpoints" / "mine")
    (tmp_path / "checkpoints" / "notes.txt").write_text("good one")
    for step in (20, 30):
        save(tmp_path, step)
    assert load_step(tmp_path, "mine") == 10
    assert (tmp_path / "checkpoints" / "notes.txt").exists()


def test_a_run_directory_can_be_moved(tmp_path: Path) -> None:
    save(tmp_path, 10, is_best=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "checkpoints", tmp_path / "elsewhere")
    assert load_step(tmp_path / "elsewhere", "last") == 10
    assert load_step(tmp_path / "elsewhere", "best") == 10


@pytest.mark.parametrize("file", ["weights.pt", "state.pt"])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(tmp_path: Path, file: str) -> None:
    save(tmp_path, 10, is_best=True)
    before = names(tmp_path)
    large = {"x": torch.zeros(50_000)}
    full = Checkpoint(large, {}) if file == "weights.pt" else Checkpoint({}, large)
    with largest_file(100_000), pytest.raises(OSError, match="File too large"):
        write(tmp_path, 20, full, is_best=True)
    assert names(tmp_path) == before
    assert load_step(tmp_path, "last") == load_step(tmp_path, "best") == 10


def rows_files(run_dir: Path) -> set[str]:
    return set(os.listdir(run_dir / "checkpoints" / "data"))


def save_with_rows(run_dir: Path, step: int, files: list[str], **options: Any) -> None:
    """Save a checkpoint whose state refers to files that are there."""
    data = run_dir / "checkpoints" / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name in files:
        (data / name).touch()
    write(run_dir, step, Checkpoint({}, {}), files=files, **{"is_best": False, **options})


def test_data_is_kept_as_long_as_a_checkpoint_needs_it_that_is_kept(tmp_path: Path) -> None:
    """The best, when it is not among the last, is not resumed from, and needs none."""
    save_with_rows(tmp_path, 10, ["a"], is_best=True)
    save_with_rows(tmp_path, 20, ["a", "b"])
    assert rows_files(tmp_path) == {"a", "b"}
    save_with_rows(tmp_path, 30, ["b", "c"])
    save_with_rows(tmp_path, 40, ["c"])
    assert rows_files(tmp_path) == {"b", "c"}
    assert names(tmp_path) == {"last", "best", "data", *(f"00000000{n}" for n in (10, 30, 40))}
    save_with_rows(tmp_path, 50, ["d"], keep_last=1)
    assert rows_files(tmp_path) == {"d"}
    assert names(tmp_path) == {"last", "best", "data", "0000000010", "0000000050"}


def test_a_damaged_manifest_deletes_nothing_and_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step, file in [(10, "a"), (20, "b")]:
        save_with_rows(tmp_path, step, [file])
    manifest = tmp_path / "checkpoints" / "0000000020" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"b"', '"x"'))
    save_with_rows(tmp_path, 30, ["c"])
    assert rows_files(tmp_path) == {"a", "b", "c"}
    assert {"0000000010", "0000000020", "0000000030"} <= names(tmp_path)
    assert "its checksum is wrong; what it needs is unknown, so nothing is deleted" in caplog.text
    for step, file in [(40, "d"), (50, "e")]:
        save_with_rows(tmp_path, step, [file])
    assert rows_files(tmp_path) == {"d", "e"}
    assert names(tmp_path) == {"last", "data", "0000000040", "0000000050"}


def test_of_links_to_elsewhere_only_the_link_is_deleted(tmp_path: Path) -> None:
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    (elsewhere / "data" / "thesis.txt").touch()
    save_with_rows(run_dir, 10, [])
    folder = run_dir / "checkpoints"
    for name in ("0000000001", ".0000000001", "data/link"):
        (folder / name).symlink_to(elsewhere)
    for step in (20, 30):
        save_with_rows(run_dir, step, [])
    assert names(run_dir) == {"last", "data", "0000000020", "0000000030"}
    assert rows_files(run_dir) == set()
    (folder / "data").rmdir()
    (folder / "data").symlink_to(elsewhere / "data")
    save_with_rows(run_dir, 40, ["a"])
    assert rows_files(run_dir) == {"a", "thesis.txt"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged"),
        (b"\xff", "is damaged"),
        (b"[" * 10**5, "nested too deeply"),
        (b" " * 2**21, "more than"),
        (b"7", "is of version None"),
        (b'{"version": "' + b"x" * 9999 + b'"}', r"is of version 'x+\.\.\.x+'; this code"),
        (b'{"version": 1}', "names no checkpoint and files"),
        (b'{"version": 1, "best": "../best", "files": []}', "names no checkpoint and files"),
        (b'{"version": 1, "best": 7, "files": []}', "names no checkpoint and files"),
        (b'{"version": 1, "best": null, "files": [[]]}', "names no checkpoint and files"),
        (b'{"version": 1, "best": null, "files": []}', "its checksum is wrong"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    save(tmp_path, 10)
    (tmp_path / "checkpoints" / "last" / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=f"manifest.json is .*{reason.removeprefix('is ')}"):
        load_checkpoint(tmp_path / "checkpoints" / "last")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for file in ("weights.pt", "state.pt", "manifest.json"):
        save(tmp_path, 10)
        (tmp_path / "checkpoints" / "last" / file).unlink()
        os.mkfifo(tmp_path / "checkpoints" / "last" / file)
        with pytest.raises(DamagedFile, match=f"{file} is damaged.*: it is no regular file"):
            load_checkpoint(tmp_path / "checkpoints" / "last")


class Dead(BaseException):
    """The process was killed."""


@contextmanager
def death(monkeypatch: pytest.MonkeyPatch, *, after: int) -> Iterator[None]:
    """Whatever changes a folder works ``after`` times and never again."""
    left = after

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Dead
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", mortal(os.replace))
        patch.setattr(shutil, "rmtree", mortal(shutil.rmtree))
        for name in ("rename", "mkdir", "symlink_to", "unlink"):
            patch.setattr(Path, name, mortal(getattr(Path, name)))
        yield


@pytest.mark.parametrize("step", [20, 30])
def test_at_every_instant_there_is_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Also when step 20, saved before, is reached again after a resumption."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for instant in count():
        run_dir = tmp_path / str(instant)
        run_dir.mkdir()
        for saved in (10, 20):
            save(run_dir, saved, is_best=True)
        try:
            with death(monkeypatch, after=instant):
                save(run_dir, step, is_best=True)
        except Dead:
            assert load_step(run_dir, "last") in {20, step}
            assert load_step(run_dir, "best") in {20, step}
        else:
            break
        for later in (step, 40, 50):  # what was left is no obstacle, and is cleared away
            save(run_dir, later, is_best=True)
            assert load_step(run_dir, "last") == load_step(run_dir, "best") == later
        assert names(run_dir) == {"last", "best", "0000000040", "0000000050"}
    assert instant > 8


def test_best_never_points_to_a_checkpoint_that_last_does_not_know(tmp_path: Path) -> None:
    seen = []
    point = checkpoint.point
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint, "point", lambda link, name: (seen.append(link.name), point(link, name))
        )
        save(tmp_path, 10, is_best=True)
    assert seen == ["best", "last"]  # a resumed run then finds its best score again


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("file", ["weights.pt", "state.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, file: str) -> None:
    save(tmp_path, 10)
    torch.save({"step": Hostile(tmp_path / "ran")}, tmp_path / "checkpoints" / "last" / file)
    with pytest.raises(UserError, match=f"{file} is damaged or not a checkpoint: .") as caught:
        load_checkpoint(tmp_path / "checkpoints" / "last")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[bytes(content).index(torch.full((64,), 10.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, "is damaged or not a checkpoint: ."),
        (flip_a_bit_of_a_weight, "is damaged or not a checkpoint: ."),
        (lambda path: path.write_bytes(b""), "is damaged or not a checkpoint: ."),
        (lambda path: torch.save([1], path), "is not a checkpoint: it holds a list"),
        (Path.unlink, "is missing; the checkpoint is not complete"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: Any, reason: str) -> None:
    save(tmp_path, 10, size=64)
    damage(tmp_path / "checkpoints" / "last" / "weights.pt")
    with pytest.raises(UserError, match=f"weights.pt {reason}") as caught:
        load_checkpoint(tmp_path / "checkpoints" / "last")
    assert "\n" not in str(caught.value)
