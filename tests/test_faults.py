"""Faults of disks, clocks and people: one clear line, nothing lost, and the same end afterwards."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.errors import UserError, override
from research.training.saving.checkpoint import load_checkpoint
from research.training.trainer import Trainer
from tests import commands, test_app
from tests.datasets.examples import test_images
from tests.test_app import SMALL, Cli, rows
from tests.training import test_resume
from tests.training.test_resume import assert_same_end, interrupt, make_online

cli = test_app.cli

RUN = ("trainer.total_steps=100", "env.action_repeat=5")
"""A pendulum's run, with episodes of 40 steps."""


def stop_at(number: int, folder: Path, overrides: tuple[str, ...]) -> None:
    """Run the command, which is told to end while it makes the update of a step."""
    learn = Trainer.learn

    def learn_and_be_told(self: Trainer, step: int) -> None:
        learn(self, step)
        if step == number:
            signal.raise_signal(signal.SIGTERM)

    Trainer.learn = learn_and_be_told
    commands.run(folder, overrides)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 70 of 100, with checkpoints of steps 60 and 70."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    process = commands.start(stop_at, 70, folder, (*SMALL, *RUN))
    process.join()
    assert process.exitcode == 75, folder.with_suffix(".txt").read_text()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of the same run when nothing stops it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = commands.train(folder, *SMALL, *RUN)
    process.join()
    assert process.exitcode == 0, folder.with_suffix(".txt").read_text()
    return end_of(folder)


@pytest.fixture
def run_dir(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return shutil.copytree(stopped, tmp_path / "run", symlinks=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 16 MB large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)):
        pytest.skip("mounting needs root, and a container that may")
    try:
        yield folder
    finally:
        while os.path.ismount(folder):
            subprocess.run(["umount", "--recursive", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> bool:
    """Mount, and tell whether that worked."""
    return subprocess.run(["mount", *arguments], stderr=subprocess.DEVNULL).returncode == 0


def end_of(folder: Path) -> dict[str, Any]:
    """All that a run leaves but the times: rows, hashes of weights, and the state it ended in."""
    checkpoints = folder / "checkpoints"
    state = load_checkpoint(checkpoints / "last").state
    del state["seconds"], state["dataset"]["journal"], state["dataset"]["files"]
    hashes = {
        name: hashlib.sha256((checkpoints / name / "weights.pt").read_bytes()).hexdigest()
        for name in ("last", "best")
    }
    return {
        **{group: rows(folder / f"{group}.csv") for group in ("train", "env", "eval")},
        **hashes,
        "state": state,
    }


def contents(folder: Path) -> dict[str, Any]:
    """Every file and link of a run but those that note each attempt."""
    noted = {"status.json", "provenance.json", "train.log", ".lock", "hydra.yaml"}
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name not in noted and (path.is_symlink() or path.is_file())
    }


def only_line(err: str) -> str:
    """The one line of ``err``."""
    (line,) = err.splitlines()
    return line


def at_step(
    monkeypatch: pytest.MonkeyPatch, number: int, happen: Callable[[Trainer], object]
) -> None:
    """Let something happen while the update of a step is made, once."""
    learn = Trainer.learn

    def learn_and_happen(trainer: Trainer, step: int) -> None:
        learn(trainer, step)
        if step == number:
            monkeypatch.setattr(Trainer, "learn", learn)
            happen(trainer)

    monkeypatch.setattr(Trainer, "learn", learn_and_happen)


# Disks


@pytest.mark.parametrize("left_kb", [0, 4, 12, 24, 60])
def test_a_run_whose_disk_filled_up_ends_the_same_when_there_is_room_again(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, disk: Path, whole: dict[str, Any], left_kb: int
) -> None:
    """By a log row, the rows of the replay buffer, the weights, the state, or the next of these."""

    def fill(_: Trainer) -> None:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "of another").write_bytes(bytes(free - 1024 * left_kb))

    at_step(monkeypatch, 45, fill)
    outcome = cli(*RUN, f"hydra.run.dir={disk / 'run'}")
    assert outcome.status == 1
    line = only_line(outcome.err)
    assert str(disk / "run") in line
    assert line.endswith("No space left on device")
    status = json.loads((disk / "run" / "status.json").read_text())
    assert (status["state"], "No space left" in status["exit_reason"]) == ("failed", True)
    assert load_checkpoint(disk / "run" / "checkpoints" / "last").state["step"] in {40, 60}
    assert mount("-o", "remount,size=64m", str(disk))
    assert cli(*RUN, f"hydra.run.dir={disk / 'run'}").status == 0
    assert_same_end(end_of(disk / "run"), whole)


