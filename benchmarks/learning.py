"""Do TD3 and SAC learn as well as those of Stable-Baselines3, and DQN at all? One figure for each.

Each run is a process of its own, ``train.py`` or ``benchmarks/sb3.py``, with the same command
line, settings and environments. Both are scored by research.training.evaluation on the same initial
states, without noise. Runs that are in the work folder already are not repeated, so an interrupted
comparison goes on where it was; when all are there, it writes a CSV, a figure and a table. Give
another work folder for another version of the code.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.measure import (
    RESULTS,
    ROOT,
    describe_machine,
    read_rows,
    run_python,
    write_rows,
)
from research.files import write_whole

SYSTEMS = {"ours": "Research Lightning", "sb3": "Stable-Baselines3"}
TASKS = {"cheetah": "cheetah run", "walker": "walker walk", "cartpole_gym": "CartPole-v1"}
HIGHEST = {"cartpole_gym": 500}
"""Highest return of a task, unless it is 1000."""

SCORES = {"final return": lambda curve: curve[-1], "mean over training": np.mean}
EVAL_EPISODES = 10

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What is run of an algorithm: tasks, systems, and numbers of steps."""

    tasks: Sequence[str]
    systems: Sequence[str]
    total_steps: int = 50_000
    warmup_steps: int = 10_000


PLANS = {
    "td3": Plan(["cheetah", "walker"], list(SYSTEMS)),
    "sac": Plan(["cheetah", "walker"], list(SYSTEMS)),
    "dqn": Plan(["cartpole_gym"], ["ours"], warmup_steps=1_000),
}


class Job(NamedTuple):
    """One training run."""

    system: str
    task: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    def run(self, threads: int) -> None:
        """Train, unless that is done."""
        if self.rows():
            log.info("%s is there already", self.folder)
            return
        log.info("%s starts", self.folder)
        if self.system == "ours":
            command = [ROOT / "train.py", *self.overrides, f"hydra.run.dir={self.folder}"]
        else:
            command = [ROOT / "benchmarks" / "sb3.py", self.folder, *self.overrides]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        run_python(command, threads=threads, log=self.folder.with_suffix(".log"))
        log.info("%s is done", self.folder)

    def rows(self) -> list[dict[str, str]]:
        """The evaluations of the whole run; none unless it is complete."""
        rows = read_rows(self.folder / "eval.csv")
        target = next(o for o in self.overrides if o.startswith("trainer.total_steps="))
        complete = bool(rows) and rows[-1]["step"] == target.partition("=")[2]
        return rows if complete else []


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", choices=PLANS, default="td3")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "learning", help="runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--only", choices=SYSTEMS, help="make the runs of one system")
    parser.add_argument("--tasks", nargs="+", help="as in env=; default: the algorithm's")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--steps", type=int, help="of a run; default: 50,000")
    parser.add_argument("--eval-every", type=int, default=5_000, help="steps")
    parser.add_argument("--warmup-steps", type=int, help="random; default: 10,000, DQN 1,000")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    jobs = list(make_jobs(arguments))
    chosen = [job for job in jobs if arguments.only in (None, job.system)]
    if not run_all(chosen, num_processes=arguments.jobs, threads=arguments.threads):
        sys.exit(1)
    missing = [job.folder.name for job in jobs if not job.rows()]
    if missing:
        log.info("no report yet, for these are missing: %s", ", ".join(missing))
    else:
        report(jobs, arguments.results, alg=arguments.alg, threads=arguments.threads)


def run_all(jobs: Sequence[Job], *, num_processes: int, threads: int) -> bool:
    """Make the runs, some at a time, a failed one stopping no other; whether all went well."""
    pool = ThreadPoolExecutor(num_processes)
    futures = [pool.submit(job.run, threads) for job in jobs]
    try:
        wait(futures)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C starts no further one
    errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        log.error("%s", error)
    return not errors


def make_jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """Every run, ours and theirs by turns."""
    plan = PLANS[arguments.alg]
    tasks = arguments.tasks or plan.tasks
    for seed, (task, system) in product(range(arguments.seeds), product(tasks, plan.systems)):
        overrides = (
            f"alg={arguments.alg}",
            f"env={task}",
            f"seed={seed}",
            "device=cpu",
            f"trainer.total_steps={arguments.steps or plan.total_steps}",
            f"trainer.pace.warmup_steps={arguments.warmup_steps or plan.warmup_steps}",
            f"trainer.evaluation.every={arguments.eval_every}",
            f"trainer.evaluation.episodes={EVAL_EPISODES}",
        )
        folder = arguments.work.resolve() / f"{system}_{arguments.alg}_{task}_{seed}"
        yield Job(system, task, seed, folder, overrides)


