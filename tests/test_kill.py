"""Whatever is killed, however often: the same command ends with the same files, to the bit."""

import csv
import hashlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.config import build
from research.datasets.replay import ReplayBuffer
from research.training.checkpoint import load_checkpoint
from tests.commands import train
from tests.conftest import Load, algs, companion, write_examples

STEPS = 480
SMALL = (
    f"trainer.total_steps={STEPS}",
    "trainer.collector.warmup_steps=80",
    *("trainer.log_every=20", "trainer.checkpoint_every=60"),
    *("trainer.eval_every=240", "trainer.eval_episodes=1"),
    *("dataset.capacity=320", "dataset.batch_size=16"),  # the rings wrap around
)
ENVS = {"pendulum": "env.action_repeat=5", "cheetah": "env.action_repeat=25"}
"""By which an episode has 40 steps."""

ATTEMPT_S = 120.0


def wait_for_step(folder: Path, step: int, process: Any) -> None:
    """Wait until a run has logged this step, or has ended."""
    deadline = time.monotonic() + ATTEMPT_S
    while process.is_alive() and last_step(folder / "time.csv") < step:
        assert time.monotonic() < deadline, (folder.with_suffix(".txt")).read_text()
        time.sleep(0.002)


def last_step(path: Path) -> int:
    """The step of the last whole row of a log."""
    rows = path.read_text().splitlines()[1:-1] if path.exists() else []
    return int(rows[-1].split(",")[0]) if rows else 0


def train_to_the_end(folder: Path, overrides: Sequence[str], kills: Sequence[int]) -> list[int]:
    """Type the command until it completes; kill it soon after each of these steps. Its exits."""
    chance = random.Random(str(folder))
    exits = []
    for step in [*kills, None]:
        process = train(folder, *overrides)
        if step is not None:
            wait_for_step(folder, step, process)
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
        process.join(ATTEMPT_S)
        assert process.exitcode is not None
        exits.append(process.exitcode)
    return exits


def logs(folder: Path) -> dict[str, Any]:
    """All rows but for the times of this machine, and all points of TensorBoard."""
    rows = {}
    for path in folder.glob("*.csv"):
        if path.stem != "time":
            with path.open() as file:
                rows[path.stem] = [{**row, "seconds": None} for row in csv.DictReader(file)]
    assert {"train", "eval"} <= set(rows)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        if not tag.startswith("time/"):
            rows[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return rows


def weights(folder: Path) -> dict[str, str]:
    """Hashes of the files with the last and the best weights."""
    return {
        name: hashlib.sha256(
            (folder / "checkpoints" / name / "weights.pt").read_bytes()
        ).hexdigest()
        for name in ("last", "best")
    }


def buffer(folder: Path, load: Load, overrides: Sequence[str]) -> dict[str, Any]:
    """The replay buffer that a run ended with: its rows and all that it would sample next."""
    cfg = load(*overrides)
    dataset = build(cfg.dataset, build(cfg.env), 0)
    assert isinstance(dataset, ReplayBuffer)
    state = load_checkpoint(folder / "checkpoints" / "last").state["dataset"]
    dataset.load(state, folder / "checkpoints" / "data")
    rows = dataset._rings
    spans = list(rows.spans(rows.oldest, rows.num_written))
    contents = {
        group: torch.cat([values[start:stop] for start, stop in spans])
        for group, values in dataset._storage.groups.items()
    }
    return {**contents, **state["rings"], "generator": state["generator"]}


def cases() -> Iterator[tuple[str, ...]]:
    """Overrides: TD3 with all that a checkpoint holds, every other algorithm in two cases."""
    for alg in algs("online"):
        if companion(alg, "processor") == "random_shift":  # it learns from images
            task = (
                f"alg={alg}",
                "env=cheetah",
                ENVS["cheetah"],
                "env.pixel_size=24",
                "network.hidden_dims=[32]",
            )
            yield *task, "processor=random_shift"
            yield *task, "processor=identity", "env.num_envs=2", "env.subprocesses=true"
            continue
        parts = list(product(ENVS, ["identity", "normalise"], [1, 4]))
        others = [("pendulum", "normalise", 1), ("cheetah", "identity", 4)]
        for env, processor, num_envs in parts if alg == "td3" else others:
            vector = (f"env.num_envs={num_envs}", f"env.subprocesses={num_envs > 1}")
            yield f"alg={alg}", f"env={env}", ENVS[env], f"processor={processor}", *vector


def compare(
    folder: Path, overrides: Sequence[str], *, num_steps: int, num_kills: int
) -> tuple[Path, Path]:
    """Train twice, once with kills; the folders of both, whose logs and weights are the same."""
    whole, killed = folder / "whole", folder / "killed"
    uninterrupted = train(whole, *overrides)
    chance = random.Random(f"{num_kills} {list(overrides)[:3]}")
    half = num_steps // 2  # the last is behind a checkpoint, from which is gone on
    kills = [
        *sorted(chance.sample(range(1, half), num_kills - 1)),
        chance.randrange(half, num_steps - 20),
    ]
    exits = train_to_the_end(killed, overrides, kills)
    uninterrupted.join(ATTEMPT_S)
    assert (uninterrupted.exitcode, exits[-1]) == (0, 0), killed.with_suffix(".txt").read_text()
    assert exits.count(-9) >= num_kills // 2
    assert "resumed at step" in killed.with_suffix(".txt").read_text()
    assert "did not come back" not in killed.with_suffix(".txt").read_text()
    assert logs(killed) == logs(whole)
    assert weights(killed) == weights(whole)
    return whole, killed


@pytest.mark.parametrize("case", list(cases()), ids=" ".join)
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, load: Load, case: tuple[str, ...]
) -> None:
    overrides = [*case, *SMALL]
    folders = compare(tmp_path, overrides, num_steps=STEPS, num_kills=4)
    ends = [buffer(folder, load, overrides) for folder in folders]
    for name, value in ends[0].items():
        same = value.equal(ends[1][name]) if isinstance(value, torch.Tensor) else None
        assert same if same is not None else value == ends[1][name], name


