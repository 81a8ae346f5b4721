"""Whatever is killed, however often: the same command ends with the same files, to the bit."""

import csv
import hashlib
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from research.config import build
from research.datasets.examples.dataset import Examples
from research.datasets.replay.buffer import ReplayBuffer
from research.training.saving.checkpoint import load_checkpoint
from tests.algs.test_contract import make_alg
from tests.commands import train
from tests.conftest import Load, algs, alone, choice, collects, small

ENVS = {"pendulum": "env.action_repeat=5", "cheetah": "env.action_repeat=25"}
"""By which an episode has 40 steps."""

IN_SEVERAL_CASES = ("td3", "ppo")
"""With replay, and with rollouts; the others share all but their losses with these."""

ATTEMPT_S = 120.0


def lengths(num_steps: int, pace: DictConfig) -> list[str]:
    """Overrides by which a short run does all that a long one does, again and again."""
    warmup = [f"trainer.pace.warmup_steps={num_steps // 6}"] if "warmup_steps" in pace else []
    return [
        *warmup,
        f"trainer.total_steps={num_steps}",
        f"trainer.log_every={num_steps // 24}",
        f"trainer.checkpoints.every={num_steps // 8}",
        f"trainer.evaluation.every={num_steps // 2}",
        "trainer.evaluation.episodes=1",
    ]


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
    """Type the command until it completes; kill it soon after each of these steps. Its exits.

    On a busy machine workers may outlive their killed run for longer than the next one waits for
    the directory; it is then typed once more.
    """
    chance = random.Random(str(folder))
    exits = []
    output = folder.with_suffix(".txt")
    for step in [*kills, None]:
        exits.append(attempt(folder, overrides, step, chance))
        while exits[-1] == 1 and "is in use by another" in output.read_text().splitlines()[-1]:
            exits[-1] = attempt(folder, overrides, step, chance)
    return exits


def attempt(folder: Path, overrides: Sequence[str], step: int | None, chance: random.Random) -> int:
    """Type the command, and kill it soon after ``step``, if it is one. Its exit."""
    process = train(folder, *overrides)
    if step is not None:
        wait_for_step(folder, step, process)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
    process.join(ATTEMPT_S)
    assert process.exitcode is not None
    return process.exitcode


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


def contents(folder: Path, load: Load, overrides: Sequence[str]) -> dict[str, Any]:
    """The dataset that a run ended with: its rows, if it is a replay buffer, and its state.

    Tensors are told by their hashes.
    """
    cfg = load(*overrides)
    dataset = build(cfg.dataset, build(cfg.env), 0)
    spaces = dataset.observation_space, dataset.action_space
    if extras := make_alg(cfg, build(cfg.processor, *spaces)).extras:
        dataset.hold(extras, {})
    state = load_checkpoint(folder / "checkpoints" / "last").state["dataset"]
    dataset.load(state, folder / "checkpoints" / "data")
    stored = {}
    if isinstance(dataset, ReplayBuffer):
        rows = dataset._rings
        spans = list(rows.spans(rows.oldest, rows.num_written))
        stored = {
            group: torch.cat([values[start:stop] for start, stop in spans])
            for group, values in dataset._storage.groups.items()
        }
    # When rows were appended to which file is no part of what the dataset holds.
    stored |= {name: state[name] for name in state if name not in ("journal", "files")}
    return hashed(stored)


