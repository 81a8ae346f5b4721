"""Several seeds in one process against as many processes: seed-steps per second on all cores.

TD3 on cheetah run, from 600 updates on. One process with ``trainer.num_seeds`` has all threads;
the processes have an equal share of them. The ways take turns. Keep the machine quiet meanwhile.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import (
    RESULTS,
    ROOT,
    describe_machine,
    interleaved,
    read_rows,
    run_python,
    spread,
    write_rows,
)

WARMUP, FIRST, LAST, EVERY = 1000, 1600, 2400, 400
"""Random steps; those from which to which the speed is measured; between two rows of a log."""

WAYS = {
    "processes": ("eager", False),
    "compiled_processes": ("compile", False),
    "one_process": ("compile", True),
}

log = logging.getLogger(__name__)


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="of all processes together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    rows: list[dict[str, float]] = [{} for _ in range(arguments.rounds)]
    for index, way in interleaved(tuple(WAYS), arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            speed = measure(way, Path(folder), arguments.seeds, arguments.threads)
        rows[index][f"{way}_steps_per_s"] = speed
        log.info("round %d: %s %.1f seed-steps/s", index, way, speed)
    for row in rows:
        for way in ("one_process", "compiled_processes"):
            ratio = row[f"{way}_steps_per_s"] / row["processes_steps_per_s"]
            row[f"{way}_ratio"] = ratio
    facts = {"seeds": arguments.seeds, **describe_machine(threads=arguments.threads)}
    write_rows(arguments.results / "seeds.csv", [{**row, **facts} for row in rows])
    for column in rows[0]:
        print(f"  {column:32} {spread([row[column] for row in rows])}")


def measure(way: str, folder: Path, num_seeds: int, threads: int) -> float:
    """The sum of the seeds' speeds, in steps per second."""
    execution, is_one = WAYS[way]
    if is_one:
        train(folder / "run", threads, f"trainer.num_seeds={num_seeds}", execution=execution)
        folders = sorted((folder / "run").glob("seed=*")) or [folder / "run"]
    else:
        folders = [folder / str(seed) for seed in range(num_seeds)]
        with ThreadPoolExecutor(num_seeds) as pool:
            runs = [
                pool.submit(
                    train, each, max(1, threads // num_seeds), f"seed={seed}", execution=execution
                )
                for seed, each in enumerate(folders)
            ]
        for run in runs:
            run.result()
    return sum(map(speed_of, folders))


def train(folder: Path, threads: int, *overrides: str, execution: str) -> None:
    """A training run, as a process of its own."""
    common = (
        *("alg=td3", "env=cheetah", "device=cpu", f"trainer.execution={execution}"),
        *(f"trainer.total_steps={LAST}", f"trainer.pace.warmup_steps={WARMUP}"),
        *(f"trainer.log_every={EVERY}", "trainer.evaluation.episodes=1"),
        *(f"trainer.evaluation.every={LAST}", "trainer.checkpoints.every=null"),
    )
    command = [ROOT / "train.py", *common, *overrides, f"hydra.run.dir={folder}"]
    run_python(command, threads=threads, log=folder.with_suffix(".log"))


def speed_of(folder: Path) -> float:
    """Steps per second of a run, from its log."""
    rows: Sequence[dict[str, str]] = read_rows(folder / "time.csv")
    speeds = [float(row["steps_per_s"]) for row in rows if int(row["step"]) > FIRST]
    return statistics.harmonic_mean(speeds)


if __name__ == "__main__":
    main()