def report(jobs: Sequence[Job], folder: Path, *, alg: str, threads: int) -> None:
    """Write ``learning_<alg>`` as .csv, .png and .md into ``folder``."""
    rows = [
        {"system": job.system, "task": job.task, "seed": job.seed}
        | {name: row[name] for name in ("step", "return", "length")}
        for job in jobs
        for row in job.rows()
    ]
    write_rows(folder / f"learning_{alg}.csv", rows)
    curves = {
        (task, system): np.array(
            [
                [float(row["return"]) for row in job.rows()]
                for job in jobs
                if (job.task, job.system) == (task, system)
            ]
        )
        for task, system in dict.fromkeys((job.task, job.system) for job in jobs)
    }
    steps = np.array([int(row["step"]) for row in jobs[0].rows()])
    draw(curves, steps, folder / f"learning_{alg}.png")
    title = f"# {alg.upper()}, {steps[-1]:,} steps, {len(curves[jobs[0].task, 'ours'])} seeds"
    text = "\n".join([title, *summarise(curves, describe_machine(threads=threads))]) + "\n"
    write_whole(folder / f"learning_{alg}.md", text)
    print(text)


def summarise(
    curves: dict[tuple[str, str], np.ndarray], facts: dict[str, str | int]
) -> Iterator[str]:
    """Lines of a Markdown table: scores by task, and their differences."""
    yield ""
    tasks, systems = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    difference = ", for the difference Welch's" if len(systems) == 2 else ""
    yield f"Mean and 95 % interval over seeds: Student's t{difference}."
    highest = "; ".join(
        f"{TASKS.get(task, task)}: at most {highest_return(task)}" for task in tasks
    )
    yield f"Return of {EVAL_EPISODES} episodes without noise ({highest})."
    yield ""
    columns = [*(SYSTEMS[system] for system in systems), *["difference"][: len(systems) - 1]]
    yield f"| task | score | {' | '.join(columns)} |"
    yield "| --- " * (2 + len(columns)) + "|"
    for task, (name, score) in product(tasks, SCORES.items()):
        values = [np.array([score(c) for c in curves[task, system]]) for system in systems]
        cells = [with_interval(each.mean(), *t_interval(each)) for each in values]
        if len(values) == 2:
            interval = stats.ttest_ind(*values, equal_var=False).confidence_interval(0.95)
            cells.append(with_interval(values[0].mean() - values[1].mean(), *interval))
        yield f"| {TASKS.get(task, task)} | {name} | {' | '.join(cells)} |"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in facts.items())


def highest_return(task: str) -> int:
    """The highest return that is possible in a task."""
    return HIGHEST.get(task, 1000)


def with_interval(mean: Any, low: Any, high: Any) -> str:
    """``mean (low to high)``."""
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean over the first axis, by Student's t distribution."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def draw(curves: dict[tuple[str, str], np.ndarray], steps: np.ndarray, path: Path) -> None:
    """One panel per task: mean, interval, and each seed as a thin line."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(task for task, _ in curves))
    figure = Figure(figsize=(3.6 * len(tasks), 3.0), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    styles = dict(zip(SYSTEMS, (("#0072B2", "-"), ("#D55E00", "--")), strict=True))
    for panel, task in zip(panels, tasks, strict=True):
        for system in (system for name, system in curves if name == task):
            color, line = styles[system]
            returns = curves[task, system]
            low, high = t_interval(returns)
            label = f"{SYSTEMS[system]} ({len(returns)} seeds)"
            panel.plot(steps / 1000, returns.mean(axis=0), line, color=color, label=label, lw=1.8)
            low, high = low.clip(0), high.clip(max=highest_return(task))
            panel.fill_between(steps / 1000, low, high, color=color, alpha=0.2, lw=0)
            panel.plot(steps / 1000, returns.T, line, color=color, lw=0.5, alpha=0.7)
        panel.set(
            title=TASKS.get(task, task), xlabel="environment steps (thousands)", ylabel="return"
        )
        panel.set_xlim(0, steps[-1] / 1000)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3, lw=0.5)
    panels[0].legend(loc="best", fontsize=8, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