def hashed(value: Any) -> Any:
    """Nested dicts and lists with the type, shape and hash of every tensor in its place."""
    if isinstance(value, dict):
        return {key: hashed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hashed(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    content = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    return str(value.dtype), tuple(value.shape), content


def cases() -> Iterator[tuple[str, ...]]:
    """TD3 in four cases, which hold every pair of choices, PPO in two.

    Every other algorithm that collects is in one, in turns alone and on several environments. Each
    case is the algorithm and overrides: on ``ENVS`` if it takes any environment, else on its own.
    """
    vectors = {num: (f"env.num_envs={num}", f"env.subprocesses={num > 1}") for num in (1, 2, 4)}
    for alg in filter(lambda alg: collects(alone(alg)), algs()):
        turn = zlib.crc32(alg.encode()) % 2  # which stays when another algorithm is added
        if choice(alg, "env") in ENVS:
            parts = [("pendulum", "normalise", 1), ("cheetah", "identity", 4)]
            if alg == "td3":
                parts += [("pendulum", "identity", 4), ("cheetah", "normalise", 1)]
            if alg not in IN_SEVERAL_CASES:
                parts = [(parts[0], ("cheetah", "identity", 2))[turn]]
            for env, processor, num_envs in parts:
                yield alg, f"env={env}", ENVS[env], f"processor={processor}", *vectors[num_envs]
        elif alone(alg).env.get("pixels"):
            task = alg, "env=cheetah", ENVS["cheetah"], "network.hidden_dims=[32]"
            shifts = choice(alg, "processor") == "random_shift"  # and leaves images what they are
            yield *task, *(["processor=identity"] if shifts else []), *vectors[2]
        else:
            yield alg, *vectors[(1, 4)[turn]]


def compare(
    folder: Path, overrides: Sequence[str], *, seed: str, num_steps: int, num_kills: int
) -> tuple[Path, Path]:
    """Train twice, once with kills; the folders of both, whose logs and weights are the same."""
    whole, killed = folder / "whole", folder / "killed"
    uninterrupted = train(whole, *overrides)
    chance = random.Random(seed)
    half = num_steps // 2  # the last is behind a checkpoint, from which is gone on, in good time
    kills = [
        *sorted(chance.sample(range(1, half), num_kills - 1)),
        chance.randrange(half, 3 * num_steps // 4),
    ]
    exits = train_to_the_end(killed, overrides, kills)
    uninterrupted.join(ATTEMPT_S)
    assert (uninterrupted.exitcode, exits[-1]) == (0, 0), killed.with_suffix(".txt").read_text()
    assert exits.count(-9) >= num_kills // 2
    assert "resumed at step" in killed.with_suffix(".txt").read_text()
    assert "could not be restored" not in killed.with_suffix(".txt").read_text()
    assert logs(killed) == logs(whole)
    assert weights(killed) == weights(whole)
    return whole, killed


@pytest.mark.parametrize("case", list(cases()), ids=" ".join)
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, load: Load, case: tuple[str, ...]
) -> None:
    alg, *changes = case
    cfg = alone(alg)
    num_steps = 168 if cfg.env.get("pixels") else 480  # images take their time
    sizes = small(alg, tmp_path, batch_size=16, capacity=2 * num_steps // 3)  # the rings wrap round
    overrides = [*sizes, *changes, *lengths(num_steps, cfg.trainer.pace)]
    folders = compare(tmp_path, overrides, seed=" ".join(case), num_steps=num_steps, num_kills=4)
    one, other = (contents(folder, load, overrides) for folder in folders)
    assert one == other


EXAMPLES = [
    (
        *("classification", "network=mlp", "network.hidden_dims=[32]"),
        *("processor=augment", "trainer/schedule=cosine", "dataset.batch_size=30"),
        *("trainer.ema_decay=0.99", "trainer.accumulate=3", "alg.mixup_alpha=0.2"),
    ),
    (
        *("classification", "network=cnn", "network.channels=[8,16]"),
        *("network.dropout=0.1", "dataset.num_workers=2", "dataset.batch_size=50"),
    ),
]


def example_cases() -> Iterator[tuple[str, ...]]:
    """Classification in two cases, every other algorithm that collects nothing as it comes."""
    yield from EXAMPLES
    for alg in algs():
        if alg != "classification" and not collects(alone(alg)):
            yield (alg,)


@pytest.mark.parametrize("case", list(example_cases()), ids=" ".join)
def test_learning_from_what_is_there_ends_as_if_it_had_not_been_killed(
    tmp_path: Path, load: Load, case: tuple[str, ...]
) -> None:
    alg, *changes = case
    overrides = [*small(alg, tmp_path, batch_size=10, capacity=400), *changes]
    overrides += [
        "trainer.log_every=10",
        "trainer.checkpoints.every=40",
        "trainer.evaluation.episodes=1",
    ]
    cfg = load(*overrides)
    dataset = build(cfg.dataset, build(cfg.env), 0)
    per_epoch = dataset.batches_per_epoch
    num_steps = 5 * per_epoch if per_epoch else 150
    epochs, steps = ("5", "null") if per_epoch else ("null", num_steps)
    overrides += [f"trainer.total_epochs={epochs}", f"trainer.total_steps={steps}"]
    seed = " ".join(case)
    folders = compare(tmp_path, overrides, seed=seed, num_steps=num_steps, num_kills=2)
    one, other = (contents(folder, load, overrides) for folder in folders)
    assert one == other
    for folder in folders:
        state = load_checkpoint(folder / "checkpoints" / "last").state
        assert state["step"] == num_steps
        if isinstance(dataset, Examples):
            assert state["dataset"] == {"epoch": 5, "batch": 0}


def test_videos_change_nothing_of_a_run_whether_it_is_killed_or_not(tmp_path: Path) -> None:
    num_steps, sizes = 480, ["env.height=48", "env.width=64"]
    companions = small("td3", tmp_path, batch_size=16, capacity=320)
    overrides = [*companions, "env=cheetah", ENVS["cheetah"], "env.num_envs=2", *sizes]
    overrides += lengths(num_steps, alone("td3").trainer.pace)
    overrides += ["trainer.evaluation.every=80"]
    plain, filmed = tmp_path / "plain", tmp_path / "filmed"
    process = train(plain, *overrides)
    exits = train_to_the_end(filmed, [*overrides, "trainer.video_every=150"], [100, 220, 300])
    process.join(ATTEMPT_S)
    assert (process.exitcode, exits[-1]) == (0, 0), filmed.with_suffix(".txt").read_text()
    assert exits.count(-9) >= 2
    assert logs(filmed) == logs(plain)
    assert weights(filmed) == weights(plain)
    events = EventAccumulator(str(filmed), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("eval/video")] == [160, 320, 480]
    names = sorted(path.name for path in (filmed / "videos").iterdir())
    assert names == ["160.mp4", "320.mp4", "480.mp4"]
