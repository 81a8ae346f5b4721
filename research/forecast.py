"""The memory that a run will need, found by taking a few steps of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

from research import config
from research.config import construct_part, to_plain
from research.rehearsal import INDIFFERENT, Task
from research.status import Status
from research.training.run import Run

UPDATES = 16
"""So many that also the updates of every second step are captured, if any are."""

SHORTENED = {
    "trainer.evaluation.episodes": 1,
    "trainer.evaluation.batches": 1,
    "trainer.num_seeds": 1,
    "trainer.devices": 1,
    "resume": "auto",
}
"""What a trial of a run has less of than the run, by key."""

WARMUP_STEPS = 64
"""Of a trial."""

LOCAL_TRACKERS = ("csv", "tensorboard")
"""Those that write nowhere but into the run directory."""


class Memory(NamedTuple):
    """The most memory that a run takes.

    Attributes:
        host: bytes of its processes, without those of its environments.
        gpu: bytes that torch reserves on each of its GPUs; 0 without one.

    """

    host: int
    gpu: int


def forecast_memory(task: Task, cfg: DictConfig, folder: Path) -> Memory:
    """The memory that a run will take; to be called once in a fresh process.

    The run is begun, makes ``UPDATES`` updates, is evaluated and saved. To what that took is added
    what the rest of the run will store. Ranks and seeds count as if they shared only the libraries.

    Args:
        task: trains what a config names.
        cfg: its config; it is changed.
        folder: an empty one, in place of the run directory.

    Raises:
        Exception: any that the run would raise by then.

    """
    num_seeds, num_ranks = cfg.trainer.num_seeds, cfg.trainer.devices
    shorten(cfg)
    trial = Trial()
    config.builder = trial.build
    try:
        task(cfg, Run(folder, Status(folder), cfg.seed, to_plain(cfg)))
    finally:
        config.builder = construct_part
    own = trial.taken - trial.libraries + trial.to_be_stored
    return Memory(num_ranks * (trial.libraries + num_seeds * own), num_seeds * trial.reserved)


def size(cfg: DictConfig) -> str:
    """Equal for runs that take as much memory: seeds, rates and other fractions may differ."""
    return json.dumps(
        {k: without_fractions(v) for k, v in to_plain(cfg).items() if k not in INDIFFERENT}
    )


def without_fractions(tree: Any) -> Any:
    """A tree of dicts and lists with zero for every float."""
    if isinstance(tree, dict):
        return {key: without_fractions(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_fractions(value) for value in tree]
    return 0.0 if isinstance(tree, float) else tree


def shorten(cfg: DictConfig) -> None:
    """Let a run evaluate little, warm up quickly and tell nobody; its length stays."""
    total = OmegaConf.select(cfg, "trainer.total_steps")
    warmup = "trainer.pace.warmup_steps"
    changes: dict[str, Any] = dict(SHORTENED)
    if has(cfg, warmup):
        longest = OmegaConf.select(cfg, warmup)
        changes[warmup] = min(WARMUP_STEPS, total // 20 if longest is None else longest)
    if has(cfg, "logger.trackers"):
        trackers = OmegaConf.select(cfg, "logger.trackers")
        changes["logger.trackers"] = [name for name in trackers if name in LOCAL_TRACKERS]
    with open_dict(cfg):
        for key, value in changes.items():
            if has(cfg, key):
                OmegaConf.update(cfg, key, value)


def has(cfg: DictConfig, key: str) -> bool:
    """Whether a config has this key, with whatever value."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and name in node


class Trial:
    """Builds the parts of a run, and trains in place of its trainer.

    Attributes:
        libraries: bytes in memory before the data, the networks and the trainer were built.
        taken: the most bytes in memory until the end of the trial.
        to_be_stored: bytes that the rest of the run will store.
        reserved: bytes on the GPU.

    """

    def __init__(self) -> None:
        self.libraries = self.taken = self.to_be_stored = self.reserved = 0
        self.dataset: Any = None
        self.trainer: Any = None

    def build(self, node: DictConfig, *collaborators: Any) -> Any:
        """Take the place of ``research.config.build``."""
        from research.machine.memory import peak_bytes

        name = str(node._get_full_key(None))
        if name == "dataset":
            self.libraries = peak_bytes()
        part = construct_part(node, *collaborators)
        if name == "dataset":
            self.dataset = part
        if name != "trainer":
            return part
        self.trainer = part
        return self

    def train(self) -> float:
        """Take the place of ``Trainer.train``."""
        import torch

        from research.machine.memory import peak_bytes

        trainer = self.trainer
        score = trainer.train(UPDATES)
        self.taken = peak_bytes()
        filled = min(1, trainer.total_steps / getattr(self.dataset, "capacity", 1))
        self.to_be_stored = int(getattr(self.dataset, "memory_bytes", 0) * filled)
        if trainer.policy.device.type == "cuda":
            self.reserved = torch.cuda.max_memory_reserved(trainer.policy.device)
        return score
