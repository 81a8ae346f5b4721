"""What does launching cost, and what do several training jobs at once gain?

Start-up: sweeps of short jobs, two at a time, by ours, by Hydra's joblib launcher and by the stock
submitit_local launcher, which get fewer jobs because it waits a second between looks at them, two
at a time as a batch (it starts all the jobs of a batch at once). joblib runs many jobs in one
process, ours and submitit one process for each. Every sweep is a command of its own, the systems
take turns. ``first_s``: from the command to the first job; ``job_s``: wall time for each job after
that, with two at work; ``job_cpu_s``: CPU time for each, the command's own included.

Throughput: environment steps per second, all jobs together, of TD3 on cheetah run, while they all
train. The cores are shared out in three ways: ``pinned`` as ours does, every job on its own CPUs
with as many threads; ``capped``, as many threads but no pins; ``free``, as if typed by hand, every
job with a thread for each core. With ``--gpu`` the jobs share one GPU instead, with and without
NVIDIA's MPS, pinned and capped. ``*_gain`` is against the smallest number of jobs, ``*_ratio``
against ``pinned``, in the same round. Keep the machine quiet meanwhile.
"""

import argparse
import logging
import os
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from benchmarks.measure import (
    RESULTS,
    ROOT,
    THREAD_VARIABLES,
    describe_machine,
    interleaved,
    read_rows,
    run_python,
    spread,
    write_rows,
)
from benchmarks.train_speed import summarised
from research.launchers.cpus import usable_cpus
from research.launchers.gpus import slot_environment, usable_gpus
from research.launchers.mps import mps_daemon
from research.launchers.process import Process, make_call
from research.launchers.slots import Slot, make_slots

WORKERS = 2
WARMUP_STEPS = 1000
SLOWEST_S = 300.0
"""How long jobs may take to be in full swing, and for a row of their logs."""

LAUNCHERS: Mapping[str, Sequence[str]] = {
    "ours": (
        *("hydra/launcher=local", "hydra/sweeper=grid"),
        *(f"hydra.launcher.max_jobs={WORKERS}", "hydra.launcher.stagger_s=0"),
    ),
    "joblib": ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}"),
    "submitit": ("hydra/launcher=submitit_local", f"hydra.sweeper.max_batch_size={WORKERS}"),
}
PACKAGES: Sequence[str] = (
    *("hydra-core", "hydra-joblib-launcher"),
    *("hydra-submitit-launcher", "submitit"),
)
APP = """
import time
from pathlib import Path
import hydra
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store(name="config", node={"number": 0, "sleep_s": 0.0, "marks": ""})


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    (Path(cfg.marks) / str(cfg.number)).write_text(repr(time.time()))
    time.sleep(cfg.sleep_s)


main()
"""

