"""What fills the replay buffers that are compared, our own among them, and their memory."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.lib.array_utils import byte_bounds
from torch import Tensor

from research.batches import Step, Transition
from research.datasets.replay.buffer import ReplayBuffer
from research.machine.device import choose_device

BATCH_SIZE = 256
OBS_DIM, ACTION_DIM, FRAME_STACK, FRAME_SHAPE = 17, 6, 3, (3, 84, 84)
STACK_SHAPE = (FRAME_STACK * FRAME_SHAPE[0], *FRAME_SHAPE[1:])
GAMMA = 0.5  # its powers are exact, so sums can be compared
SEED = 0


class Case(NamedTuple):
    """What is stored, ``states`` or ``pixels``, and how many rewards are summed."""

    kind: str
    n_step: int

    @property
    def obs_space(self) -> spaces.Box:
        """States (O,), or stacks of frames (S * C, H, W)."""
        if self.kind == "states":
            return spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32)
        return spaces.Box(0, 255, STACK_SHAPE, np.uint8)

    @property
    def action_space(self) -> spaces.Box:
        """Actions (A,)."""
        return spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    @property
    def batch_bytes(self) -> int:
        """Of a batch, with one number for reward and one for discount."""
        obs_bytes = int(np.prod(self.obs_space.shape)) * self.obs_space.dtype.itemsize
        return BATCH_SIZE * (2 * obs_bytes + 4 * (ACTION_DIM + 2))


class Episode(NamedTuple):
    """T steps of one environment; every array has a first dimension of 1, for that one.

    Attributes:
        obs: T + 1 of (1, O) or (1, S * C, H, W), the stacks overlapping in memory.
        actions: T of (1, A).
        rewards: T of (1,).
        terminated: T of (1,).
        truncated: T of (1,).

    """

    obs: list[np.ndarray]
    actions: list[np.ndarray]
    rewards: list[np.ndarray]
    terminated: list[np.ndarray]
    truncated: list[np.ndarray]

    def steps(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Obs, action, reward, terminated, truncated, next_obs of every step."""
        return zip(*self, self.obs[1:], strict=False)


def make_episode(kind: str, num_steps: int, *, first: int, terminates: bool) -> Episode:
    """An episode whose observations have the numbers from ``first`` on, and show them."""
    numbers = np.arange(first, first + num_steps + 1)
    if kind == "states":
        obs = (numbers[:, None] + np.arange(OBS_DIM)).astype(np.float32)[:, None]
    else:
        frames = make_frames(np.concatenate([numbers[:1].repeat(FRAME_STACK - 1), numbers]))
        obs = [frames[t : t + FRAME_STACK].reshape(1, *STACK_SHAPE) for t in range(len(numbers))]
    actions = (numbers[:-1, None] + np.arange(ACTION_DIM)).astype(np.float32)
    rewards = (numbers[:-1] % 7 - 3).astype(np.float32)
    is_last = np.arange(num_steps) == num_steps - 1
    ends = (is_last & terminates, is_last & (not terminates))
    columns = (actions[:, None], rewards[:, None], *(end[:, None] for end in ends))
    return Episode(list(obs), *map(list, columns))


def make_frames(numbers: np.ndarray) -> np.ndarray:
    """Frames (N, C, H, W); every pixel depends on the number (N,) and on where it is."""
    pixels = np.arange(np.prod(FRAME_SHAPE)).reshape(FRAME_SHAPE)
    return ((numbers[:, None, None, None] >> 8 * (pixels % 2)) + pixels).astype(np.uint8)


def numbers_of(obs: Tensor) -> list[int]:
    """The numbers of observations (B, ...)."""
    if obs.dtype == torch.float32:
        return obs[:, 0].long().tolist()
    low, high = obs[:, -FRAME_SHAPE[0], 0, :2].long().unbind(1)
    return (low + 256 * (high - 1)).tolist()


class Ours:
    """``ReplayBuffer``; it counts observations, of which an episode has one more than steps."""

    def __init__(self, case: Case, num_steps: int, num_episodes: int, folder: Path) -> None:
        self.single_observation_space, self.single_action_space = case.obs_space, case.action_space
        choose_device("cpu")  # as every run begins: freed memory is used again
        self.num_envs = 1
        self.metadata = {"frame_stack": FRAME_STACK if case.kind == "pixels" else 1}
        self.buffer = ReplayBuffer(
            self,
            SEED,
            capacity=num_steps + num_episodes,
            batch_size=BATCH_SIZE,
            discount=GAMMA,
            n_step=case.n_step,
            device="cpu",
            storage=self.storage(folder),
        )
        self.sample = self.buffer.sample

    def storage(self, folder: Path) -> Literal["ram", "disk"]:
        return "ram"

    def prepare(self, episode: Episode) -> list[Any]:
        steps = [Step(a, r, end, cut, after) for _, a, r, end, cut, after in episode.steps()]
        return [(episode.obs[0], np.ones(1, np.bool_)), *steps]

    def add_steps(self, prepared: list[Any]) -> None:
        self.buffer.start_episodes(*prepared[0])
        for step in prepared[1:]:
            self.buffer.add(step)

    add_episode = add_steps

    def read(self, batch: Any) -> Transition:
        return batch


class OursOnDisk(Ours):
    """The same in a temporary file."""

    def storage(self, folder: Path) -> Literal["ram", "disk"]:
        tempfile.tempdir = str(folder)
        return "disk"


def allocated_bytes(root: object) -> int:
    """Bytes of memory, or of a mapped file, under all arrays and tensors that ``root`` refers to.

    The spaces that describe an environment do not count.
    """
    passed = (type, ModuleType, FunctionType, BuiltinFunctionType, spaces.Space)
    ranges, seen, waiting = [], set(), [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, passed):
            continue
        seen.add(id(found))
        if isinstance(found, (np.ndarray, Tensor)):
            ranges.append(byte_bounds(np.asarray(found)))
        else:
            waiting += gc.get_referents(found)
    total = last = 0
    for start, stop in sorted(ranges):
        total += max(0, stop - max(start, last))
        last = max(last, stop)
    return total
