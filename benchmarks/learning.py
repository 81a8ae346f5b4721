"""Do TD3, SAC and PPO learn as well as Stable-Baselines3's, and DQN at all? One figure for each.

Each run is a process of its own, ``train.py`` or ``benchmarks/sb3.py``, with the same command
line, settings and environments. Both are scored by research.training.evaluation on the same initial
states, without noise. Runs that are in the work folder already are not repeated, so an interrupted
comparison goes on where it was; when all are there, it writes a CSV, a figure and a table. Give
another work folder for another version of the code.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
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
TASKS = {
    "cheetah": "cheetah run",
    "walker": "walker walk",
    "cartpole_gym": "CartPole-v1",
    "pendulum": "Pendulum-v1",
    "Hopper-v5": "Hopper-v5",
}
BOUNDS = {"cartpole_gym": (0, 500), "pendulum": (-1800, 0), "Hopper-v5": (0, None)}
"""Lowest and highest return of a task, unless they are 0 and 1000."""

SCORES = {"final return": lambda curve: curve[-1], "mean over training": np.mean}
EVAL_EPISODES = 10

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What is run of an algorithm.

    Attributes:
        tasks: overrides of each, by its name.
        systems: of ``SYSTEMS``.
        overrides: of all tasks.

    """

    tasks: Mapping[str, Sequence[str]]
    systems: Sequence[str] = tuple(SYSTEMS)
    overrides: Sequence[str] = ()


def off_policy(warmup_steps: int) -> Sequence[str]:
    """50,000 steps, after random ones."""
    return [
        f"trainer.pace.warmup_steps={warmup_steps}",
        *("trainer.total_steps=50000", "trainer.evaluation.every=5000"),
    ]


def rollouts(horizon: int, count: int, every: int) -> Sequence[str]:
    """So many rollouts with minibatches of 64, and an evaluation after every few."""
    return [
        *(f"trainer.pace.horizon={horizon}", f"trainer.pace.minibatches={horizon // 64}"),
        f"trainer.total_steps={horizon * count}",
        f"trainer.evaluation.every={horizon * every}",
    ]


CONTROL = {name: [f"env={name}"] for name in ("cheetah", "walker")}
CARTPOLE = "env=cartpole_gym"
PENDULUM = "env=pendulum", "alg.optim.lr=1e-3", "dataset.discount=0.9"
HOPPER = "env=gymnasium", "env.id=Hopper-v5", "processor=normalise_rollout"

PLANS = {
    "td3": Plan(CONTROL, overrides=off_policy(10_000)),
    "sac": Plan(CONTROL, overrides=off_policy(10_000)),
    "dqn": Plan({"cartpole_gym": [CARTPOLE]}, ["ours"], off_policy(1_000)),
    "ppo": Plan(
        {
            "cartpole_gym": [CARTPOLE, *rollouts(2048, 40, every=4)],
            "pendulum": [*PENDULUM, *rollouts(1024, 120, every=12)],
            "Hopper-v5": [*HOPPER, *rollouts(2048, 147, every=14)],
        }
    ),
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
        targets = [o for o in self.overrides if o.startswith("trainer.total_steps=")]
        complete = bool(rows) and rows[-1]["step"] == targets[-1].partition("=")[2]
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
    parser.add_argument("--tasks", nargs="+", help="some of the algorithm's, by name")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--overrides", nargs="+", default=[], help="of every run, for a trial")
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
            *(f"alg={arguments.alg}", *plan.tasks[task], *plan.overrides),
            *(f"seed={seed}", "device=cpu", f"trainer.evaluation.episodes={EVAL_EPISODES}"),
            *arguments.overrides,
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
    steps = {job.task: np.array([int(row["step"]) for row in job.rows()]) for job in jobs}
    draw(curves, steps, folder / f"learning_{alg}.png")
    title = f"# {alg.upper()}, {len(curves[jobs[0].task, 'ours'])} seeds"
    text = "\n".join([title, *summarise(curves, steps, describe_machine(threads=threads))]) + "\n"
    write_whole(folder / f"learning_{alg}.md", text)
    print(text)


def summarise(
    curves: dict[tuple[str, str], np.ndarray],
    steps: dict[str, np.ndarray],
    facts: dict[str, str | int],
) -> Iterator[str]:
    """Lines of a Markdown table: scores by task, and their differences."""
    yield ""
    tasks, systems = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    difference = ", for the difference Welch's" if len(systems) == 2 else ""
    yield f"Mean and 95 % interval over seeds: Student's t{difference}."
    bounds = "; ".join(
        f"{TASKS.get(task, task)}: at most {highest}"
        for task in tasks
        if (highest := bounds_of(task)[1]) is not None
    )
    yield f"Return of {EVAL_EPISODES} episodes without noise ({bounds})."
    yield ""
    columns = [*(SYSTEMS[system] for system in systems), *["difference"][: len(systems) - 1]]
    yield f"| task | steps | score | {' | '.join(columns)} |"
    yield "| --- " * (3 + len(columns)) + "|"
    for task, (name, score) in product(tasks, SCORES.items()):
        values = [np.array([score(c) for c in curves[task, system]]) for system in systems]
        cells = [with_interval(each.mean(), *t_interval(each)) for each in values]
        if len(values) == 2:
            interval = stats.ttest_ind(*values, equal_var=False).confidence_interval(0.95)
            cells.append(with_interval(values[0].mean() - values[1].mean(), *interval))
        cells = [TASKS.get(task, task), f"{steps[task][-1]:,}", name, *cells]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in facts.items())


def bounds_of(task: str) -> tuple[int, int | None]:
    """The lowest and the highest return that are possible in a task; None for no bound."""
    return BOUNDS.get(task, (0, 1000))


def with_interval(mean: Any, low: Any, high: Any) -> str:
    """``mean (low to high)``."""
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean over the first axis, by Student's t distribution."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def draw(
    curves: dict[tuple[str, str], np.ndarray], steps: dict[str, np.ndarray], path: Path
) -> None:
    """One panel per task: mean, interval, and each seed as a thin line."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(task for task, _ in curves))
    figure = Figure(figsize=(3.6 * len(tasks), 3.0), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    styles = dict(zip(SYSTEMS, (("#0072B2", "-"), ("#D55E00", "--")), strict=True))
    for panel, task in zip(panels, tasks, strict=True):
        thousands = steps[task] / 1000
        lowest, highest = bounds_of(task)
        for system in (system for name, system in curves if name == task):
            color, line = styles[system]
            returns = curves[task, system]
            low, high = t_interval(returns)
            label = f"{SYSTEMS[system]} ({len(returns)} seeds)"
            panel.plot(thousands, returns.mean(axis=0), line, color=color, label=label, lw=1.8)
            low, high = low.clip(min=lowest), high.clip(max=np.inf if highest is None else highest)
            panel.fill_between(thousands, low, high, color=color, alpha=0.2, lw=0)
            panel.plot(thousands, returns.T, line, color=color, lw=0.5, alpha=0.7)
        panel.set(
            title=TASKS.get(task, task), xlabel="environment steps (thousands)", ylabel="return"
        )
        panel.set_xlim(0, thousands[-1])
        panel.set_ylim(bottom=lowest)
        panel.grid(alpha=0.3, lw=0.5)
    panels[0].legend(loc="best", fontsize=8, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
