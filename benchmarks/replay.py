"""How fast is the replay buffer, and how small? Ours against those that others publish.

States of 17 numbers with actions of 6, and stacks of three 84x84 RGB frames in uint8, with n-step
1 and 3, in batches of 256 as PyTorch tensors on the CPU:

- ``sb3``: ``ReplayBuffer`` of Stable-Baselines3 with ``optimize_memory_usage``, which keeps an
  observation once; with n-step its ``NStepReplayBuffer``, which refuses that and keeps two.
- ``torchrl``: ``ReplayBuffer`` with ``LazyTensorStorage``, and ``torchrl_memmap`` with
  ``LazyMemmapStorage``; n-step by ``MultiStepTransform``. Without ``prefetch``, which was slower
  where it was tried (states 11,400 instead of 17,600 batches/s, pixels 64 instead of 67).
- ``cpprb``: two whole observations, its fastest form; ``cpprb_once`` has ``next_of``, and for
  pixels ``stack_compress``, which take the least memory and do not go with its n-step.
- ``ours``, and ``ours_disk`` with ``storage=disk``.

Every window is a process of its own, and the systems take turns. It first checks small batches,
the n-step sum included, against plain loops, and fails if a transition inside an episode is wrong.
Those that reach an episode's last step are not right in every system; the table says how many are.
SB3, where it keeps observations once, takes a truncation for a termination; with n-step, TorchRL
loses terminations, and cpprb next observations too. Such a system is timed all the same.

Then, from ready-made NumPy arrays, the first tenth of the episodes is added step by step, under
the clock, as a trainer of one environment does it; the rest as fast as the system can. Batches are
counted for some seconds. Bytes per transition are those of all arrays and tensors that the buffer
refers to, overlaps once, divided by the transitions held; a memory map counts like memory, with
the bytes of its file. The files are in the page cache.

``copy`` is what PyTorch can copy of pieces as large as a batch, which are in no cache, to one
place. Ours can pass it with pixels, since the two stacks of a transition share frames.

Keep the machine quiet meanwhile.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    RESULTS,
    ROOT,
    describe_machine,
    interleaved,
    run_python,
    write_rows,
)
from research.files import write_whole

SYSTEMS = ("copy", "ours", "ours_disk", "sb3", "torchrl", "torchrl_memmap", "cpprb", "cpprb_once")
OURS = ("ours", "ours_disk")
PEERS = ("torchrl", "tensordict", "cpprb")
CASES = {
    (kind, n_step): f"{kind}, n-step {n_step}" for kind in ("states", "pixels") for n_step in (1, 3)
}
WANTED = {"states": 2.0, "pixels": 1.7}
EPISODE_STEPS = 1000

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure, print, and write the tables."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    facts = {
        **describe_machine(threads=arguments.threads),
        **{name: metadata.version(name) for name in PEERS},
        "load": round(os.getloadavg()[0], 1),
    }
    arguments.disk.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        rows = with_ratios(list(measure(Path(folder), arguments)))
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    text = "\n".join([*report(rows, arguments), "", told]) + "\n"
    write_rows(arguments.results / "replay.csv", [{**row, **facts} for row in rows])
    write_whole(arguments.results / "replay.md", text)
    print(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--rounds", type=int, default=5, help="of every system and case")
    parser.add_argument("--seconds", type=float, default=2.0, help="of sampling in a window")
    parser.add_argument("--states", type=int, default=100_000, help="transitions held")
    parser.add_argument("--pixels", type=int, default=10_000, help="transitions held")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="those that are measured"
    )
    parser.add_argument(
        "--disk", type=Path, default=ROOT / "outputs", help="folder for files of the buffers"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    for name in ("states", "pixels"):
        if (size := vars(arguments)[name]) < 1 or size % EPISODE_STEPS:
            parser.error(f"--{name} must be a multiple of {EPISODE_STEPS} steps, got {size}")
    if min(arguments.rounds, arguments.threads) < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --threads must be at least 1, --seconds above 0")
    return arguments


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for every window."""
    windows = {
        f"{told}, {system}": (kind, n_step, system)
        for (kind, n_step), told in CASES.items()
        for system in arguments.systems
        if (n_step, system) != (3, "cpprb_once")
    }
    for index, window in interleaved(list(windows), arguments.rounds):
        kind, n_step, system = windows[window]
        report = folder / "report.json"
        with tempfile.TemporaryDirectory(dir=folder) as files:
            run_python(
                [
                    *(ROOT / "benchmarks/replay_process.py", system, kind, str(n_step)),
                    *(files, report, "--seconds", str(arguments.seconds)),
                    *("--episodes", str(vars(arguments)[kind] // EPISODE_STEPS)),
                    *("--steps", str(EPISODE_STEPS)),
                ],
                threads=arguments.threads,
                log=folder / "log",
            )
        found = json.loads(report.read_text())
        log.info("round %d: %s: %.0f batches/s", index, window, found["batches_per_s"])
        yield {"round": index, "kind": kind, "n_step": n_step, "system": system, **found}


def with_ratios(rows: Rows) -> Rows:
    """The rows, ours with their batches per second divided by the most that a peer had."""
    for row in rows:
        same = select(rows, **{name: row[name] for name in ("round", "kind", "n_step")})
        peers = [one["batches_per_s"] for one in same if one["system"] not in ("copy", *OURS)]
        if row["system"] in OURS and peers:
            row["ratio_to_best"] = row["batches_per_s"] / max(peers)
    return rows


def report(rows: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """Lines of Markdown."""
    yield "# Replay buffers"
    yield ""
    yield f"Batches of 256: median (minimum to maximum) of {arguments.rounds} rounds, in which the"
    yield f"systems took turns, with {arguments.threads} thread(s) each. They held"
    yield f"{arguments.states:,} transitions of states or {arguments.pixels:,} of pixels, in"
    yield f"episodes of {EPISODE_STEPS:,} steps. Ratios are of batches/s to the best peer's in the"
    yield "same round. Right at ends: the share of right ones among transitions that reach an"
    yield "episode's last step. What the systems are: `python -m benchmarks.replay --help`."
    for (kind, n_step), told in CASES.items():
        yield ""
        yield f"## {told[0].upper()}{told[1:]}: wanted is a ratio of {WANTED[kind]}"
        yield ""
        yield line(
            "system", "batches/s", "ratio", "added/s", "bytes per transition", "right at ends"
        )
        yield line(*["---"] * 6)
        for system in arguments.systems:
            if group := select(rows, kind=kind, n_step=n_step, system=system):
                yield line(system, *cells(group))


def cells(group: Rows) -> Iterator[str]:
    """The cells of a system's row; empty where there is nothing to tell."""
    formats = {
        "batches_per_s": lambda values: with_range(values, ",.0f"),
        "ratio_to_best": lambda values: with_range(values, ".2f"),
        "added_per_s": lambda values: with_range(values, ",.0f"),
        "bytes_per_transition": lambda values: f"{statistics.median(values):,.0f}",
        "right_at_ends": lambda values: f"{statistics.median(values):.0%}",
    }
    for name, told in formats.items():
        yield told([row[name] for row in group]) if name in group[0] else ""


def with_range(values: list[float], form: str) -> str:
    """``median (min to max)``."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def select(rows: Rows, **values: object) -> Rows:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def line(*parts: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(parts)} |"


if __name__ == "__main__":
    main()
