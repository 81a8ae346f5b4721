"""One process of ``checkpoint.py``: its memory is its own.

    python benchmarks/checkpoint_process.py ours save FOLDER REPORT --size 100000 --new 10000
    python benchmarks/checkpoint_process.py ours load FOLDER REPORT --size 100000

Both systems are TD3 on cheetah run after a few updates, so that Adam has its state. The buffers
are filled by their own ``add``, with random numbers in episodes of 1000 steps.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from stable_baselines3 import TD3
from stable_baselines3.common.logger import Logger

from benchmarks.measure import ROOT
from benchmarks.sb3 import make_model
from benchmarks.train_speed import ACTION_DIM, OBS_DIM
from research import batches
from research.config import build
from research.files import flush_file, flush_folder, write_whole
from research.hydra_versions import VERSION_BASE
from research.status import Status
from research.training.run import Run
from research.training.trainer import Trainer

EPISODE_STEPS = 1000
UPDATES = 4
NUM_DIFFERENT = 4096
"""Steps after which the same numbers come again."""


class Step(NamedTuple):
    """One step of one environment: arrays (1, A), (1,), (1,) and (1, O)."""

    action: np.ndarray
    reward: np.ndarray
    over: np.ndarray
    next_obs: np.ndarray


class System(Protocol):
    """What both are asked to do."""

    num_held: int

    def start(self) -> None:
        """Make everything but the environment; load the newest checkpoint if there is one."""
        ...

    def add(self, steps: Iterable[Step]) -> None:
        """Put steps into the buffer."""
        ...

    def learn(self) -> None:
        """Do what comes between the steps and the checkpoint."""
        ...

    def save(self) -> None:
        """Save a checkpoint."""
        ...

    def flush(self) -> None:
        """Bring it to the disk if saving did not."""
        ...


class Ours:
    """A trainer, built as in ``train.py``, that saves but does not train."""

    def __init__(self, cfg: DictConfig, env: SyncVectorEnv, folder: Path) -> None:
        self.cfg = cfg
        self.env = env
        self.folder = folder

    def start(self) -> None:
        cfg, env = self.cfg, self.env
        processor = build(cfg.processor, env.single_observation_space, env.single_action_space)
        alg = build(
            cfg.alg, build(cfg.network, processor.observation_space, processor.action_space)
        )
        self.dataset = build(cfg.dataset, env, cfg.seed)
        logger = build(cfg.logger, self.folder)
        run = Run(self.folder, Status(self.folder), cfg.seed, {})
        parts = alg, processor, self.dataset, env, lambda: env, logger, run
        self.trainer: Trainer = build(cfg.trainer, *parts)
        self.trainer.start()

    def add(self, steps: Iterable[Step]) -> None:
        no = np.array([False])
        for action, reward, over, next_obs in steps:
            self.dataset.add(batches.Step(action, reward, no, over, next_obs))
            if over:
                self.dataset.start_episodes(next_obs, over)
            self.trainer.step += 1

    def learn(self) -> None:
        for _ in range(UPDATES):
            self.trainer.learner.update(self.trainer.step, self.trainer.phases, can_prepare=False)
        means = self.trainer.learner.take_metrics()
        for group in ("train", "env", "time", "eval"):  # saving flushes the logs too
            self.trainer.logger.log(group, means, self.trainer.clock())

    def save(self) -> None:
        self.trainer.save(is_best=self.trainer.checkpoints.saved_step == 0)

    def flush(self) -> None:
        pass

    @property
    def num_held(self) -> int:
        """Transitions in the buffer."""
        return len(self.dataset)


class StableBaselines3:
    """Model and buffer in files named after the step, as by their ``CheckpointCallback``."""

    def __init__(self, cfg: DictConfig, env: SyncVectorEnv, folder: Path) -> None:
        self.cfg = cfg
        self.env = env.envs[0]
        self.folder = folder / "checkpoints"
        self.step = 0

    def start(self) -> None:
        if models := sorted(self.folder.glob("*.zip")):
            self.model = TD3.load(models[-1], env=self.env, device="cpu")
            self.model.load_replay_buffer(models[-1].with_suffix(".pkl"))
        else:
            self.folder.mkdir()
            self.model = make_model(self.cfg, [self.env])
            self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.buffer: Any = self.model.replay_buffer

    def add(self, steps: Iterable[Step]) -> None:
        for action, reward, over, next_obs in steps:
            info = {"TimeLimit.truncated": bool(over)}
            self.buffer.add(next_obs, next_obs, action, reward, over, [info])
            self.step += 1

    def learn(self) -> None:
        self.model.train(gradient_steps=UPDATES, batch_size=self.cfg.dataset.batch_size)
        for path in sorted(self.folder.iterdir())[:-2]:  # keep as many as ours does
            path.unlink()

    def save(self) -> None:
        path = self.folder / f"{self.step:010d}"
        self.model.save(path.with_suffix(".zip"))
        self.model.save_replay_buffer(path.with_suffix(".pkl"))

    def flush(self) -> None:
        for path in sorted(self.folder.iterdir())[-2:]:
            flush_file(path)
        flush_folder(self.folder)

    @property
    def num_held(self) -> int:
        """Transitions in the buffer."""
        return self.buffer.size()


SYSTEMS = {"ours": Ours, "sb3": StableBaselines3}


def main() -> None:
    """Save or load, and write the report: a list of what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system", choices=list(SYSTEMS))
    parser.add_argument("action", choices=["save", "load"])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("report", type=Path, help="JSON file that gets the result")
    parser.add_argument("--size", type=int, required=True, help="of the buffer")
    parser.add_argument("--new", type=int, nargs="+", default=[], help="steps before a save")
    parser.add_argument("--saves", type=int, default=1, help="after that many, each")
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    overrides = ["alg=td3", "env=cheetah", "device=cpu", "trainer.total_steps=1_000_000_000"]
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        cfg = compose("config", [*overrides, f"dataset.capacity={arguments.size}"])
    torch.optim.Adam([torch.zeros(1)])  # the first one imports for a second
    system = SYSTEMS[arguments.system](cfg, build(cfg.env), arguments.folder)
    if arguments.action == "save":
        rows = list(save(system, arguments.size, arguments.new, arguments.saves))
    else:
        rows = [load(system, arguments.size, arguments.folder)]
    disk_mb = sum(path.stat().st_size for path in files_in(arguments.folder)) / 1e6
    write_whole(arguments.report, json.dumps([{**row, "disk_mb": disk_mb} for row in rows]))


