"""Do the algorithms learn as well as others? A table and a figure for each comparison.

Each run is a process of its own, ``train.py`` or ``benchmarks/sb3.py``, with the same command
line, settings and environments. All are scored by research.training.evaluation on the same initial
states, without noise. Runs that are in the work folder already are not repeated, so an interrupted
comparison goes on where it was; when all are there, it writes a CSV, a figure by research.plot, a
table, and into the work folder a page by research.report. Give another work folder for another
version of the code.
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

SCORES = {"final return": lambda curve: curve[-1], "mean over training": np.mean}
EVAL_EPISODES = 10
SB3 = "Stable-Baselines3"
OURS = "Research Lightning"

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What is compared.

    Attributes:
        tasks: overrides of each, by its name.
        methods: overrides of each, by its name; the others are compared with the last. ``SB3`` is
            run by benchmarks/sb3.py.
        overrides: of all runs.

    """

    tasks: Mapping[str, Sequence[str]]
    methods: Mapping[str, Sequence[str]]
    overrides: Sequence[str] = ()


def beside_sb3(alg: str) -> Mapping[str, Sequence[str]]:
    """An algorithm by ours and by Stable-Baselines3."""
    return {OURS: [f"alg={alg}"], SB3: [f"alg={alg}"]}


def off_policy(total: int, *, warmup: int, every: int) -> Sequence[str]:
    """Steps of a run with replay, random ones at its start, and those between evaluations."""
    return [
        *(f"trainer.total_steps={total}", f"trainer.pace.warmup_steps={warmup}"),
        f"trainer.evaluation.every={every}",
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
HOPPER = "env=gymnasium", "env.id=Hopper-v5"
BREAKOUT = (  # the numbers of Young and Tian, 2019, but for Adam and the shorter exploration
    *("env=minatar", "env.game=breakout", "network/encoder=minatar", "network.hidden_dims=[]"),
    *("trainer.schedule=null", "alg.optim.lr=2.5e-4", "alg.tau=1", "alg.target_every=1000"),
    *("alg.explore_end=0.1", "alg.explore_steps=20_000", "dataset.batch_size=32"),
    *(
        "dataset.n_step=1",
        "trainer.pace.steps_per_update=1",
        *off_policy(200_000, warmup=5_000, every=20_000),
    ),
)
SMALL_CRITICS = "network.critic_hidden_dims=[256,256]"

PLANS = {
    "td3": Plan(CONTROL, beside_sb3("td3"), off_policy(50_000, warmup=10_000, every=5_000)),
    "sac": Plan(CONTROL, beside_sb3("sac"), off_policy(50_000, warmup=10_000, every=5_000)),
    "dqn": Plan(
        {
            "CartPole-v1": [CARTPOLE, *off_policy(50_000, warmup=1_000, every=5_000)],
            "MinAtar breakout": BREAKOUT,
        },
        beside_sb3("dqn"),
        ["alg.double=false"],  # it has none
    ),
    "ppo": Plan(
        {
            "CartPole-v1": [CARTPOLE, *rollouts(2048, 40, every=4)],
            "Pendulum-v1": [*PENDULUM, *rollouts(1024, 120, every=12)],
            "Hopper-v5": [*HOPPER, "processor=normalise_rollout", *rollouts(2048, 147, every=14)],
        },
        beside_sb3("ppo"),
    ),
    "hopper": Plan(
        {"Hopper-v5": HOPPER},
        {
            "CrossQ": ["alg=crossq", SMALL_CRITICS],
            "TQC": ["alg=tqc", SMALL_CRITICS, "network.num_critics=2", "alg.dropped_quantiles=5"],
            "SAC": ["alg=sac"],
        },
        off_policy(50_000, warmup=5_000, every=5_000),
    ),
}


class Job(NamedTuple):
    """One training run."""

    method: str
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
        command = [ROOT / "train.py", *self.overrides, f"hydra.run.dir={self.folder}"]
        if self.method == SB3:
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
    parser.add_argument("--plan", choices=PLANS, default="td3", help="what is compared")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "learning", help="runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--only", nargs="+", help="make the runs of some methods")
    parser.add_argument("--tasks", nargs="+", help="some of the plan's")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--overrides", nargs="+", default=[], help="of every run, for a trial")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    arguments = parser.parse_args()
    plan = PLANS[arguments.plan]
    for option, known in (("only", plan.methods), ("tasks", plan.tasks)):
        for name in getattr(arguments, option) or []:
            if name not in known:
                parser.error(f"--{option} {name!r}: allowed are {', '.join(known)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    jobs = list(make_jobs(arguments))
    chosen = [job for job in jobs if job.method in (arguments.only or [job.method])]
    if not run_all(chosen, num_processes=arguments.jobs, threads=arguments.threads):
        sys.exit(1)
    missing = [job.folder.name for job in jobs if not job.rows()]
    if missing:
        log.info("no report yet, for these are missing: %s", ", ".join(missing))
    else:
        report(jobs, arguments)


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
    """Every run, the methods by turns."""
    plan = PLANS[arguments.plan]
    tasks = arguments.tasks or plan.tasks
    for seed, task, method in product(range(arguments.seeds), tasks, plan.methods):
        overrides = (
            *(*plan.methods[method], *plan.tasks[task], *plan.overrides),
            *(f"seed={seed}", "device=cpu", f"trainer.evaluation.episodes={EVAL_EPISODES}"),
            *arguments.overrides,
        )
        name = f"{arguments.plan}_{method}_{task}_{seed}".replace(" ", "_")
        yield Job(method, task, seed, arguments.work.resolve() / name, overrides)


def report(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """Write ``learning_<plan>`` as .csv, .png and .md, and research.report's page of the runs."""
    name = f"learning_{arguments.plan}"
    rows = [
        {"method": job.method, "task": job.task, "seed": job.seed}
        | {name: row[name] for name in ("step", "return", "length")}
        for job in jobs
        for row in job.rows()
    ]
    write_rows(arguments.results / f"{name}.csv", rows)
    folders = [job.folder for job in jobs]
    figure, page = (arguments.results / f"{name}.png").resolve(), arguments.work.resolve() / name
    for tool, out in (("plot", figure), ("report", page)):
        command = ["-m", f"research.{tool}", *folders, "by=alg", f"out={out}"]
        run_python(command, threads=1, log=arguments.work / f"{tool}.log")
    curves = {
        (task, method): np.array(
            [
                [float(row["return"]) for row in job.rows()]
                for job in jobs
                if (job.task, job.method) == (task, method)
            ]
        )
        for task, method in dict.fromkeys((job.task, job.method) for job in jobs)
    }
    steps = {job.task: int(job.rows()[-1]["step"]) for job in jobs}
    title = f"# {arguments.plan}, {arguments.seeds} seeds"
    facts = describe_machine(threads=arguments.threads)
    text = "\n".join([title, *summarise(curves, steps, facts)]) + "\n"
    write_whole(arguments.results / f"{name}.md", text)
    print(text)
    log.info("the page of research.report: %s.html", page)


def summarise(
    curves: Mapping[tuple[str, str], np.ndarray],
    steps: Mapping[str, int],
    facts: Mapping[str, str | int],
) -> Iterator[str]:
    """Lines of a Markdown table: scores by task, and their differences to the last method's."""
    yield ""
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    *others, last = methods
    yield "Mean and 95 % interval over seeds: Student's t, for differences Welch's."
    yield f"Return of {EVAL_EPISODES} episodes without noise."
    yield ""
    columns = [*methods, *(f"{other} minus {last}" for other in others)]
    yield f"| task | steps | score | {' | '.join(columns)} |"
    yield "| --- " * (3 + len(columns)) + "|"
    for task, (name, score) in product(tasks, SCORES.items()):
        *rest, base = (np.array([score(c) for c in curves[task, method]]) for method in methods)
        cells = [with_interval(each.mean(), *t_interval(each)) for each in [*rest, base]]
        for each in rest:
            interval = stats.ttest_ind(each, base, equal_var=False).confidence_interval(0.95)
            cells.append(with_interval(each.mean() - base.mean(), *interval))
        yield f"| {' | '.join([task, f'{steps[task]:,}', name, *cells])} |"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in facts.items())


def with_interval(mean: Any, low: Any, high: Any) -> str:
    """``mean (low to high)``."""
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean over the first axis, by Student's t distribution."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


if __name__ == "__main__":
    main()