log = logging.getLogger(__name__)
Rows = list[dict[str, float]]


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=5, help="of each launcher; 0 to skip")
    parser.add_argument("--jobs", type=int, default=200, help="of a sweep")
    parser.add_argument("--submitit-jobs", type=int, default=20, help="of a sweep by submitit")
    parser.add_argument("--sleep", type=float, default=0.05, help="of a short job, in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="of throughput; 0 to skip")
    parser.add_argument("--counts", type=int, nargs="+", help="of training jobs at once")
    parser.add_argument("--window", type=float, default=30.0, help="of training, in seconds")
    parser.add_argument("--settle", type=int, default=300, help="steps with updates before it")
    parser.add_argument("--gpu", action="store_true", help="training jobs share the first GPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    gpus = usable_gpus("auto") if arguments.gpu else None
    if arguments.gpu and not gpus:
        sys.exit("launch.py: --gpu needs a GPU, and there is none here")
    counts = arguments.counts or ((1, 2, 4, 8, 16) if gpus else (1, 2, 4))
    facts = {**describe_machine(threads=0), **versions()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jobs = {**dict.fromkeys(LAUNCHERS, arguments.jobs), "submitit": arguments.submitit_jobs}
        starts = Starts(folder, jobs, arguments.sleep)
        training = Training(folder, gpus[0] if gpus else None, arguments.settle, arguments.window)
        name = "launch_gpu.csv" if gpus else "launch_cpu.csv"
        tables = {
            "launch_start.csv": measure_starts(starts, arguments.sweeps),
            name: measure_training(training, counts, arguments.rounds),
        }
    for name, rows in tables.items():
        if rows:
            write_rows(arguments.results / name, [{**row, **facts} for row in summarised(rows)])
            print(f"\n{name}: median (minimum to maximum) of {len(rows)}")
            for column in rows[0]:
                print(f"  {column:28} {spread([row[column] for row in rows])}")
    print(f"\n{', '.join(f'{name} {value}' for name, value in facts.items())}")


def versions() -> dict[str, str]:
    """Of the launchers."""
    found = dict.fromkeys(PACKAGES, "none")
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Starts:
    """Times sweeps of short jobs.

    Args:
        folder: for what they leave.
        jobs: of a sweep, by launcher.
        sleep_s: of each job.

    """

    def __init__(self, folder: Path, jobs: Mapping[str, int], sleep_s: float) -> None:
        self.folder = folder
        self.jobs = jobs
        self.sleep_s = sleep_s
        self.app = folder / "app.py"
        self.app.write_text(APP)

    def time(self, launcher: str) -> dict[str, float]:
        """Run one sweep, and see that all its jobs have run."""
        folder, jobs = Path(tempfile.mkdtemp(dir=self.folder)), self.jobs[launcher]
        (folder / "marks").mkdir()
        overrides = (
            *LAUNCHERS[launcher],
            *(f"number=range(0,{jobs})", f"sleep_s={self.sleep_s}", f"marks={folder / 'marks'}"),
            f"hydra.sweep.dir={folder / 'sweep'}",
        )
        cpu, start = child_cpu_s(), time.time()
        run_python([self.app, "-m", *overrides], threads=1, log=folder / "log")
        total, cpu = time.time() - start, child_cpu_s() - cpu
        begun = [float(mark.read_text()) for mark in (folder / "marks").iterdir()]
        if len(begun) != jobs:
            raise RuntimeError(f"{launcher} ran {len(begun)} of {jobs} jobs, see {folder / 'log'}")
        first = min(begun) - start
        return {
            "first_s": first,
            "total_s": total,
            "job_s": (total - first) / jobs,
            "job_cpu_s": cpu / jobs,
        }


def measure_starts(starts: Starts, sweeps: int) -> Rows:
    """One row for each round of sweeps."""
    rows: Rows = [{} for _ in range(sweeps)]
    for index, launcher in interleaved(list(LAUNCHERS), sweeps):
        result = starts.time(launcher)
        rows[index][f"{launcher}_jobs"] = starts.jobs[launcher]
        rows[index] |= {f"{launcher}_{name}": value for name, value in result.items()}
        log.info("sweep %d: %s %s", index, launcher, result)
    for row in rows:
        for other in [name for name in LAUNCHERS if name != "ours"]:
            row[f"job_s_ratio_to_{other}"] = row["ours_job_s"] / row[f"{other}_job_s"]
    return rows


def child_cpu_s() -> float:
    """CPU seconds of all child processes that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Training:
    """Times training jobs that run at once.

    Args:
        folder: for what they leave.
        gpu: the GPU that all share; None trains on the CPU.
        settle: steps with updates before the window.
        window_s: how long they are timed.

    """

    def __init__(self, folder: Path, gpu: str | None, settle: int, window_s: float) -> None:
        self.folder = folder
        self.gpu = gpu
        self.settle = settle
        self.window_s = window_s

    def steps_per_s(self, jobs: int, way: str) -> float:
        """Of all jobs together, in the window in which all are in full swing."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        processes: list[Process] = []
        with mps_daemon() if way.startswith("mps") else nullcontext({}) as variables:
            try:
                for slot in self.slots(jobs, way):
                    processes.append(self.start(folder / str(slot.number), slot, variables))
                return self.time([folder / str(number) for number in range(jobs)], processes)
            finally:
                for process in processes:
                    process.kill()
                    wait_for(process.has_ended, 30.0)

    def slots(self, jobs: int, way: str) -> list[Slot]:
        """A slot for each job; the launcher's own if they are pinned."""
        cpus = usable_cpus("auto")
        slots = make_slots(
            cpus=cpus, gpus=[self.gpu or ""], jobs_per_gpu=jobs, cpus_per_job=None, max_jobs=None
        )
        if way.endswith("pinned"):
            return slots
        threads = len(cpus) if way.endswith("free") else slots[0].threads
        return [slot._replace(cpus=(), threads=threads) for slot in slots]

    def start(self, folder: Path, slot: Slot, variables: Mapping[str, str]) -> Process:
        """Start a job in its slot, as the launcher does."""
        overrides = (
            *("alg=td3", "env=cheetah", f"seed={slot.number}", f"hydra.run.dir={folder}"),
            *(f"device={'cuda' if self.gpu else 'cpu'}", "trainer.log_every=50"),
            *(f"trainer.collector.warmup_steps={WARMUP_STEPS}", "trainer.eval_every=1_000_000"),
            "trainer.checkpoint_every=1_000_000",
        )
        free = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
        environ = {**free, **variables}
        environ |= slot_environment(slot, environ)
        folder.mkdir()
        with (folder / "output.log").open("wb") as output:
            call = make_call(partial(train, overrides))
            return Process(call, log=output.fileno(), environ=environ, cpus=slot.cpus)

    def time(self, folders: Sequence[Path], processes: Sequence[Process]) -> float:
        """Steps per second of all, each between the rows of its log next to the window's edges."""

        def have_passed(steps: Sequence[int]) -> bool:
            for folder, process in zip(folders, processes, strict=True):
                if process.has_ended():
                    raise RuntimeError((folder / "output.log").read_text()[-2000:])
            return all(
                read_clock(each)[0] > step for each, step in zip(folders, steps, strict=True)
            )

        wait_for(lambda: have_passed([WARMUP_STEPS + self.settle] * len(folders)), SLOWEST_S)
        before = [read_clock(folder) for folder in folders]
        time.sleep(self.window_s)
        wait_for(lambda: have_passed([step for step, _ in before]), SLOWEST_S)
        after = [read_clock(folder) for folder in folders]
        return sum(
            (step - first_step) / (seconds - first_seconds)
            for (first_step, first_seconds), (step, seconds) in zip(before, after, strict=True)
        )


def train(overrides: Sequence[str]) -> None:
    """Run ``train.py`` in this process."""
    sys.argv = [str(ROOT / "train.py"), *overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


def read_clock(folder: Path) -> tuple[int, float]:
    """The step and the seconds of the last row that a run logged; zeros before the first."""
    rows = read_rows(folder / "train.csv")
    return (int(rows[-1]["step"]), float(rows[-1]["seconds"])) if rows else (0, 0.0)


def wait_for(condition: Callable[[], bool], patience_s: float) -> None:
    """Wait until the condition is true.

    Raises:
        TimeoutError: it did not become true in time.

    """
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {patience_s:g} s")
        time.sleep(0.05)


def measure_training(training: Training, counts: Sequence[int], rounds: int) -> Rows:
    """One row for each round of windows."""
    ways = ("pinned", "capped", "free")
    if training.gpu:
        ways = ("pinned", "capped", "mps_pinned", "mps_capped")
    rows: Rows = [{} for _ in range(rounds)]
    cases = {f"{jobs}_{way}": (jobs, way) for jobs in counts for way in ways}
    for index, case in interleaved(list(cases), rounds):
        rows[index][f"{case}_steps_per_s"] = training.steps_per_s(*cases[case])
        log.info("round %d: %s %.1f steps/s", index, case, rows[index][f"{case}_steps_per_s"])
    for row in rows:
        speed = {case: row[f"{case}_steps_per_s"] for case in cases}
        for case, (jobs, way) in cases.items():
            row[f"{case}_gain"] = speed[case] / speed[f"{min(counts)}_{way}"]
            row[f"{case}_ratio"] = speed[case] / speed[f"{jobs}_pinned"]
    return rows


if __name__ == "__main__":
    main()