def test_checkpoints_that_became_read_only_stop_a_run_that_goes_on_when_they_are_not(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, disk: Path, whole: dict[str, Any]
) -> None:
    """Not the whole directory: the log is open, and that keeps it writable."""
    folder = disk / "checkpoints"

    def protect(_: Trainer) -> None:
        assert mount("--bind", str(folder), str(folder))
        assert mount("-o", "remount,bind,ro", str(folder))

    at_step(monkeypatch, 45, protect)
    outcome = cli(*RUN, f"hydra.run.dir={disk}")
    assert outcome.status == 1
    assert str(folder) in only_line(outcome.err)
    assert only_line(outcome.err).endswith("Read-only file system")
    status = json.loads((disk / "status.json").read_text())
    assert (status["state"], "Read-only" in status["exit_reason"]) == ("failed", True)
    subprocess.run(["umount", str(folder)], check=True)
    assert cli(*RUN, f"hydra.run.dir={disk}").status == 0
    assert_same_end(end_of(disk), whole)


def test_a_run_directory_that_is_read_only_is_left_and_gone_on_with_later(
    cli: Cli, disk: Path, stopped: Path, whole: dict[str, Any]
) -> None:
    shutil.copytree(stopped, disk / "run", symlinks=True)
    before = contents(disk)
    assert mount("-o", "remount,ro", str(disk))
    outcome = cli(*RUN, f"hydra.run.dir={disk / 'run'}")
    assert outcome.status == 1
    assert str(disk / "run") in only_line(outcome.err)
    assert "Read-only file system" in outcome.err
    assert contents(disk) == before
    assert mount("-o", "remount,rw", str(disk))
    assert cli(*RUN, f"hydra.run.dir={disk / 'run'}").status == 0
    assert_same_end(end_of(disk / "run"), whole)


# Clocks and other processes


def test_clocks_that_were_set_back_leave_the_logs_in_order(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, run_dir: Path, whole: dict[str, Any]
) -> None:
    """The time of day, and that since the machine started, which is small on another."""
    now, since = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: now() - 10**8)
    monkeypatch.setattr(time, "monotonic", lambda: since() - 10**6)
    assert cli(*RUN, f"hydra.run.dir={run_dir}").status == 0
    monkeypatch.undo()
    assert_same_end(end_of(run_dir), whole)
    lines = (run_dir / "train.csv").read_text().splitlines()
    seconds = [float(line.split(",")[4]) for line in lines[1:]]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    points = EventAccumulator(str(run_dir)).Reload().Scalars("eval/return")
    assert [point.step for point in points] == [30, 60, 90, 100]


