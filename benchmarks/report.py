"""How long does a report take, and how much memory? A sweep of many runs with long logs.

The runs are made up, but their directories are as training leaves them, and their logs have as many
rows as asked for. Only a few logs are written; the runs share them by hard links.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
from hydra import compose, initialize_config_dir
from pyarrow.csv import WriteOptions, write_csv

from benchmarks.measure import RESULTS, ROOT, environment, spread, write_config
from research.files import write_whole
from research.hydra_versions import VERSION_BASE
from research.launchers.plan.ledger import Job, Plan
from research.status import Status
from research.training.saving.provenance import git_state, machine, write_provenance

TASKS = ("cheetah", "walker")
RATES = ("1e-4", "3e-4", "1e-3", "3e-3")
TAUS = ("0.001", "0.005", "0.01", "0.02", "0.05")
NUM_LOGS = 10
EVERY = 10
"""Steps between two rows of a log."""


def main() -> None:
    """Make the sweep, report it a few times, and write what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of each of 40 settings")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each log")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the sweep and the report here")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        sweep = work / "sweep"
        if not sweep.exists():
            make_sweep(sweep, options.seeds, options.rows)
        rounds = [measure(sweep, work / "report") for _ in range(options.rounds)]
        size = (work / "report.html").stat().st_size
    text = table(rounds, options.seeds, options.rows, size)
    write_whole(options.results / "report.md", text)
    print(text)


def make_sweep(folder: Path, num_seeds: int, num_rows: int) -> None:
    """A finished sweep over tasks, two hyperparameters and seeds."""
    folder.mkdir(parents=True)
    seeds = map(str, range(num_seeds))
    batch = [
        [f"env={task}", f"alg.optim.lr={rate}", f"alg.tau={tau}", f"seed={seed}"]
        for task, rate, tau, seed in product(TASKS, RATES, TAUS, seeds)
    ]
    plan = Plan(folder, command=["train.py", "-m"], config={})
    jobs = plan.add(batch, swept=("seed",), locate=lambda number, name, overrides: name)
    logs = [write_logs(folder / f".logs_{n}", n, num_rows) for n in range(NUM_LOGS)]
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        for job in jobs:
            make_run(job, logs[job.number % NUM_LOGS], num_rows * EVERY)


def make_run(job: Job, logs: Path, num_steps: int) -> None:
    """The directory of a completed run, its logs shared."""
    config = compose("config", ["name=report", *job.overrides], return_hydra_config=True)
    write_config(job.folder, config)
    write_provenance(job.folder, ["train.py", *job.overrides])
    for path in logs.iterdir():
        os.link(path, job.folder / path.name)
    status = Status(job.folder)
    status.start(total_steps=num_steps)
    status.update(step=num_steps, score=500.0, speed=100.0)
    status.end("completed", "reached total_steps")


def write_logs(folder: Path, seed: int, num_rows: int) -> Path:
    """Logs of evaluations, training and time, each with so many rows; their folder."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for name, columns in (
        ("eval", ("return", "length", "return_std")),
        ("train", ("critic_loss", "q", "target_q", "actor_loss")),
        ("time", ("environment", "sample", "update", "other", "steps_per_s")),
    ):
        rows = rising_columns(generator, columns, num_rows)
        with (folder / f"{name}.csv").open("wb") as file:
            file.write(",".join(rows).encode() + b"\n")
            write_csv(pa.table(rows), file, WriteOptions(include_header=False))
    return folder


def rising_columns(
    generator: np.random.Generator, names: Sequence[str], num_rows: int
) -> dict[str, np.ndarray]:
    """The columns of a log: those of every log, and curves that rise from 0 to 1, with noise."""
    steps = EVERY * np.arange(1, num_rows + 1)
    clock = dict.fromkeys(("step", "frames", "updates"), steps)
    clock |= {"epoch": np.zeros_like(steps), "seconds": steps / 100}
    level = 1 - np.exp(-3 * steps / steps[-1])
    return clock | {name: level + generator.normal(0, 0.05, num_rows) for name in names}


def measure(sweep: Path, out: Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time and peak gigabytes of one report, in a process of its own."""
    command = [sys.executable, "-m", "research.report", str(sweep), f"out={out}", "normalise=dmc"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(threads=1))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def table(
    rounds: list[tuple[float, float, float]], num_seeds: int, num_rows: int, size: int
) -> str:
    """The result as Markdown."""
    seconds, cpu_seconds, memory = zip(*rounds, strict=True)
    num_runs = len(TASKS) * len(RATES) * len(TAUS) * num_seeds
    git = git_state(ROOT)
    commit = str(git.get("commit", "none")) + (" and changes" if git.get("dirty") else "")
    return "\n".join(
        [
            f"# A report of {num_runs} runs, {num_rows:,} rows in each of their three logs",
            "",
            "`python -m benchmarks.report`; the logs were in the page cache. Where other programs "
            f"have the processors (load {os.getloadavg()[2]:.0f} on {os.cpu_count()} cores here), "
            "the CPU time is what a free one would take.",
            "",
            "| | median (minimum to maximum) |",
            "| --- | --- |",
            f"| seconds, {len(rounds)} rounds | {spread(seconds)} |",
            f"| seconds of CPU time | {spread(cpu_seconds)} |",
            f"| GB at the peak | {spread(memory)} |",
            f"| MB of the page | {size / 1e6:.2f} |",
            "",
            f"{machine()['cpu']}, {os.cpu_count()} cores, one thread; Python "
            f"{sys.version.split()[0]}, numpy {version('numpy')}, matplotlib "
            f"{version('matplotlib')}; commit {commit}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
