"""The pool: slots come back, the truth is told, and no process is left behind."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from research.launchers.plan.ledger import Job
from research.launchers.pool.pool import Outcome, Pool, Task, last_lines
from research.machine.slots import Slot
from research.process import Process, make_call
from research.status import Status, read_status

cloudpickle.register_pickle_by_value(sys.modules[__name__])
CPUS = sorted(os.sched_getaffinity(0))
SLOTS = [Slot(0, (CPUS[0],), 1, None), Slot(1, (CPUS[-1],), 1, None)]


def make_task(folder: Path, number: int, function: Callable[[], Any]) -> Task:
    job = Job(number, (), {}, folder / str(number), str(number))
    return Task(job, make_call(function))


def make_pool(slots: Sequence[Slot] = SLOTS, **options: Any) -> Pool:
    defaults = {
        "stagger_s": 0.0,
        "retries": 0,
        "fail_fast": False,
        "timeout_s": None,
        "environ": {},
        "watch": lambda running: None,
    }
    return Pool(slots, **{**defaults, **options})


def run(folder: Path, *functions: Callable[[], Any], **options: Any) -> dict[int, Outcome]:
    tasks = [make_task(folder, number, function) for number, function in enumerate(functions)]
    return make_pool(**options).run(tasks)


def processes_of(marker: str) -> list[int]:
    """The processes whose environment holds ``marker``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def test_no_jobs_are_no_trouble(tmp_path: Path) -> None:
    assert run(tmp_path) == {}


def test_results_come_back_from_more_jobs_than_slots(tmp_path: Path) -> None:
    outcomes = run(tmp_path, *[lambda i=i: i * i for i in range(5)])
    assert [outcomes[i].result for i in range(5)] == [0, 1, 4, 9, 16]
    assert {outcome.state for outcome in outcomes.values()} == {"completed"}


def test_a_slot_comes_back_however_its_job_ended(tmp_path: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise ValueError("no luck")

    outcomes = run(tmp_path, die, fail, lambda: sys.exit(3), lambda: 7, slots=SLOTS[:1])
    assert [outcomes[i].state for i in range(4)] == ["failed", "failed", "failed", "completed"]
    assert outcomes[0].reason.startswith("killed by SIGKILL")
    assert outcomes[1].reason == "ValueError: no luck"
    assert outcomes[2].reason == "exited with status 3"
    assert outcomes[3].result == 7


def test_status_files_tell_of_jobs_that_could_not(tmp_path: Path) -> None:
    run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
    status = read_status(tmp_path / "0")
    assert status is not None
    assert status["state"] == "failed"
    assert "SIGKILL" in status["exit_reason"]


def test_a_job_sees_its_slot(tmp_path: Path) -> None:
    def look() -> tuple[Any, ...]:
        return (
            os.sched_getaffinity(0),
            os.environ["OMP_NUM_THREADS"],
            os.environ["MKL_NUM_THREADS"],
            os.environ["CUDA_VISIBLE_DEVICES"],
            os.getsid(0) == os.getpid(),
        )

    slot = Slot(0, (CPUS[-1],), 1, "1")
    assert run(tmp_path, look, slots=[slot])[0].result == ({CPUS[-1]}, "1", "1", "1", True)


def test_torch_takes_the_slots_threads(tmp_path: Path) -> None:
    def threads() -> int:
        import torch

        return torch.get_num_threads()

    slot = Slot(0, tuple(CPUS), 1, None)
    assert run(tmp_path, threads, slots=[slot])[0].result == 1


def test_everything_printed_is_in_the_log(tmp_path: Path) -> None:
    def speak() -> None:
        os.write(1, b"to stdout\n")
        os.write(2, b"to stderr\n")
        raise ValueError("the end")

    run(tmp_path, speak)
    lines = last_lines(tmp_path / "0", 100)
    assert {"to stdout", "to stderr", "ValueError: the end"} <= set(lines)


def test_a_job_told_to_stop_before_it_can_listen_was_preempted(tmp_path: Path) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(tmp_path, deaf)[0].state == "preempted"


def test_retries_are_further_attempts(tmp_path: Path) -> None:
    def third_time_lucky() -> int:
        with (tmp_path / "tries").open("a") as file:
            file.write("x")
        tries = len((tmp_path / "tries").read_text())
        if tries < 3:
            raise ValueError("again")
        return tries

    assert run(tmp_path, third_time_lucky, retries=1)[0].state == "failed"
    (tmp_path / "tries").unlink()
    assert run(tmp_path, third_time_lucky, retries=2)[0].result == 3


def test_fail_fast_stops_the_others(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no luck")

    outcomes = run(tmp_path, fail, lambda: time.sleep(60), lambda: 1, fail_fast=True)
    assert [outcomes[i].state for i in range(3)] == ["failed", "preempted", "pending"]


def test_a_job_past_its_time_is_told_to_stop_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research.launchers.pool.pool.TERMINATION_S", 0.3)

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    outcomes = run(tmp_path, deaf, lambda: time.sleep(60), timeout_s=1.0)
    assert outcomes[0].state == outcomes[1].state == "failed"
    assert outcomes[0].reason == "ran past hydra.launcher.timeout_s=1"


def test_what_a_job_leaves_behind_is_ended(tmp_path: Path) -> None:
    def leave() -> int:
        return subprocess.Popen(["sleep", "1000"]).pid

    child = run(tmp_path, leave)[0].result
    wait_for(lambda: not Path(f"/proc/{child}").exists() or is_zombie(child))


def is_zombie(pid: int) -> bool:
    return "(sleep) Z" in Path(f"/proc/{pid}/stat").read_text()


def test_a_job_that_cannot_even_start_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("in the way")
    outcomes = run(tmp_path, lambda: 1, lambda: 2)
    assert [outcomes[i].state for i in range(2)] == ["failed", "completed"]
    assert "File exists" in outcomes[0].reason


def test_another_programs_status_file_harms_one_job_alone(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "status.json").write_text("mine")
    outcomes = run(tmp_path, lambda: sys.exit(1), lambda: 2)
    assert [outcomes[i].state for i in range(2)] == ["failed", "completed"]
    assert (tmp_path / "0" / "status.json").read_text() == "mine"


def test_a_full_disk_under_one_jobs_status_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(status: Status) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Status, "write", write)
    outcomes = run(tmp_path, lambda: os._exit(1), lambda: 2, slots=SLOTS[:1])
    assert [outcomes[i].state for i in range(2)] == ["failed", "completed"]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_folder_for_temporary_files_is_named(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "r+b"))
    call = make_call(bytes(size).hex)
    with pytest.raises(OSError, match="No space left") as error:
        Process(call, log=1, environ={})
    assert error.value.filename == tempfile.gettempdir()


