"""What do several training jobs at once gain? Steps per second of all, by how cores are shared."""

import logging
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT, THREAD_VARIABLES, interleaved, read_rows, spread
from research.errors import UserError
from research.launchers.pool.mps import mps_daemon
from research.machine.cpus import usable_cpus
from research.machine.gpus import slot_environment
from research.machine.slots import Slot, make_slots
from research.process import Process, make_call

WARMUP_STEPS = 1000
SLOWEST_S = 300.0
"""How long jobs may take to be in full swing, and for a row of their logs."""

ON_CPU, ON_GPU = ("pinned", "capped", "free"), ("pinned", "capped", "mps_pinned", "mps_capped")

log = logging.getLogger(__name__)
Rows = list[dict[str, float]]


class Case(NamedTuple):
    """So many jobs, sharing the cores in one way."""

    jobs: int
    way: str

    def __str__(self) -> str:
        return f"{self.jobs}_{self.way}"


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

    def cases(self, counts: Sequence[int]) -> list[Case]:
        """All that differ: a single job without pins has the same threads, capped or not."""
        cases = [Case(jobs, way) for jobs in counts for way in (ON_GPU if self.gpu else ON_CPU)]
        return [
            case
            for case in cases
            if case.way != "free" or self.slots(case) != self.slots(Case(case.jobs, "capped"))
        ]

    def slots(self, case: Case) -> list[Slot]:
        """A slot for each job; the launcher's own if they are pinned."""
        cpus = usable_cpus("auto")
        slots = make_slots(
            cpus=cpus,
            gpus=[self.gpu or ""],
            gpus_per_job=1,
            jobs_per_gpu=case.jobs,
            cpus_per_job=None,
            max_jobs=None,
        )
        if case.way.endswith("pinned"):
            return slots
        threads = len(cpus) if case.way == "free" else slots[0].threads
        return [slot._replace(cpus=(), threads=threads) for slot in slots]

    def steps_per_s(self, case: Case) -> float:
        """Of all jobs together, in the window in which all are in full swing."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        processes: list[Process] = []
        with mps_daemon() if case.way.startswith("mps") else nullcontext({}) as variables:
            try:
                for slot in self.slots(case):
                    processes.append(self.start(folder / str(slot.number), slot, variables))
                return self.time([folder / str(number) for number in range(case.jobs)], processes)
            finally:
                for process in processes:
                    process.kill()
                    wait_for(process.has_ended, 30.0)

    def start(self, folder: Path, slot: Slot, variables: Mapping[str, str]) -> Process:
        """Start a job in its slot, as the launcher does."""
        overrides = (
            *("alg=td3", "env=cheetah", f"seed={slot.number}", f"hydra.run.dir={folder}"),
            *(f"device={'cuda' if self.gpu else 'cpu'}", "trainer.log_every=25"),
            *(
                f"trainer.pace.warmup_steps={WARMUP_STEPS}",
                "trainer.evaluation.every=1_000_000",
            ),
            "trainer.checkpoints.every=1_000_000",
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
    rows: Rows = [{} for _ in range(rounds)]
    cases = {str(case): case for case in training.cases(counts)}
    for index, name in interleaved(list(cases), rounds):
        try:
            speed = training.steps_per_s(cases[name])
        except UserError as error:  # there is no MPS here
            log.warning("round %d: %s is left out: %s", index, name, error)
            continue
        rows[index][f"{name}_threads"] = training.slots(cases[name])[0].threads
        rows[index][f"{name}_steps_per_s"] = speed
        log.info("round %d: %s %.1f steps/s", index, name, speed)
    for row in rows:
        for name, case in cases.items():
            if f"{name}_steps_per_s" not in row:
                continue
            speed = row[f"{name}_steps_per_s"]
            row[f"{name}_gain"] = speed / row[f"{min(counts)}_pinned_steps_per_s"]
            row[f"{name}_ratio"] = speed / row[f"{case.jobs}_pinned_steps_per_s"]
    return rows


def training_report(rows: Rows, training: Training, counts: Sequence[int]) -> Iterator[str]:
    """Lines of a Markdown table, a row for each case."""
    one = min(counts)
    yield f"# TD3 on cheetah run, several jobs on one {'GPU' if training.gpu else 'machine'}"
    yield ""
    yield "Environment steps per second of all jobs together, one update for each step:"
    yield f"median (minimum to maximum) of {len(rows)} windows of {training.window_s:g} s each,"
    yield "which took turns. Against others: the median of the ratios within a round."
    yield ""
    yield f"| jobs | cores | threads of each | steps/s | against {one} pinned | against pinned |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for case in training.cases(counts):
        if f"{case}_ratio" not in rows[0]:
            continue
        columns = [f"{case}_{name}" for name in ("steps_per_s", "gain", "ratio")]
        cells = [spread([row[column] for row in rows]) for column in columns]
        threads = round(rows[0][f"{case}_threads"])
        yield f"| {case.jobs} | {case.way} | {threads} | {' | '.join(cells)} |"