def save(
    system: System, size: int, news: Sequence[int], num_saves: int
) -> Iterator[dict[str, object]]:
    """A row for every checkpoint: the first when the buffer is full, then those after new steps."""
    system.start()
    steps = random_steps()
    for index, new in enumerate([size, *(new for new in news for _ in range(num_saves))]):
        system.add(islice(steps, new))
        system.learn()
        row = measure(system.save)
        flush_s = measure(system.flush)["seconds"]
        kind = "next" if index else "first"
        yield {"kind": kind, "new": new, **row, "on_disk_s": row["seconds"] + flush_s}


def load(system: System, size: int, folder: Path) -> dict[str, object]:
    """The row of a start from the last checkpoint, its files read from the disk."""
    for path in files_in(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    row = measure(system.start)
    # Ours keeps observations: of an episode it forgets one transition more than it holds rows.
    assert size - size // EPISODE_STEPS - 2 <= system.num_held <= size, system.num_held
    return {"kind": "load", **row}


def random_steps() -> Iterator[Step]:
    """Steps without end."""
    generator = np.random.default_rng(0)
    next_obs = generator.random((NUM_DIFFERENT, 1, OBS_DIM), np.float32)
    action = generator.random((NUM_DIFFERENT, 1, ACTION_DIM), np.float32)
    reward = generator.random((NUM_DIFFERENT, 1), np.float32)
    for number in count(1):
        index = number % NUM_DIFFERENT
        over = np.array([number % EPISODE_STEPS == 0])
        yield Step(action[index], reward[index], over, next_obs[index])


def measure(call: Callable[[], None]) -> dict[str, float]:
    """Seconds of a call, 1e6 bytes that it wrote, and 1e6 bytes of memory at most beyond before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or it would use what was freed without showing
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before, written = numbers_of("status")["VmRSS"], numbers_of("io")["wchar"]
    start = time.perf_counter()
    call()
    return {
        "seconds": time.perf_counter() - start,
        "written_mb": (numbers_of("io")["wchar"] - written) / 1e6,
        "peak_mb": (numbers_of("status")["VmHWM"] - before) * 1024 / 1e6,
    }


def numbers_of(name: str) -> dict[str, int]:
    """The numbers in a file of /proc/self; those of memory are in KiB."""
    text = Path("/proc/self", name).read_text()
    return {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}


def files_in(folder: Path) -> Iterator[Path]:
    """All regular files of the folder's checkpoints, none by way of a link."""
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


if __name__ == "__main__":
    main()
