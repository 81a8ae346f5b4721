"""Ranks that torchrun starts: the run of ``trainer.devices=2``, whatever ends it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.launchers.programs import ROOT
from tests.parallel.test_parallel import (
    DIGITS,
    LIMIT_S,
    TWO,
    finish,
    rows,
    status,
    wait_until_learning,
    weights,
)

TWO_RANKS = "--nproc-per-node=2"
ENDLESS = (*DIGITS, "device=cpu", "alg.mixup_alpha=0.4", "trainer.total_epochs=1000")


class Torchrun:
    """``torchrun --nproc-per-node=2 train.py hydra.run.dir=FOLDER ...``, started."""

    def __init__(self, folder: Path, *words: str, options: Sequence[str] = (TWO_RANKS,)) -> None:
        self.folder = folder
        self.path = folder.with_suffix(".txt")
        command = [sys.executable, "-m", "torch.distributed.run", *options]
        with self.path.open("a") as file:
            self.process = subprocess.Popen(
                [*command, str(ROOT / "train.py"), f"hydra.run.dir={folder}", *words],
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def join(self) -> int:
        """Its exit status."""
        return self.process.wait(LIMIT_S)

    def told(self) -> list[str]:
        """What ``train.py`` has told the user."""
        return re.findall(r"^train\.py: (.*)", self.path.read_text(), re.MULTILINE)

    def ranks(self) -> dict[int, int]:
        """Their process numbers, by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                words = path.read_bytes().split(b"\0")
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self.process.pid:
                (rank,) = (int(word[5:]) for word in words if word.startswith(b"RANK="))
                found[rank] = int(path.parent.name)
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_it_trains_as_two_devices_do(folder: Path) -> None:
    own = folder.with_name("own")
    finish(own, *DIGITS, TWO)
    run = Torchrun(folder, *DIGITS)
    assert run.join() == 0, run.path.read_text()
    torch.testing.assert_close(weights(folder), weights(own), rtol=0, atol=0)
    for group in ("train", "eval"):
        both = [[{**row, "seconds": None} for row in rows(each, group)] for each in (folder, own)]
        assert both[0] == both[1]
    assert not list(folder.glob("rank_*.log"))
    again = Torchrun(folder, *DIGITS)
    assert again.join() == 0
    assert "is complete" in again.path.read_text()


def test_on_two_nodes_it_trains_as_on_one(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    nodes = [Torchrun(folder, *DIGITS, options=(*where, f"--node-rank={rank}")) for rank in (0, 1)]
    own = folder.with_name("own")
    finish(own, *DIGITS, TWO)
    assert [node.join() for node in nodes] == [0, 0], folder.with_suffix(".txt").read_text()
    torch.testing.assert_close(weights(folder), weights(own), rtol=0, atol=0)


def test_told_to_end_it_saves_and_is_gone_on_from_without_torchrun(folder: Path) -> None:
    run = Torchrun(folder, *ENDLESS)
    wait_until_learning(folder)
    run.process.terminate()
    assert run.join() == 1
    assert status(folder)["state"] == "preempted"
    step = int(str(status(folder)["step"]))
    epochs = f"trainer.total_epochs={step // 15 + 2}"
    assert f"resumed at step {step} of" in finish(folder, *ENDLESS, TWO, epochs)
    whole = folder.with_name("whole")
    finish(whole, *ENDLESS, TWO, epochs)
    torch.testing.assert_close(weights(folder), weights(whole), rtol=0, atol=0)


def test_a_rank_that_is_killed_fails_the_run(folder: Path) -> None:
    run = Torchrun(folder, *ENDLESS)
    wait_until_learning(folder)
    other = run.ranks()[1]
    run.process.send_signal(signal.SIGSTOP)  # or its SIGTERM may end rank 0 first, which saves
    os.kill(other, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_S
    while status(folder)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    run.process.send_signal(signal.SIGCONT)
    assert run.join() == 1
    assert status(folder)["state"] == "failed"


def test_a_rank_that_fails_is_named_with_its_reason(folder: Path) -> None:
    run = Torchrun(folder, *DIGITS, "dataset.batch_size=3", "trainer.accumulate=2")
    assert run.join() == 1
    (line,) = run.told()
    assert "rank 1: a rank's share of a batch has 1 examples" in line
    assert status(folder)["exit_reason"] == line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["alg.typo=1"], "alg.typo is not a known key"),
        (["trainer.devices=3"], "torchrun --nproc-per-node=2 is trainer.devices=2, got trainer"),
        (["-m", "seed=0,1"], "torchrun starts the ranks of one run; a sweep starts them itself"),
    ],
)
def test_what_is_wrong_is_told_once(folder: Path, words: list[str], told: str) -> None:
    run = Torchrun(folder, *DIGITS, *words)
    assert run.join() == 1
    (line,) = run.told()
    assert line.startswith(told)
    assert not folder.exists()