EXAMPLES = [
    (
        *("alg=classification", "network=mlp", "network.hidden_dims=[32]"),
        *("processor=augment", "trainer/schedule=cosine", "dataset.batch_size=30"),
        *("alg.ema_decay=0.99", "alg.accumulate=3", "alg.mixup_alpha=0.2"),
    ),
    (
        *("alg=classification", "network=cnn", "network.channels=[8,16]"),
        *("network.dropout=0.1", "dataset.num_workers=2", "dataset.batch_size=50"),
    ),
]
SHOWN = {"digits": 1438, "arrays": 300}
"""Examples of an epoch."""


def example_cases() -> Iterator[tuple[str, ...]]:
    """Overrides: classification in two cases, every other supervised algorithm as it comes."""
    yield from EXAMPLES
    for alg in algs("supervised"):
        if alg != "classification" and companion(alg, "dataset") in SHOWN:
            yield f"alg={alg}", "network=mlp", "network.hidden_dims=[32]", "dataset.batch_size=10"


@pytest.mark.parametrize("case", list(example_cases()), ids=" ".join)
def test_learning_from_examples_ends_as_if_it_had_not_been_killed(
    tmp_path: Path, case: tuple[str, ...]
) -> None:
    values = dict(override.split("=", 1) for override in case)
    data = companion(values["alg"], "dataset")
    overrides = [*case, "trainer.log_every=10", "trainer.checkpoint_every=40"]
    if data == "arrays":
        write_examples(tmp_path / "examples.npz")
        overrides.append(f"dataset.path={tmp_path / 'examples.npz'}")
    num_steps = 5 * math.ceil(SHOWN[data] / int(values["dataset.batch_size"]))
    overrides.append("trainer.total_epochs=5")
    num_kills = 2
    for folder in compare(tmp_path, overrides, num_steps=num_steps, num_kills=num_kills):
        state = load_checkpoint(folder / "checkpoints" / "last").state
        assert state["step"] == num_steps
        assert state["dataset"] == {"epoch": 5, "batch": 0}
