"""What does launching cost, and what do several training jobs at once gain?

Start-up: sweeps of short jobs, two at a time, by ours, by Hydra's joblib launcher and by the stock
submitit_local launcher, which gets fewer jobs because it waits a second between looks at them, two
at a time as a batch (it starts all the jobs of a batch at once). joblib runs many jobs in one
process, ours and submitit one process for each. Every sweep is a command of its own, the systems
take turns. ``first_s``: from the command to the first job; ``job_s``: wall time for each job after
that, with two at work; ``job_cpu_s``: CPU time for each, the command's own included; ``total_s``:
of as many jobs as ours got.

Throughput: environment steps per second, all jobs together, of TD3 on cheetah run, while they all
train. The cores are shared out in three ways: ``pinned`` as ours does, every job on its own CPUs
with as many threads; ``capped``, as many threads but no pins; ``free``, as if typed by hand, every
job with a thread for each core. With ``--gpu`` the jobs share one GPU instead, with and without
NVIDIA's MPS, pinned and capped. ``*_gain`` is against the smallest number of jobs, pinned,
``*_ratio`` against as many, pinned, in the same round. Keep the machine quiet meanwhile.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.launch_starts import LAUNCHERS, Starts, measure_starts, starts_report, versions
from benchmarks.launch_training import Rows, Training, measure_training, training_report
from benchmarks.measure import RESULTS, describe_machine, write_rows
from benchmarks.train_speed import summarised
from research.files import write_whole
from research.machine.gpus import usable_gpus
from research.training.saving.provenance import machine

QUICK = {"sweeps": 1, "jobs": 4, "submitit_jobs": 2, "rounds": 1, "window": 1.0, "settle": 50}


def main() -> None:
    """Measure, print, and write the tables."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    gpus = usable_gpus("auto") if arguments.gpu else None
    if arguments.gpu and not gpus:
        sys.exit("launch.py: --gpu needs a GPU, and there is none here")
    counts = arguments.counts or ((1, 2, 4, 8, 16) if gpus else (1, 2, 4))
    facts = machine_facts()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        results = folder if arguments.quick else arguments.results
        jobs = {**dict.fromkeys(LAUNCHERS, arguments.jobs), "submitit": arguments.submitit_jobs}
        starts = Starts(folder, jobs, arguments.sleep)
        if rows := measure_starts(starts, arguments.sweeps):
            report = starts_report(rows)
            write_report(results / "launch_start", rows, report, {**facts, "threads": 1})
        training = Training(folder, gpus[0] if gpus else None, arguments.settle, arguments.window)
        if rows := measure_training(training, counts, arguments.rounds):
            report = training_report(rows, training, counts)
            write_report(results / f"launch_{'gpu' if gpus else 'cpu'}", rows, report, facts)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=3, help="of each launcher; 0 to skip")
    parser.add_argument("--jobs", type=int, default=200, help="of a sweep")
    parser.add_argument("--submitit-jobs", type=int, default=20, help="of a sweep by submitit")
    parser.add_argument("--sleep", type=float, default=0.05, help="of a short job, in seconds")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput; 0 to skip")
    parser.add_argument("--counts", type=int, nargs="+", help="of training jobs at once")
    parser.add_argument("--window", type=float, default=12.0, help="of training, in seconds")
    parser.add_argument("--settle", type=int, default=100, help="steps with updates before it")
    parser.add_argument("--gpu", action="store_true", help="training jobs share the first GPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--quick", action="store_true", help="does it work? keeps no table")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    return arguments


def machine_facts() -> dict[str, object]:
    """Machine, versions and commit; how busy others kept the machine before."""
    facts: dict[str, object] = {**describe_machine(threads=0), **versions()}
    del facts["threads"]  # they differ
    gpus = machine().get("gpus")
    return {**facts, **({"gpus": gpus} if gpus else {}), "load": round(os.getloadavg()[0], 1)}


def write_report(path: Path, rows: Rows, lines: Iterable[str], facts: Mapping[str, object]) -> None:
    """Write the rows with the suffix csv, and the lines with md, which are printed too."""
    write_rows(path.with_suffix(".csv"), [{**row, **facts} for row in summarised(rows)])
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    text = "\n".join([*lines, "", told]) + "\n"
    write_whole(path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
