"""What does a checkpoint cost that a run goes on from exactly, replay buffer included?

Checkpoints of TD3 on cheetah run (17 + 6 numbers a transition, networks of 256x256 with Adam's
state) with a full replay buffer, against ``save`` and ``save_replay_buffer`` of Stable-Baselines3.
Ours are made by the trainer: files written whole and flushed to the disk, older ones deleted, and
of the buffer only what is new since the checkpoint before. Theirs are of the whole buffer, without
the open episode and the random generators, and go to the page cache: they are also timed until
they are on the disk. Loading makes everything but the environment in a fresh process that has
imported what it needs; the files are not in the page cache.

The share of training is measured in runs of ``train.py``, from the first checkpoint after the
warm-up on, as the sum over the rows of ``time.csv``, of the time without evaluations; and for other
buffers worked out from the speed of these runs without checkpoints.

The systems take turns, every turn in fresh processes. Keep the machine quiet meanwhile. Linux only.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from research.files import write_whole
from research.training.records.clock import Clock

NAMES = {"ours": "ours", "sb3": "Stable-Baselines3"}
SAVED = ("seconds", "seconds until on the disk", "MB written")
PERIODS = 3
"""Steps of a training, in periods; the first is the warm-up."""

QUICK = {"period": 500, "others": [100], "rounds": 1, "saves": 2, "trainings": 1}

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure, print, and write the tables."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments.disk.mkdir(parents=True, exist_ok=True)
    facts = {
        **describe_machine(threads=arguments.threads),
        "file_system": file_system(arguments.disk),
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory(dir=arguments.disk) as temporary:
        folder = Path(temporary)
        trainings = measure_training(folder, arguments)
        rows = measure_checkpoints(folder, arguments)
        told = ", ".join(f"{name} {value}" for name, value in facts.items())
        text = "\n".join([*report(rows, trainings, arguments), "", told]) + "\n"
        if not arguments.quick:
            table = [{**row, **facts} for row in trainings + rows]
            write_rows(arguments.results / "checkpoint.csv", table)
            write_whole(arguments.results / "checkpoint.md", text)
    print(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of the buffer"
    )
    parser.add_argument("--period", type=int, default=10_000, help="steps between checkpoints")
    parser.add_argument(
        "--others", type=int, nargs="+", default=[1000, 100_000], help="other periods of ours"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of every system and size")
    parser.add_argument("--saves", type=int, default=5, help="of a round, for every period")
    parser.add_argument("--trainings", type=int, default=3, help="whose checkpoints are timed")
    parser.add_argument(
        "--disk", type=Path, default=ROOT / "outputs", help="folder on the disk that is measured"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--quick", action="store_true", help="does it work? keeps no table")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK, sizes=[1000, 20_000])
    if arguments.period > min(arguments.sizes) or min(arguments.rounds, arguments.trainings) < 1:
        parser.error("--sizes must be at least --period, --rounds and --trainings at least 1")
    return arguments


def file_system(folder: Path) -> str:
    """The type of the file system that ``folder`` is on."""
    done = subprocess.run(
        ["df", "--output=fstype", folder], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


def measure_training(folder: Path, arguments: argparse.Namespace) -> Rows:
    """One row for each training: seconds of a checkpoint, their share, speed without them."""
    period, rows = arguments.period, []
    for index in range(arguments.trainings):
        run_dir = folder / f"training-{index}"
        overrides = (
            *("alg=td3", "env=cheetah", "device=cpu", f"seed={index}", f"hydra.run.dir={run_dir}"),
            f"trainer.total_steps={PERIODS * period}",
            f"trainer.pace.warmup_steps={period}",
            f"trainer.log_every={period // 10}",
            *(f"trainer.evaluation.every={period}", "trainer.evaluation.episodes=1"),
            f"trainer.checkpoints.every={period}",
        )
        run_python([ROOT / "train.py", *overrides], threads=arguments.threads, log=folder / "log")
        spent = seconds_of_phases(run_dir / "time.csv", after=period)
        training_s = sum(spent.values()) - spent["evaluate"]
        row = {
            "kind": "training",
            "round": index,
            "seconds": spent["checkpoint"] / (PERIODS - 1),
            "share": spent["checkpoint"] / training_s,
            "steps_per_s": (PERIODS - 1) * period / (training_s - spent["checkpoint"]),
        }
        log.info("training %d: %s", index, row)
        rows.append(row)
    return rows


def seconds_of_phases(path: Path, *, after: int) -> dict[str, float]:
    """What each phase took since the row of step ``after``."""
    rows = [{name: float(cell or 0) for name, cell in row.items()} for row in read_rows(path)]
    phases = [name for name in rows[0] if name not in (*Clock._fields, "steps_per_s")]
    spent = dict.fromkeys(phases, 0.0)
    for before, row in pairwise(row for row in rows if row["step"] >= after):
        for name in phases:
            spent[name] += row[name] * (row["seconds"] - before["seconds"])
    return spent


def measure_checkpoints(folder: Path, arguments: argparse.Namespace) -> Rows:
    """One row for every save and load."""
    rows: Rows = []
    cases = {f"{name} {size}": (name, size) for size in arguments.sizes for name in NAMES}
    for index, case in interleaved(list(cases), arguments.rounds):
        name, size = cases[case]
        others = [new for new in arguments.others if new <= size] if name == "ours" else []
        news = sorted({arguments.period, *others})
        for action in ("save", "load"):
            run_python(
                [
                    *(ROOT / "benchmarks/checkpoint_process.py", name, action),
                    *(folder / "run", folder / "report.json", "--size", str(size)),
                    *("--saves", str(arguments.saves), "--new", *map(str, news)),
                ],
                threads=arguments.threads,
                log=folder / "log",
            )
            found = json.loads((folder / "report.json").read_text())
            rows += [{"round": index, "system": name, "size": size, **row} for row in found]
            log.info("round %d: %s, %s: %.3f s", index, case, action, found[-1]["seconds"])
        shutil.rmtree(folder / "run")
    return rows


def report(rows: Rows, trainings: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """Lines of Markdown."""
    period, rounds, saves = arguments.period, arguments.rounds, arguments.saves
    speed = statistics.median(column(trainings, "steps_per_s"))
    yield "# Checkpoints of TD3 on cheetah run with a full replay buffer"
    yield ""
    yield f"Median (minimum to maximum) of {rounds} rounds, each of {saves} saves of a kind, one"
    yield "of all transitions, and one load; the systems took turns. MB are 1e6 bytes, memory is"
    yield "the most at a time beyond that of before. Stable-Baselines3 writes the whole buffer"
    yield "at every save and does not wait for the disk. The share of training is the median of the"
    yield f"seconds in the time that the new transitions take at {speed:.0f} steps per second."
    yield ""
    yield from save_table(rows, arguments.sizes, speed)
    yield ""
    yield "Loading. On the disk are the last two checkpoints, and weights and state of our best."
    yield ""
    yield from load_table(rows, arguments.sizes)
    yield ""
    yield f"Ours to Stable-Baselines3's, medians within a round, after {period:,} new transitions:"
    yield ""
    yield from ratio_table(rows, arguments.sizes, period)
    yield ""
    percents = [100 * share for share in column(trainings, "share")]
    yield f"Runs of train.py ({len(trainings)}) of {PERIODS * period:,} steps, {period:,} of them"
    yield f"random, with a checkpoint every {period:,}: each took"
    yield f"{cells_of(trainings, 'seconds')[0]} s, all {spread(percents)} % of the time without"
    yield "evaluations."


def save_table(rows: Rows, sizes: Sequence[int], speed: float) -> Iterator[str]:
    """A line for each size, system and number of new transitions."""
    yield from header("held", "new", "system", *SAVED, "MB of memory", "share of training")
    for size in sizes:
        saved = [row for row in select(rows, size=size) if row["kind"] != "load"]
        for name, kind, new in sorted({(row["system"], row["kind"], row["new"]) for row in saved}):
            group = select(saved, system=name, kind=kind, new=new)
            cells = cells_of(group, "seconds", "on_disk_s", "written_mb", "peak_mb")
            share = statistics.median(column(group, "seconds")) * speed / new
            ends = (f"{new:,}", f"{share:.2%}") if kind == "next" else ("all", "")
            yield line(f"{size:,}", ends[0], NAMES[name], *cells, ends[1])


def load_table(rows: Rows, sizes: Sequence[int]) -> Iterator[str]:
    """A line for each size and system."""
    yield from header("held", "system", "seconds", "MB of memory", "MB on the disk")
    for size in sizes:
        for name, told in NAMES.items():
            group = select(rows, size=size, system=name, kind="load")
            yield line(f"{size:,}", told, *cells_of(group, "seconds", "peak_mb", "disk_mb"))


def ratio_table(rows: Rows, sizes: Sequence[int], period: int) -> Iterator[str]:
    """A line for each size."""
    yield from header("held", *SAVED, "seconds to load")
    for size in sizes:
        group = select(rows, size=size, kind="next", new=period)
        cells = [ratios(group, name) for name in ("seconds", "on_disk_s", "written_mb")]
        loads = ratios(select(rows, size=size, kind="load"), "seconds")
        yield line(f"{size:,}", *cells, loads)


def header(*titles: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield line(*titles)
    yield line(*["---"] * len(titles))


def line(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def select(rows: Rows, **values: object) -> Rows:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]


def column(rows: Rows, name: str) -> list[float]:
    """The numbers of this name."""
    return [row[name] for row in rows]


def cells_of(rows: Rows, *names: str) -> list[str]:
    """The spreads of the numbers of these names."""
    return [spread(column(rows, name)) for name in names]


def ratios(rows: Rows, name: str) -> str:
    """Spread over the rounds of the ratio of both medians."""
    return spread(
        [
            statistics.median(column(select(rows, round=index, system="ours"), name))
            / statistics.median(column(select(rows, round=index, system="sb3"), name))
            for index in sorted({row["round"] for row in rows})
        ]
    )


if __name__ == "__main__":
    main()
