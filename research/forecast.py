"""The memory that a run will need, found by taking a few steps of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict

from research import config
from research.config import construct_part, to_plain
from research.rehearsal import INDIFFERENT, Task
from research.seeds import has_many_seeds, one_for_each_seed, seeds_of
from research.signals import StopRequest
from research.status import Status
from research.training.run import Run

UPDATES = 8
"""So many that each kind of two that take turns is made four times, by when graphs are captured."""

SHORTENED = {"trainer.evaluation.batches": 1, "trainer.devices": 1}
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


def forecast_memory(
    task: Task, cfg: DictConfig, folder: Path, *, elsewhere: bool = False
) -> Memory:
    """The memory that a run will take, or several seeds together; to be called in a fresh process.

    The run is begun, makes ``UPDATES`` updates, is evaluated and saved. To what that took is added
    what the rest of the run will store. Each rank counts as if it had whole batches.

    Args:
        task: trains what a config names.
        cfg: its config; it is changed.
        folder: an empty one, in place of the run directory.
        elsewhere: whether the run is for another machine; it is tried on a device of this one.

    Raises:
        Exception: any that the run would raise by then.

    """
    num_ranks = cfg.trainer.devices
    shorten(cfg)
    if elsewhere:
        cfg.device = "auto"
    if num_ranks > 1 and OmegaConf.select(cfg, "trainer.execution") == "auto":
        cfg.trainer.execution = "eager"
    trial, before = Trial(), config.builder
    config.builder = trial.build
    try:
        if has_many_seeds(cfg):
            try_seeds(task, cfg, folder)
        else:
            task(cfg, Run(folder, Status(folder), cfg.seed, to_plain(cfg)))
    finally:
        config.builder = before
    return Memory(num_ranks * (trial.taken + trial.to_be_stored), trial.reserved)


def try_seeds(task: Task, cfg: DictConfig, folder: Path) -> None:
    """Take the steps of the trial for every seed, in lockstep."""
    from research.training.lockstep import Seat, run_in_lockstep

    configs = {f"seed={each.seed}": each for each in one_for_each_seed(cfg)}

    def train(seat: Seat) -> float:
        (folder / seat.name).mkdir()
        status, own = Status(folder / seat.name), configs[seat.name]
        return task(own, Run(folder / seat.name, status, own.seed, to_plain(own), seat))

    with StopRequest() as stop:
        for seat in run_in_lockstep(train, list(configs), stop):
            if seat.error is not None:
                raise seat.error


def size(cfg: DictConfig) -> str:
    """Equal for runs that take as much memory: seeds, rates and other fractions may differ."""
    sized = {k: without_fractions(v) for k, v in to_plain(cfg).items() if k not in INDIFFERENT}
    return json.dumps([len(seeds_of(cfg)), sized])


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
    episodes, num_envs = "trainer.evaluation.episodes", OmegaConf.select(cfg, "env.num_envs") or 1
    if has(cfg, episodes):  # as many environments as the run evaluates in take memory
        changes[episodes] = min(OmegaConf.select(cfg, episodes), num_envs)
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
    """Builds the parts of runs, which train for a few updates.

    Attributes:
        taken: the most bytes in memory so far.
        to_be_stored: bytes that the rest of the runs will store.
        reserved: bytes on the GPU.

    """

    def __init__(self) -> None:
        self.taken = self.to_be_stored = self.reserved = 0

    def build(self, node: DictConfig, *collaborators: Any) -> Any:
        """Take the place of ``research.config.build``."""
        part = construct_part(node, *collaborators)
        return Tried(part, self) if node._get_full_key(None) == "trainer" else part


class Tried(NamedTuple):
    """Trains in place of a trainer."""

    trainer: Any
    trial: Trial

    def train(self) -> float:
        """Make the updates, and note the memory."""
        import torch

        from research.machine.memory import peak_bytes

        trainer, dataset, trial = self.trainer, self.trainer.dataset, self.trial
        score = trainer.train(UPDATES)
        trial.taken = peak_bytes()
        filled = min(1, trainer.total_steps / getattr(dataset, "capacity", 1))
        trial.to_be_stored += int(getattr(dataset, "memory_bytes", 0) * filled)
        if trainer.policy.device.type == "cuda":
            trial.reserved = torch.cuda.max_memory_reserved(trainer.policy.device)
        return score