def test_of_two_processes_started_at_once_one_trains_and_the_other_is_refused(
    run_dir: Path, whole: dict[str, Any]
) -> None:
    attempt = json.loads((run_dir / "status.json").read_text())["attempt"]
    processes = [commands.train(run_dir, *SMALL, *RUN) for _ in range(2)]
    status: dict[str, Any] = {}
    while status.get("attempt") != attempt + 1:
        assert any(process.is_alive() for process in processes)
        status = json.loads((run_dir / "status.json").read_text())
    first, second = sorted(processes, key=lambda process: process.pid != status["pid"])
    os.kill(status["pid"], signal.SIGSTOP)  # it is too quick for the other to be refused
    second.join()
    os.kill(status["pid"], signal.SIGCONT)
    first.join()
    assert (first.exitcode, second.exitcode) == (0, 1)
    lines = run_dir.with_suffix(".txt").read_text().splitlines()
    (refusal,) = [line for line in lines if line.startswith("train.py: ")]
    assert f"is in use by another process (pid {first.pid} " in refusal
    assert_same_end(end_of(run_dir), whole)
    assert json.loads((run_dir / "status.json").read_text())["attempt"] == attempt + 1


@pytest.mark.parametrize("name", ["a=b,c d", "it's", "\u00e9t\u00e9"])
def test_what_a_stopped_run_says_can_be_pasted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    at_step(monkeypatch, 45, lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = cli(*RUN, override("hydra.run.dir", tmp_path / name))
    assert stopped.status == 75
    (word,) = shlex.split(stopped.err.partition("resume with ")[2])
    assert cli(*RUN, word).status == 0
    status = json.loads((tmp_path / name / "status.json").read_text())
    assert (status["state"], status["attempt"]) == ("completed", 2)


# Damage


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A stopped run with two checkpoints, and the end of the same run when nothing stops it."""
    folder = tmp_path_factory.mktemp("toy")
    trainer = make_online(folder / "whole")
    trainer.train()
    end = test_resume.end_of(folder / "whole", trainer)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupt(folder / "stopped", at=31)
    signal.signal(signal.SIGTERM, before)
    return folder / "stopped", end


FILES = st.sampled_from(["weights.pt", "state.pt", "manifest.json", "data"])


@settings(max_examples=40)
@given(file=FILES, place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
@example(file="manifest.json", place=0.5, flip=1)
@example(file="data", place=0.999, flip=0)
def test_a_byte_that_is_altered_or_lost_never_makes_another_end(
    toy: tuple[Path, dict[str, Any]], file: str, place: float, flip: int
) -> None:
    """In a file of the last checkpoint, or in the rows; without ``flip`` it is cut there."""
    stopped, expected = toy
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(stopped, Path(name) / "run", symlinks=True)
        path = folder / "checkpoints" / "last" / file
        if file == "data":
            files = sorted((folder / "checkpoints" / "data").iterdir())
            path, place = files[int(place * len(files))], place * len(files) % 1
        content = bytearray(path.read_bytes())
        index = int(place * len(content))
        content[index] ^= flip
        path.write_bytes(content if flip else content[:index])
        before = contents(folder)
        trainer = make_online(folder)
        with suppress(UserError):
            trainer.train()
            assert_same_end(test_resume.end_of(folder, trainer), expected)
            return
        assert contents(folder) == before


@pytest.mark.parametrize("link", ["last", "best"])
def test_a_link_that_was_deleted_is_made_again(
    cli: Cli, run_dir: Path, whole: dict[str, Any], link: str
) -> None:
    (run_dir / "checkpoints" / link).unlink()
    assert cli(*RUN, f"hydra.run.dir={run_dir}").status == 0
    assert_same_end(end_of(run_dir), whole)


def delete_config(run_dir: Path) -> None:
    (run_dir / ".hydra" / "config.yaml").unlink()


def put_a_file_in_place(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").write_text("mine")


def link_to_a_disk_that_is_away(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "away")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (delete_config, "config.yaml is missing, so whose checkpoints these are is unknown"),
        (put_a_file_in_place, "checkpoints is in the way: it is no folder"),
        (link_to_a_disk_that_is_away, "checkpoints is in the way: it is no folder"),
    ],
)
def test_where_it_is_unclear_what_to_go_on_from_nothing_is_overwritten(
    cli: Cli, run_dir: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(run_dir)
    before, status = contents(run_dir), (run_dir / "status.json").read_bytes()
    outcome = cli(*RUN, f"hydra.run.dir={run_dir}")
    assert outcome.status == 1
    assert reason in only_line(outcome.err)
    assert contents(run_dir) == before
    assert (run_dir / "status.json").read_bytes() == status


# Other configs


def test_a_difference_that_is_accepted_takes_effect_and_is_recorded(
    cli: Cli, run_dir: Path, whole: dict[str, Any]
) -> None:
    changed = (*RUN, "alg.optim.lr=0.01", f"hydra.run.dir={run_dir}")
    before = contents(run_dir)
    refusal = cli(*changed)
    assert refusal.status == 1
    assert "alg.optim.lr: 0.001 -> 0.01;" in only_line(refusal.err)
    assert "resume=override" in refusal.err
    assert contents(run_dir) == before
    assert cli("resume=override", *changed).status == 0
    (attempt,) = json.loads((run_dir / "provenance.json").read_text())["attempts"][-1:]
    assert "alg.optim.lr: 0.001 -> 0.01" in attempt["changes"]
    assert "lr: 0.01\n" in (run_dir / ".hydra" / "config.yaml").read_text()
    state = load_checkpoint(run_dir / "checkpoints" / "last").state
    (group,) = state["learner"]["descents"]["critic"]["optimizer"]["param_groups"]
    assert group["lr"] == 0.01
    for new, old in zip(rows(run_dir / "train.csv"), whole["train"], strict=True):
        assert (new == old) == (int(old["step"]) <= 70)


def test_a_difference_that_does_not_fit_leaves_the_run_as_it_was(
    cli: Cli, run_dir: Path, whole: dict[str, Any]
) -> None:
    before = contents(run_dir)
    arguments = ("resume=override", "network.hidden_dims=[24]", f"hydra.run.dir={run_dir}")
    refusal = cli(*RUN, *arguments, "resume=auto")
    assert "network.hidden_dims: [16] -> [24]; choose another hydra.run.dir" in refusal.err
    assert "resume=override" not in refusal.err
    outcome = cli(*RUN, *arguments)
    assert outcome.status == 1
    assert "does not fit this code or config" in only_line(outcome.err)
    assert "resume=override cannot accept network.hidden_dims: [16] -> [24]" in outcome.err
    assert contents(run_dir) == before
    assert cli(*RUN, f"hydra.run.dir={run_dir}").status == 0
    assert_same_end(end_of(run_dir), whole)


def test_a_run_whose_reader_hangs_ends_when_it_is_told_to_and_goes_on(tmp_path: Path) -> None:
    for index in range(24):
        test_images.write(
            tmp_path / f"data/train/{'ab'[index % 2]}/{index:02}.png", test_images.colours(index)
        )
    command = (
        *("alg=classification", "dataset=imagefolder", f"dataset.root={tmp_path}/data"),
        *("dataset.validation=0.25", "dataset.num_workers=1", "dataset.batch_size=3"),
        *("network.channels=[4]", "trainer.total_epochs=2", "trainer.log_every=1"),
    )
    whole = commands.train(tmp_path / "whole", *command)
    whole.join()
    assert whole.exitcode == 0, (tmp_path / "whole.txt").read_text()

    pipe = tmp_path / "data/train/b/23.png"
    image = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    process = commands.train(tmp_path / "run", *command)
    while (writer := open_if_read(pipe)) is None:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(100)
    os.close(writer)
    assert process.exitcode == 75, (tmp_path / "run.txt").read_text()
    pipe.unlink()
    pipe.write_bytes(image)
    again = commands.train(tmp_path / "run", *command)
    again.join()
    assert again.exitcode == 0, (tmp_path / "run.txt").read_text()
    for group in ("train", "eval"):
        assert rows(tmp_path / f"run/{group}.csv") == rows(tmp_path / f"whole/{group}.csv")


def open_if_read(pipe: Path) -> int | None:
    """The writer's end of a named pipe; None while nothing reads it."""
    with suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    return None
