"""Data-parallel runs: the same weights as one process, whatever ends, and nothing left behind."""

import csv
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[reportPrivateImportUsage]

from research.errors import UserError
from research.parallel.process_group import open_store
from research.parallel.ranks import Failure, Node, first_failure, this_node
from tests.commands import train
from tests.conftest import write_examples

DIGITS = (
    *("alg=classification", "dataset=digits", "trainer.total_epochs=2", "trainer.log_every=10"),
    *("network=mlp", "network.hidden_dims=[32]", "dataset.batch_size=100"),
)
CNN = (*DIGITS[:4], "dataset.batch_size=100")
"""With the network of the dataset's own choice, which has batch normalisation."""

SGD = ("alg.optim._target_=torch.optim.SGD", "alg.optim.lr=0.1", "~alg.optim.fused")
TWO = "trainer.devices=2"
LIMIT_S = 120.0


def finish(folder: Path, *overrides: str) -> str:
    """Train to the end; what it printed."""
    process = train(folder, *overrides)
    process.join(LIMIT_S)
    printed = folder.with_suffix(".txt").read_text()
    assert process.exitcode == 0, printed
    return printed


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last" / "weights.pt", weights_only=True)["alg"]


def rows(folder: Path, group: str) -> list[dict[str, str]]:
    with (folder / f"{group}.csv").open() as file:
        return list(csv.DictReader(file))


def status(folder: Path) -> dict[str, object]:
    return json.loads((folder / "status.json").read_text())


def ranks(folder: Path) -> dict[int, int]:
    """Process numbers of the ranks of a run that have come to train, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_rank = b"research.process" in (path / "cmdline").read_bytes()
            outputs = [os.readlink(path / "fd" / number) for number in ("1", "2")]
        except OSError:
            continue
        if is_rank and str(folder.with_suffix(".txt")) in outputs:
            found[0] = int(path.name)
        elif is_rank and str(folder / "rank_1.log") in outputs:
            found[1] = int(path.name)
    return found


def wait_until_learning(folder: Path) -> dict[int, int]:
    """The ranks, once a row has been logged."""
    deadline = time.monotonic() + LIMIT_S
    while not (folder / "train.csv").exists() or not rows(folder, "train"):
        assert time.monotonic() < deadline, folder.with_suffix(".txt").read_text()
        time.sleep(0.05)
    return ranks(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits learned by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(folder, *DIGITS, *SGD)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two."""
    folder = tmp_path_factory.mktemp("together") / "run"
    finish(folder, *DIGITS, *SGD, TWO)
    return folder


def test_two_processes_give_the_weights_of_one_with_the_same_batches(
    alone: Path, together: Path
) -> None:
    """To 1e-4 of a weight, or 1e-5: sums over a batch are rounded in another order."""
    torch.testing.assert_close(weights(together), weights(alone), rtol=1e-4, atol=1e-5)