def test_starts_are_staggered(tmp_path: Path) -> None:
    outcomes = run(tmp_path, time.time, time.time, stagger_s=0.7)
    assert abs(outcomes[1].result - outcomes[0].result) > 0.5


def test_a_job_that_completed_before_it_was_killed_completed(tmp_path: Path) -> None:
    def complete() -> None:
        status = Status(tmp_path / "0")
        status.start()
        status.end("completed", "done")
        os.kill(os.getpid(), signal.SIGKILL)

    assert run(tmp_path, complete)[0].state == "completed"


PARENT = """
import sys, time, os, signal, subprocess
for name in ("SIGINT", "SIGHUP"):
    ignored = name in os.environ.get("IGNORED", "")
    signal.signal(getattr(signal, name), signal.SIG_IGN if ignored else signal.SIG_DFL)
from pathlib import Path
import cloudpickle
from tests.launchers.pool.test_pool import make_pool, make_task
cloudpickle.register_pickle_by_value(sys.modules["__main__"])
folder = Path(sys.argv[1])

def work():
    try:
        subprocess.Popen(["sleep", "1000"])
        (folder / f"{os.getpid()}.began").touch()
        time.sleep(1000)
    except KeyboardInterrupt:
        (folder / f"{os.getpid()}.stopped").touch()
        if os.environ.get("DEAF"):
            time.sleep(1000)
        raise

pool = make_pool()
outcomes = pool.run([make_task(folder, number, work) for number in range(3)])
print(*[outcomes[number].state for number in range(3)])
"""


@pytest.fixture
def parent(tmp_path: Path) -> Any:
    """A process with a pool of two running jobs, each with a child of its own."""

    def start(**environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path)],
            env={**os.environ, "MARKER": str(tmp_path), **environ},
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )

    return start


def begin(process: "subprocess.Popen[str]", folder: Path) -> None:
    wait_for(lambda: process.poll() is not None or len(list(folder.glob("*.began"))) == 2)
    assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_the_jobs_in_order(
    parent: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    process = parent()
    begin(process, tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0].split() == ["preempted", "preempted", "pending"]
    assert len(list(tmp_path.glob("*.stopped"))) == 2
    wait_for(lambda: not processes_of(f"MARKER={tmp_path}"))


def test_what_nohup_has_it_ignore_stays_ignored(parent: Callable[..., Any], tmp_path: Path) -> None:
    process = parent(IGNORED="SIGHUP")
    begin(process, tmp_path)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert not list(tmp_path.glob("*.stopped"))
    process.terminate()
    assert process.communicate(timeout=30)[0].split() == ["preempted", "preempted", "pending"]


def test_a_second_signal_kills_jobs_that_are_slow_to_stop(
    parent: Callable[..., Any], tmp_path: Path
) -> None:
    process = parent(DEAF="1")
    begin(process, tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: len(list(tmp_path.glob("*.stopped"))) == 2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0].split() == ["preempted", "preempted", "pending"]
    wait_for(lambda: not processes_of(f"MARKER={tmp_path}"))


def test_nothing_outlives_a_parent_that_was_killed(
    parent: Callable[..., Any], tmp_path: Path
) -> None:
    process = parent()
    begin(process, tmp_path)
    assert len(processes_of(f"MARKER={tmp_path}")) >= 6  # parent, guard, jobs and their children
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(f"MARKER={tmp_path}"))


def test_nothing_outlives_a_parent_whose_guard_was_killed_before_it(
    parent: Callable[..., Any], tmp_path: Path
) -> None:
    process = parent()
    begin(process, tmp_path)

    def guards() -> list[int]:
        return [pid for pid in processes_of(f"MARKER={tmp_path}") if is_guard(pid)]

    (first,) = guards()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: set(guards()) - {first})  # a busy machine takes a while to end the first
    time.sleep(0.2)  # in which the parent tells it what to kill
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(f"MARKER={tmp_path}"))


def is_guard(pid: int) -> bool:
    try:
        return b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_job_that_ends_without_a_word_failed(tmp_path: Path) -> None:
    outcome = run(tmp_path, lambda: os._exit(0))[0]
    assert (outcome.state, outcome.reason) == ("failed", "ended without a result")


def test_a_guard_that_was_killed_is_replaced(tmp_path: Path) -> None:
    from research.launchers.pool.guard import Guard

    guard = Guard()
    sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    guard.add(sleeper.pid)
    guard.process.kill()
    guard.process.wait()
    other = subprocess.Popen(["true"])
    other.wait()
    guard.add(other.pid)
    guard.remove(other.pid)
    guard.close()
    assert sleeper.wait(timeout=10) == -signal.SIGKILL
