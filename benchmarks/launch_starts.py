"""What does starting a job cost? Sweeps of short jobs by ours and by other Hydra launchers."""

import logging
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from benchmarks.measure import ROOT, interleaved, run_python, spread

WORKERS = 2
LAUNCHERS: Mapping[str, Sequence[str]] = {
    "ours": (
        *("hydra/launcher=local", "hydra/sweeper=grid"),
        *(f"hydra.launcher.max_jobs={WORKERS}", "hydra.launcher.stagger_s=0"),
    ),
    "joblib": ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}"),
    "submitit": ("hydra/launcher=submitit_local", f"hydra.sweeper.max_batch_size={WORKERS}"),
}
COLUMNS = {
    "first_s": "command to first job, s",
    "job_s": "then for each job, s",
    "job_cpu_s": "CPU time for each, s",
    "total_s": "all jobs, s",
}
PACKAGES: Sequence[str] = (
    "hydra-core",
    "hydra-joblib-launcher",
    "hydra-submitit-launcher",
    "submitit",
)

log = logging.getLogger(__name__)
Rows = list[dict[str, float]]


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

    def time(self, launcher: str) -> dict[str, float]:
        """Run one sweep, and see that all its jobs have run.

        Raises:
            RuntimeError: they have not.

        """
        folder, jobs = Path(tempfile.mkdtemp(dir=self.folder)), self.jobs[launcher]
        (folder / "marks").mkdir()
        overrides = (
            *LAUNCHERS[launcher],
            *(f"number=range(0,{jobs})", f"sleep_s={self.sleep_s}", f"marks={folder / 'marks'}"),
            f"hydra.sweep.dir={folder / 'sweep'}",
        )
        app = ROOT / "benchmarks/launch_app.py"
        cpu, start = child_cpu_s(), time.time()
        run_python([app, "-m", *overrides], threads=1, log=folder / "log")
        total, cpu = time.time() - start, child_cpu_s() - cpu
        begun = [float(mark.read_text()) for mark in (folder / "marks").iterdir()]
        if len(begun) != jobs:
            raise RuntimeError(f"{launcher} ran {len(begun)} of {jobs} jobs, see {folder / 'log'}")
        first = min(begun) - start
        job_s = (total - first) / jobs
        total = first + max(self.jobs.values()) * job_s
        return {"first_s": first, "job_s": job_s, "job_cpu_s": cpu / jobs, "total_s": total}


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


def starts_report(rows: Rows) -> Iterator[str]:
    """Lines of a Markdown table, a row for each launcher."""
    jobs = {launcher: round(rows[0][f"{launcher}_jobs"]) for launcher in LAUNCHERS}
    of = max(jobs.values())
    yield f"# Sweeps of {of} short jobs, {WORKERS} at a time"
    yield ""
    yield f"Median (minimum to maximum) of {len(rows)} sweeps each, which took turns."
    shorter = [f"{name} by {count} jobs" for name, count in jobs.items() if count < of]
    if shorter:
        yield f"The time of all {of} is worked out from a shorter sweep for {', '.join(shorter)}."
    yield ""
    yield f"| launcher | {' | '.join(COLUMNS.values())} |"
    yield f"| --- {'| --- ' * len(COLUMNS)}|"
    for launcher in LAUNCHERS:
        cells = [spread([row[f"{launcher}_{column}"] for row in rows]) for column in COLUMNS]
        yield f"| {launcher} | {' | '.join(cells)} |"


def versions() -> dict[str, str]:
    """Of the launchers."""
    found = dict.fromkeys(PACKAGES, "none")
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def child_cpu_s() -> float:
    """CPU seconds of all child processes that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