def test_they_log_what_one_logs_and_once(alone: Path, together: Path) -> None:
    for group in ("train", "eval"):
        one, two = rows(alone, group), rows(together, group)
        assert [row["step"] for row in two] == [row["step"] for row in one]
        for name in ("loss", "accuracy"):
            expected = [float(row[name]) for row in one]
            assert [float(row[name]) for row in two] == pytest.approx(expected, rel=1e-4)
    assert len(list(together.glob("events.*"))) == 1
    assert not list(together.glob("rank_*.log"))
    assert status(together)["state"] == "completed"
    assert status(together)["score"] == pytest.approx(status(alone)["score"])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of a run; no rank of it may outlive the test."""
    yield tmp_path / "run"
    deadline = time.monotonic() + 10
    while left := ranks(tmp_path / "run"):
        assert time.monotonic() < deadline, f"ranks left: {left}"
        time.sleep(0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all(folder: Path, rank: int) -> None:
    process = train(folder, *DIGITS, TWO, "trainer.total_epochs=1000")
    os.kill(wait_until_learning(folder)[rank], signal.SIGKILL)
    process.join(LIMIT_S)
    assert process.exitcode == 1
    last = folder.with_suffix(".txt").read_text().splitlines()[-1]
    assert last.endswith(f"rank {rank}: killed by SIGKILL")
    assert status(folder)["state"] == "failed"
    assert status(folder)["exit_reason"] == f"rank {rank}: killed by SIGKILL"


def test_ranks_end_with_the_command_that_is_killed(folder: Path) -> None:
    process = train(folder, *DIGITS, TWO, "trainer.total_epochs=1000")
    assert len(wait_until_learning(folder)) == 2
    process.kill()
    process.join(LIMIT_S)


def test_told_to_end_it_saves_and_goes_on_to_the_same_weights(folder: Path) -> None:
    task = (*DIGITS, TWO, "alg.mixup_alpha=0.4", "trainer.ema_decay=0.9", "trainer.total_epochs=20")
    process = train(folder, *task)
    wait_until_learning(folder)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(LIMIT_S)
    assert process.exitcode == 75
    assert status(folder)["state"] == "preempted"
    assert 0 < int(str(status(folder)["step"])) < 300
    assert "resumed at step" in finish(folder, *task)
    whole = folder.with_name("whole")
    finish(whole, *task)
    torch.testing.assert_close(weights(folder), weights(whole), rtol=0, atol=0)
    for group in ("train", "eval"):
        both = [[{**row, "seconds": None} for row in rows(each, group)] for each in (folder, whole)]
        assert both[0] == both[1]


def test_a_rank_that_fails_is_named_with_its_reason(folder: Path) -> None:
    images = folder.with_name("images")
    pixels = np.random.default_rng(0).integers(256, size=(40, 6, 6), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = images / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    (images / "train" / "b" / "3.png").write_bytes(b"no image")
    process = train(
        folder,
        *("alg=classification", "dataset=imagefolder", f"dataset.root={images}", TWO),
        *("dataset.validation=0.2", "dataset.num_workers=1", "dataset.batch_size=8"),
        *("network=mlp", "processor.mean=[0.5]", "processor.std=[0.5]"),
    )
    process.join(LIMIT_S)
    assert process.exitcode == 1
    last = folder.with_suffix(".txt").read_text().splitlines()[-1]
    assert "rank " in last
    assert "3.png" in last


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.devices=2", "device=cuda:1"], ["device=cuda:1", "auto, cpu or cuda"]),
        (["trainer.devices=0"], ["trainer.devices must be an integer of at least 1, got 0"]),
        (["trainer.devices=2", "dataset.batch_size=1"], ["batch of 1", "dataset.batch_size"]),
    ],
)
def test_what_cannot_be_shared_is_told_in_one_line(
    folder: Path, overrides: list[str], words: list[str]
) -> None:
    process = train(folder, *DIGITS, *overrides)
    process.join(LIMIT_S)
    assert process.exitcode == 1
    (line,) = folder.with_suffix(".txt").read_text().splitlines()
    assert all(word in line for word in words), line


def test_batch_normalisation_is_not_shared_by_processes_of_a_cpu(folder: Path) -> None:
    process = train(folder, *CNN, TWO, "device=cpu")
    process.join(LIMIT_S)
    assert process.exitcode == 1
    (line,) = folder.with_suffix(".txt").read_text().splitlines()
    assert "batch normalisation over several processes needs GPUs; set trainer.devices=1" in line


def test_the_first_failure_of_all_nodes_is_told() -> None:
    late = Failure("connection lost", None, 1, at_s=20.0)
    early = Failure("no space left", None, 1, at_s=10.0)
    beside, first, store = Node(1, 2), Node(0, 2), HashStore()
    assert str(first_failure(beside, {2: late, 3: early}, store)) == "rank 3: no space left"
    assert str(first_failure(first, {0: late}, store)) == "rank 3: no space left"
    interrupted = Failure("interrupted", None, 130, at_s=10.1)  # by torchrun, since one has failed
    assert str(first_failure(first, {0: interrupted}, store)) == "rank 3: no space left"
    by_hand = interrupted._replace(at_s=9.9)
    assert isinstance(first_failure(first, {0: by_hand}, store), KeyboardInterrupt)
    killed = Failure("killed by SIGKILL", None, 1, at_s=0.0)
    assert str(first_failure(first, {0: late, 1: killed}, store)) == "rank 1: killed by SIGKILL"


def test_a_node_is_told_its_place() -> None:
    assert this_node({"RESEARCH_LIGHTNING_NODE": "1/3:10.0.0.1:7"}) == Node(1, 3, "10.0.0.1", 7)
    assert this_node({"RESEARCH_LIGHTNING_NODE": "0/2:fe80::1:7"}) == Node(0, 2, "fe80::1", 7)
    assert this_node({}) == Node(0, 1)


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} cannot be used.*MASTER_PORT") as caught:
            open_store(Node(0, 2, "localhost", port))
    assert "\n" not in str(caught.value)


PENDULUM = (
    *(
        "alg=td3",
        "env=pendulum",
        "env.action_repeat=5",
        "env.num_envs=2",
        "dataset.batch_size=63",
        "trainer.log_every=20",
    ),
    *("network.hidden_dims=[32]", "trainer.pace.warmup_steps=100", "trainer.total_steps=160"),
    *("trainer.evaluation.every=80", "trainer.evaluation.episodes=1", "device=cpu"),
    *(
        "trainer.log_every=20",
        "alg.target_noise=0",
        "alg.explore_noise=0",
        *SGD,
        "alg.optim.lr=1e-3",
    ),
)
"""Without noise, which every rank draws for itself."""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that collects, on one rank and on two."""
    folder = tmp_path_factory.mktemp("collected")
    for name, devices in (("one", 1), ("two", 2)):
        finish(folder / name, *PENDULUM, f"trainer.devices={devices}")
    return {name: folder / name for name in ("one", "two")}


