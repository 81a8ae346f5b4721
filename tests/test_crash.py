"""What is told of a process that a signal has ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from research.crash import CRASH, LOG, crash_told, fatal_signal
from research.status import read_status
from tests.commands import start, train

LIMIT_S = 120.0


def crash_within(folder: Path, die: Callable[[], None]) -> None:
    """Die where a crash is told."""
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    with crash_told(folder):
        die()


def wait_for_signal(folder: Path) -> str | None:
    """The signal that is told; what tells it outlives the process by a moment."""
    deadline = time.monotonic() + LIMIT_S
    while (name := fatal_signal(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return name


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE])
def test_a_fatal_signal_is_named_and_leaves_the_stack_in_the_log_and_on_stderr(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / LOG).write_text("before\n")
    process = start(crash_within, tmp_path, os.abort if number == signal.SIGABRT else Kill(number))
    process.join(LIMIT_S)
    assert process.exitcode == -number
    assert wait_for_signal(tmp_path) == number.name
    log = (tmp_path / LOG).read_text()
    assert log.startswith("before\n")
    for text in (log, (tmp_path / "stderr").read_text()):
        assert "in crash_within" in text


class Kill:
    """Sends itself a signal."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> None:
        os.kill(os.getpid(), self.number)


def test_an_orderly_end_and_a_silent_death_name_no_signal(tmp_path: Path) -> None:
    (tmp_path / CRASH).write_text("Fatal Python error: Aborted\n")
    with crash_told(tmp_path):
        assert fatal_signal(tmp_path) is None  # that was another attempt
    assert not (tmp_path / CRASH).exists()
    process = start(crash_within, tmp_path, Kill(signal.SIGKILL))
    process.join(LIMIT_S)
    assert process.exitcode == -signal.SIGKILL
    assert fatal_signal(tmp_path) is None


def test_without_stderr_the_log_has_the_stack(tmp_path: Path) -> None:
    program = "import ctypes, pathlib; from research.crash import *\n"
    program += f"with crash_told(pathlib.Path({str(tmp_path)!r})): ctypes.string_at(0)"
    subprocess.run([sys.executable, "-c", program], preexec_fn=lambda: os.close(2))
    assert wait_for_signal(tmp_path) == "SIGSEGV"
    assert "string_at" in (tmp_path / LOG).read_text()


def test_the_next_start_of_a_run_says_how_the_last_one_died(tmp_path: Path) -> None:
    folder, module = tmp_path / "run", tmp_path / "crashing.py"
    module.write_text(CRASHING)
    overrides = ["alg=td3", "env=gymnasium", "env.id=crashing:Crash-v0", "trainer.total_steps=40"]
    overrides += ["trainer.pace.warmup_steps=10", "network.hidden_dims=[16]"]
    overrides += ["dataset.capacity=100", "trainer.evaluation.episodes=1"]
    exits = []
    for _ in range(2):
        process = start(train_with, str(tmp_path), folder, tuple(overrides))
        process.join(LIMIT_S)
        exits.append(process.exitcode)
        if len(exits) == 1:
            assert wait_for_signal(folder) == "SIGSEGV"
    printed = folder.with_suffix(".txt").read_text()
    assert exits == [-signal.SIGSEGV, 0], printed
    assert 'crashing.py", line 14 in step' in (folder / LOG).read_text()
    assert "the attempt before was killed by SIGSEGV; its stack is in train.log" in printed
    status = read_status(folder)
    assert status is not None
    assert (status["state"], status["attempt"]) == ("completed", 2)


def train_with(path: str, folder: Path, overrides: tuple[str, ...]) -> None:
    """Train, with a folder to import from."""
    from tests.commands import run

    sys.path.insert(0, path)
    run(folder, overrides)


CRASHING = '''
import ctypes, pathlib
import gymnasium
import numpy as np
from gymnasium.spaces import Box

class Crash(gymnasium.Env):
    """Crashes the process at its first step ever."""
    observation_space, action_space = Box(-1, 1, (2,), np.float32), Box(-1, 1, (1,), np.float32)
    def step(self, action):
        mark = pathlib.Path(__file__).with_suffix(".mark")
        if not mark.exists():
            mark.touch()
            ctypes.string_at(0)
        self.time += 1
        return np.zeros(2, np.float32), 1.0, False, self.time == 10, {}
    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}

gymnasium.register("Crash-v0", Crash)
'''


def test_a_run_that_was_killed_silently_is_told_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ["alg=classification", "network=mlp", "network.hidden_dims=[16]"]
    process = train(folder, *overrides, "trainer.total_epochs=1000")
    while (read_status(folder) or {"step": 0})["step"] == 0:
        assert process.is_alive()
    process.kill()
    process.join(LIMIT_S)
    train(folder, *overrides, "trainer.total_epochs=1").join(LIMIT_S)
    assert "killed without a word, by SIGKILL perhaps" in folder.with_suffix(".txt").read_text()
