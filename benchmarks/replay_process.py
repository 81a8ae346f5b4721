"""One window of ``benchmarks/replay.py``, in a process of its own: check, fill, and sample."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.replay_buffers import (
    GAMMA,
    Case,
    Episode,
    Ours,
    OursOnDisk,
    allocated_bytes,
    make_episode,
    numbers_of,
)
from benchmarks.replay_peers import Cpprb, CpprbOnce, StableBaselines3, TorchRL, TorchRLMemmap
from research.batches import Transition
from research.files import write_whole

BUFFERS = {
    "ours": Ours,
    "ours_disk": OursOnDisk,
    "sb3": StableBaselines3,
    "torchrl": TorchRL,
    "torchrl_memmap": TorchRLMemmap,
    "cpprb": Cpprb,
    "cpprb_once": CpprbOnce,
}
CHECK_STEPS, CHECK_EPISODES, CHECK_BATCHES = 20, 6, 8
POOL_BYTES = 2**28  # more than any cache holds
TIMED_SHARE = 10  # one in so many episodes is added step by step, under the clock


def main() -> None:
    """Measure one system and write a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=["copy", *BUFFERS])
    parser.add_argument("kind", choices=["states", "pixels"])
    parser.add_argument("n_step", type=int)
    parser.add_argument("folder", type=Path, help="for files of the buffers")
    parser.add_argument("report", type=Path)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of an episode")
    parser.add_argument("--seconds", type=float, required=True, help="of sampling")
    arguments = parser.parse_args()
    case = Case(arguments.kind, arguments.n_step)
    if arguments.system == "copy":
        report = {"batches_per_s": rate(make_copy(case.batch_bytes), arguments.seconds)}
    else:
        (arguments.folder / "check").mkdir(parents=True)
        report = measure(case, arguments)
    write_whole(arguments.report, json.dumps(report))


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row of the table says of one system."""
    system, num_episodes = BUFFERS[arguments.system], arguments.episodes
    right_at_ends = check(system, case, arguments.folder / "check")
    num_steps = num_episodes * arguments.steps
    buffer = system(case, num_steps, num_episodes, arguments.folder)
    # The same episode again and again: what is in it makes no difference to any of them.
    steps = buffer.prepare(make_episode(case.kind, arguments.steps, first=0, terminates=False))
    timed = max(1, num_episodes // TIMED_SHARE)
    start = time.perf_counter()
    for _ in range(timed):
        buffer.add_steps(steps)
    seconds = time.perf_counter() - start
    for _ in range(num_episodes - timed):
        buffer.add_episode(steps)
    return {
        "batches_per_s": rate(buffer.sample, arguments.seconds),
        "added_per_s": timed * arguments.steps / seconds,
        "bytes_per_transition": allocated_bytes(buffer) / num_steps,
        "right_at_ends": right_at_ends,
    }


def rate(function: Callable[[], object], seconds: float) -> float:
    """Calls per second, after a tenth of that time without the clock."""
    for duration in (seconds / 10, seconds):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < duration or count == 0:
            function()
            count += 1
    return count / spent


def make_copy(num_bytes: int) -> Callable[[], object]:
    """Copies so many bytes, each time others, which are in no cache, to the same place."""
    pool = torch.ones(max(2, POOL_BYTES // num_bytes), num_bytes, dtype=torch.uint8)
    target, sources, count = torch.empty_like(pool[0]), pool.unbind(), 0

    def copy() -> None:
        nonlocal count
        count += 1
        target.copy_(sources[count % len(sources)])

    return copy


def check(system: Any, case: Case, folder: Path) -> float:
    """The share of transitions that are right, of those that look at an episode's last step.

    Raises:
        ValueError: another one is wrong, or a batch has the wrong shape.

    """
    buffer = system(case, CHECK_STEPS * CHECK_EPISODES, CHECK_EPISODES, folder)
    truth: dict[int, tuple[Transition, bool]] = {}
    for index in range(CHECK_EPISODES):
        first = index * (CHECK_STEPS + 1)
        episode = make_episode(case.kind, CHECK_STEPS, first=first, terminates=index % 2 == 0)
        for start in range(CHECK_STEPS):
            truth[first + start] = expected(episode, start, case.n_step)
        steps = buffer.prepare(episode)
        (buffer.add_steps if index % 3 else buffer.add_episode)(steps)
    at_ends, inside = [], set()
    for _ in range(CHECK_BATCHES):
        batch = buffer.read(buffer.sample())
        for number, *parts in zip(numbers_of(batch.obs), *batch, strict=True):
            wanted, sees_end = truth[number]
            found = Transition(*parts)
            right = is_same(found, wanted)
            if sees_end:
                at_ends.append(right)
            elif not right:
                raise ValueError(f"{system.__name__}: expected {wanted}, got {found}")
            else:
                inside.add(number)
    if len(inside) < len(truth) / 2 or not at_ends:
        raise ValueError(f"{system.__name__} gave only {len(inside)} of {len(truth)} transitions")
    return sum(at_ends) / len(at_ends)


def expected(episode: Episode, start: int, n_step: int) -> tuple[Transition, bool]:
    """The transition that starts there, and whether its last step is the episode's."""
    stop = min(start + n_step, len(episode.actions))
    powers = [GAMMA**k for k in range(stop - start)]
    reward = sum(p * r[0] for p, r in zip(powers, episode.rewards[start:stop], strict=True))
    discount = 0.0 if episode.terminated[stop - 1][0] else GAMMA ** (stop - start)
    parts = (episode.obs[start], episode.actions[start], [reward], [discount], episode.obs[stop])
    found = Transition(*(torch.as_tensor(part)[0] for part in parts))
    return found, stop == len(episode.actions)


def is_same(found: Transition, wanted: Transition) -> bool:
    """Whether all that matters is the same; the next observation does not with a discount of 0."""
    counts = 4 if wanted.discount == 0 else 5
    return all(map(is_equal, found[:counts], wanted[:counts]))


def is_equal(found: Tensor, wanted: Tensor) -> bool:
    """Whether they have the same shape and numbers, and observations the same type."""
    same_type = found.dtype == wanted.dtype or wanted.ndim == 0
    return same_type and found.shape == wanted.shape and bool((found == wanted).all())


if __name__ == "__main__":
    main()