def test_ranks_learn_together_from_what_the_first_collects(collected: dict[str, Path]) -> None:
    one, two = (weights(collected[name]) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    for group in ("env", "eval", "train"):
        assert len(rows(collected["one"], group)) == len(rows(collected["two"], group)) > 0
    for own, shared in zip(
        *(rows(collected[name], "train") for name in ("one", "two")), strict=True
    ):
        assert float(own["critic_loss"]) == pytest.approx(float(shared["critic_loss"]), rel=1e-3)


def test_ranks_that_collect_resume_to_the_bit(collected: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "two"
    overrides = (*PENDULUM, TWO)
    finish(folder, *overrides, "trainer.total_steps=120")
    finish(folder, *overrides, "resume=override")
    for name, tensor in weights(collected["two"]).items():
        assert tensor.equal(weights(folder)[name]), name


def test_statistics_of_observations_are_those_of_all_ranks(tmp_path: Path) -> None:
    write_examples(tmp_path / "examples.npz")
    task = ("alg=regression", f"dataset.path={tmp_path / 'examples.npz'}", "processor=normalise")
    moments = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        finish(folder, *task, "trainer.total_epochs=2", f"trainer.devices={devices}")
        path = folder / "checkpoints" / "last" / "weights.pt"
        moments.append(torch.load(path, weights_only=True)["processor"])
    for name, value in moments[0].items():
        torch.testing.assert_close(moments[1][name], value)


def test_minibatches_of_a_rollout_are_shared_and_normalised_as_a_whole(tmp_path: Path) -> None:
    """The advantages' statistics are those of the whole minibatch, also where it is uneven."""
    rollout = ("trainer.pace.horizon=61", "trainer.pace.minibatches=3", "trainer.pace.epochs=2")
    overrides = (
        *("alg=ppo", "env=pendulum", "env.num_envs=2", "trainer.total_steps=122", "device=cpu"),
        *("trainer.evaluation.every=122", "trainer.evaluation.episodes=1", "trainer.log_every=122"),
        *("network.hidden_dims=[32]", "~alg.optim.eps", *SGD, *rollout),
        *("alg.value_weight=0.001", "trainer.max_grad_norm=null"),  # values would hide advantages
    )
    for devices in (1, 2):
        finish(tmp_path / str(devices), *overrides, f"trainer.devices={devices}")
    one, two = (weights(tmp_path / name) for name in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    logged = [float(rows(tmp_path / name, "train")[-1]["loss"]) for name in ("1", "2")]
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
