"""The MPS daemon ends with the launcher, however that ends, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from research.errors import UserError
from research.launchers.pool.mps import mps_daemon, quit_command

# Stands for NVIDIA's program: -d leaves a daemon behind, other calls take commands for it.
FAKE = """#!/bin/sh
file=$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid
if [ "$1" = -d ]; then
  [ ! -f "$FAKE_NOTES/refuse" ] || { echo "An instance of this daemon is already running"; exit 1; }
  [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || exit 1
  echo "$CUDA_VISIBLE_DEVICES" >"$FAKE_NOTES/devices"
  setsid "$0" daemon &
  echo $! >"$FAKE_NOTES/pid"
  cp "$FAKE_NOTES/pid" "$file"
elif [ "$1" = daemon ]; then
  exec >/dev/null 2>&1
  while :; do sleep 0.05; done
else
  [ ! -f "$FAKE_NOTES/deaf" ] || exit 1
  while read -r command; do
    case $command in quit*) kill "$(cat "$file")" ;; *) kill -0 "$(cat "$file")" ;; esac || exit 1
  done
fi
"""

CHILD = """
import time
from research.launchers.pool.mps import mps_daemon
with mps_daemon() as variables:
    print(variables["CUDA_MPS_PIPE_DIRECTORY"], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the fake program, which is on PATH now, notes what it does and is told what to do.

    Whatever a test does, there is nothing left in the directory for temporary files.
    """
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_NOTES", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.setenv("TMPDIR", short)
        yield tmp_path
        assert list(Path(short).iterdir()) == []


def daemon_lives(notes: Path) -> bool:
    """Whether the fake daemon runs; one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{(notes / 'pid').read_text().strip()}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def is_clean(notes: Path, folder: Path) -> bool:
    return not daemon_lives(notes) and not folder.exists()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def folder_of(variables: dict[str, str]) -> Path:
    return Path(variables["CUDA_MPS_PIPE_DIRECTORY"]).parent


def test_daemon_runs_in_a_private_folder_until_the_end(notes: Path) -> None:
    with mps_daemon() as variables:
        folder = folder_of(variables)
        assert folder.parent == Path(tempfile.gettempdir())
        assert daemon_lives(notes)
        assert Path(variables["CUDA_MPS_LOG_DIRECTORY"]).is_dir()
        assert folder.stat().st_mode & 0o077 == 0
    assert is_clean(notes, folder)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_daemon_ends_with_an_error(notes: Path, error: type[BaseException]) -> None:
    folder = Path()
    with pytest.raises(error), mps_daemon() as variables:  # noqa: PT012
        folder = folder_of(variables)
        raise error
    assert is_clean(notes, folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_daemon_ends_when_its_parent_is_killed(notes: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip()).parent
        assert daemon_lives(notes)
        os.killpg(child.pid, number)
    assert within(10, lambda: is_clean(notes, folder))


def test_daemon_that_does_not_listen_is_killed(notes: Path) -> None:
    with mps_daemon() as variables:
        folder = folder_of(variables)
        (notes / "deaf").touch()
    assert is_clean(notes, folder)


def test_daemon_ends_though_its_guard_was_killed(notes: Path) -> None:
    before = children()  # such as another test's cluster
    with mps_daemon() as variables:
        folder = folder_of(variables)
        for pid in set(children()) - set(before):
            os.kill(pid, signal.SIGKILL)
    assert is_clean(notes, folder)


def children() -> list[int]:
    """The processes that this one has started and that run."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_quit_command_ends_it_from_outside_and_may_run_twice(notes: Path) -> None:
    with mps_daemon() as variables:
        folder = folder_of(variables)
        for _ in range(2):
            environment = {key: os.environ[key] for key in ("PATH", "FAKE_NOTES")}
            subprocess.run(quit_command(folder), env=environment, check=True, capture_output=True)
            assert is_clean(notes, folder)


def test_daemon_that_does_not_start_gives_its_own_last_words(notes: Path) -> None:
    (notes / "refuse").touch()
    line = r"^hydra\.launcher\.mps=true: nvidia-cuda-mps-control -d failed: An instance of this "
    with pytest.raises(UserError, match=line), mps_daemon():
        pass


def test_daemon_that_does_not_answer_is_refused_and_ended(notes: Path) -> None:
    (notes / "deaf").touch()
    with (
        pytest.raises(UserError, match=r"nvidia-cuda-mps-control -d does not answer"),
        mps_daemon(),
    ):
        pass
    assert not daemon_lives(notes)


def test_missing_program_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = r"^hydra\.launcher\.mps=true needs nvidia-cuda-mps-control, which .* not on PATH; .*$"
    with pytest.raises(UserError, match=line), mps_daemon():
        pass


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [(None, ""), (["0", "1"], ""), (["GPU-a", "GPU-b"], "GPU-a,GPU-b"), (["MIG-a"], "MIG-a")],
)
def test_daemon_sees_the_gpus_named_by_uuid_and_else_all(
    notes: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[str] | None, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with mps_daemon(gpus):
        assert (notes / "devices").read_text().strip() == seen


def test_two_mig_devices_are_refused(notes: Path) -> None:
    line = "serves one MIG device, got MIG-a, MIG-b; "
    with pytest.raises(UserError, match=line), mps_daemon(["MIG-a", "MIG-b"]):
        pass


def test_long_tmpdir_is_not_used(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = notes / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with mps_daemon() as variables:
        folder = folder_of(variables)
    assert folder.parent == Path("/tmp")
    assert is_clean(notes, folder)
