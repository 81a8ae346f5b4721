"""Does a sweep survive ``kill -9``? Rounds in which one is killed somewhere, and typed again.

A round is a sweep in a fresh directory. Its command is typed; at a random moment (of its time, or
right after a random change to its files) a random one of its processes is killed: the command
itself, a job, the guard, or under SLURM the pool in an allocation; or the command is typed a second
time beside the first. Some rounds do so up to three times. Then the command is typed undisturbed,
and once more. From what jobs, files and processes left it is checked that every job of the plan
completed exactly once, that none was lost, run twice or renumbered, that exit codes told the truth,
and that no process is left over.

Most rounds sweep a small Hydra app whose jobs keep a journal; some sweep ``train.py``, some the
app under SLURM on a private cluster, two jobs to an allocation. The three kinds run side by side.
"""

import argparse
import itertools
import logging
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chaos_round import Blow, Round
from benchmarks.chaos_sweeps import (
    Sweep,
    private_cluster,
    slurm_sweep,
    small_sweep,
    training_sweep,
)
from benchmarks.measure import RESULTS, describe_machine, write_rows
from research.files import write_whole

COLUMNS = ("sweep", "blow", "rounds", "blows", "longest until all processes ended", "problems")
log = logging.getLogger(__name__)


def main() -> None:
    """Run the rounds, print them, write the tables, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="of the small app")
    parser.add_argument("--training", type=int, default=5, help="further rounds of train.py")
    parser.add_argument("--slurm", type=int, default=20, help="further rounds under SLURM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--keep", type=Path, help="folder for the sweeps; default: none is kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        cases = [(small_sweep(), arguments.rounds), (training_sweep(), arguments.training)]
        if arguments.slurm:
            cases.append((slurm_sweep(stack.enter_context(private_cluster())), arguments.slurm))
        with ThreadPoolExecutor() as threads:
            running = [
                threads.submit(run_rounds, sweep, folder / sweep.name, rounds, arguments.seed)
                for sweep, rounds in cases
                if rounds
            ]
        done = [round_ for each in running for round_ in each.result()]
    write_tables(done, describe_machine(threads=1), arguments.results)
    sys.exit(any(round_.problems for round_ in done))


def run_rounds(sweep: Sweep, folder: Path, rounds: int, seed: int) -> list[Round]:
    """Rounds with one to three blows each; one whose first blow came too late is drawn again."""
    folder.mkdir()
    rehearse(sweep, folder / "rehearsal")
    done: list[Round] = []
    for attempt in itertools.count():
        if len(done) == rounds:
            return done
        rng = random.Random(f"{seed} {sweep.name} {attempt}")
        round_ = Round(sweep, folder / str(attempt))
        round_.run([draw_blow(sweep, rng) for _ in range(rng.choice((1, 1, 2, 3)))])
        if round_.blows or round_.problems:
            done.append(round_)
            values = " | ".join(map(str, as_row(round_).values()))
            log.info("%s", "\n    ".join([f"{len(done)} | {values}", *round_.problems]))
    raise AssertionError


def rehearse(sweep: Sweep, folder: Path) -> None:
    """Run a sweep without a blow; the others learn from it when to strike."""
    rehearsal, never = Round(sweep, folder), Blow("command", 0.0, sys.maxsize, True, 0.0)
    rehearsal.folder.mkdir()
    start = time.monotonic()
    rehearsal.type(never)
    sweep.duration_s, sweep.changes = time.monotonic() - start, never.changes
    rehearsal.require_nothing_left()
    rehearsal.judge()
    rehearsal.judge_jobs()
    if rehearsal.problems:
        raise RuntimeError(f"undisturbed: {rehearsal.problems}")


def draw_blow(sweep: Sweep, rng: random.Random) -> Blow:
    """A random target at a random moment, half of the time right after a change to the files."""
    often = ["command", *(name for name in sweep.targets if name != "guard")]  # it is always there
    target = rng.choice([*often * 3, "guard", "twin"])
    waits, choice = rng.random() < 0.5, rng.random()
    if rng.random() < 0.5:
        return Blow(target, rng.uniform(0, 0.03), rng.randrange(sweep.changes), waits, choice)
    return Blow(target, rng.uniform(0, sweep.duration_s), None, waits, choice)


def as_row(round_: Round) -> dict[str, object]:
    """A round as a row of the table."""
    ends = ["killed" if status is None else str(status) for status in round_.statuses]
    return {
        "sweep": round_.sweep.name,
        "blows": " ".join(round_.blows),
        "ends": " ".join(ends),
        "longest_to_end_s": round(round_.to_end_s, 3),
        "problems": len(round_.problems),
    }


def write_tables(rounds: Sequence[Round], facts: Mapping[str, str | int], folder: Path) -> None:
    """Write ``chaos.csv``, a row for each round, and ``chaos.md``, which is printed too."""
    write_rows(folder / "chaos.csv", [{**as_row(each), **facts} for each in rounds])
    problems = sum(len(each.problems) for each in rounds)
    lines = [
        f"# {len(rounds)} rounds of chaos, {problems} problems",
        "\n" + " ".join((__doc__ or "").partition("\n\n")[2].split()) + "\n",
        *(f"| {' | '.join(cells)} |" for cells in summary(rounds)),
        "\n" + ", ".join(f"{name} {value}" for name, value in facts.items()),
    ]
    text = "\n".join(lines) + "\n"
    write_whole(folder / "chaos.md", text)
    print(text, end="")


def summary(rounds: Sequence[Round]) -> list[Sequence[str]]:
    """A row for each sweep and blow."""
    table: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS)]
    hit = {(each.sweep.name, blow): None for each in rounds for blow in sorted(each.blows)}
    for name, blow in hit:
        those = [each for each in rounds if each.sweep.name == name and blow in each.blows]
        count = sum(each.blows.count(blow) for each in those)
        longest = max(each.to_end_s for each in those)
        problems = sum(len(each.problems) for each in those)
        table.append([name, blow, str(len(those)), str(count), f"{longest:.2f} s", str(problems)])
    return table


if __name__ == "__main__":
    main()
