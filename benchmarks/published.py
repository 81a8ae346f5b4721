"""Do SAC and DrQ-v2 learn as well as published? The seeds of one sweep beside published curves.

The sweep is ``train.py -m`` with the local launcher, all its jobs packed on the GPU if there is
one. The same command goes on where it was stopped; what there is then goes into a CSV, a figure
and a table. A limit of time is ``--overrides hydra.launcher.timeout_s=...``.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from benchmarks.learning import EVAL_EPISODES, t_interval, with_interval
from benchmarks.measure import RESULTS, ROOT, read_rows, write_rows
from research.files import write_whole
from research.training.provenance import read_attempts

TASKS = {"cheetah": "cheetah run", "walker": "walker walk", "cartpole": "cartpole swingup"}
EVAL_EVERY = 20_000
"""Frames, as in the published curves."""

FREE = (
    *("env=", "seed=", "experiment=", "device=", "logger.", "dataset.storage=", "dataset.device="),
    *("trainer.total_steps=", "trainer.eval_", "trainer.log_every=", "trainer.checkpoint_"),
    *("trainer.keep_last=", "trainer.prefetch="),
)
"""Overrides that change neither a task nor how it is learned."""

STYLES = (("#D55E00", "--"), ("#009E73", "-."))


class Method(NamedTuple):
    """An algorithm, its experiment and tasks, and who published curves in ``<file>.csv``."""

    name: str
    experiment: str
    action_repeat: int
    tasks: tuple[str, ...]
    sources: Mapping[str, str]


METHODS = {
    "sac": Method(
        name="SAC",
        experiment="sac_dmc",
        action_repeat=1,
        tasks=("cheetah", "walker", "cartpole"),
        sources={"pytorch_sac": "sac_state_pytorch_sac", "SAC of TD-MPC2": "sac_state_tdmpc2"},
    ),
    "drqv2": Method(
        name="DrQ-v2",
        experiment="drqv2_easy",  # both tasks are among its authors' easy ones
        action_repeat=2,
        tasks=("cartpole", "walker"),
        sources={"authors of DrQ-v2": "drqv2_pixels_drqv2"},
    ),
}


class Curve(NamedTuple):
    """Mean returns (T,) after so many frames; around them a band, empty for one published seed."""

    source: str
    num_seeds: int
    frames: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", choices=METHODS, required=True)
    parser.add_argument("--tasks", nargs="+", help="as in env=; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--frames", type=int, default=1_000_000, help="of a run")
    parser.add_argument("--overrides", nargs="*", default=[], help="of train.py, or its launcher")
    parser.add_argument("--work", type=Path, help="the sweep; default: outputs/published_<alg>")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--report-only", action="store_true", help="of the runs as they stand")
    arguments = parser.parse_args()
    method = METHODS[arguments.alg]
    tasks = arguments.tasks or method.tasks
    if unknown := set(tasks) - set(method.tasks):
        parser.error(f"--tasks: {', '.join(unknown)}; allowed: {', '.join(method.tasks)}")
    if arguments.seeds < 1 or arguments.frames < 1 or arguments.frames % method.action_repeat:
        parser.error(
            f"--seeds must be at least 1, --frames a multiple of {method.action_repeat}, "
            f"got {arguments.seeds} and {arguments.frames}"
        )
    work = (arguments.work or ROOT / "outputs" / f"published_{arguments.alg}").resolve()
    status = 0
    if not arguments.report_only:
        overrides = make_overrides(method, tasks, work, arguments.seeds, arguments.frames)
        command = [sys.executable, str(ROOT / "train.py"), "-m", *overrides, *arguments.overrides]
        status = subprocess.run(command, cwd=ROOT).returncode
    runs = {task: [work / f"{task}_{seed}" for seed in range(arguments.seeds)] for task in tasks}
    report(method, runs, arguments.results / f"published_{arguments.alg}")
    sys.exit(status)


def make_overrides(
    method: Method, tasks: Sequence[str], work: Path, num_seeds: int, frames: int
) -> tuple[str, ...]:
    """One sweep, its runs in ``work/<task>_<seed>``."""
    return (
        *(f"experiment={method.experiment}", f"env={','.join(tasks)}"),
        f"seed={','.join(map(str, range(num_seeds)))}",
        f"trainer.total_steps={frames // method.action_repeat}",
        f"trainer.eval_every={EVAL_EVERY // method.action_repeat}",
        f"trainer.eval_episodes={EVAL_EPISODES}",
        *("hydra/launcher=local", f"hydra.launcher.jobs_per_gpu={len(tasks) * num_seeds}"),
        *(f"hydra.sweep.dir={work}", "hydra.sweep.subdir=${hydra:runtime.choices.env}_${seed}"),
    )


def report(method: Method, runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write ``path`` as .csv, .png and .md; a task is left out until every seed was evaluated."""
    rows = [
        {"task": TASKS[task], "seed": seed}
        | {name: row[name] for name in ("step", "frames", "return", "length", "seconds")}
        for task, folders in runs.items()
        for seed, folder in enumerate(folders)
        for row in read_rows(folder / "eval.csv")
    ]
    curves = {TASKS[task]: read_ours(folders) for task, folders in runs.items()}
    curves = {task: curve for task, curve in curves.items() if curve is not None}
    if not curves:
        sys.exit("no report: there is no task whose seeds were all evaluated")
    write_rows(path.with_suffix(".csv"), rows)
    folders = [folder for task in runs for folder in runs[task] if (folder / ".hydra").exists()]
    overrides = read_overrides(folders)
    is_reduced = any(not each.startswith(FREE) for each in overrides)
    published = {task: list(read_published(method, task)) for task in curves}
    title = f"{method.name}, {next(iter(curves.values())).num_seeds} seeds"
    title += ", at reduced size" if is_reduced else ""
    draw(curves, published, title, path.with_suffix(".png"))
    lines = summarise(curves, published, is_reduced=is_reduced)
    shown = f"`{' '.join(overrides)}`"
    text = "\n".join([f"# {title}", "", *lines, "", shown, "", describe(folders[0])]) + "\n"
    write_whole(path.with_suffix(".md"), text)
    print(text)


def read_ours(folders: Sequence[Path]) -> Curve | None:
    """Mean and 95 % interval where every seed was evaluated; None if there is no such place."""
    seeds = [
        {int(row["frames"]): float(row["return"]) for row in read_rows(folder / "eval.csv")}
        for folder in folders
    ]
    frames = sorted(set.intersection(*map(set, seeds)))
    if not frames:
        return None
    returns = np.array([[seed[each] for each in frames] for seed in seeds])
    band = t_interval(returns) if len(returns) > 1 else (returns[0], returns[0])
    return Curve("ours", len(returns), np.array(frames), returns.mean(axis=0), *band)


def read_published(method: Method, task: str) -> Iterator[Curve]:
    """The published curves of a task, with the standard deviation over seeds as band."""
    for source, file in method.sources.items():
        rows = read_rows(ROOT / "benchmarks" / "reference" / f"{file}.csv")
        rows = [row for row in rows if row["task"] == task.replace(" ", "_")]
        frames = np.array([int(row["env_steps"]) for row in rows])
        mean = np.array([float(row["mean_return"]) for row in rows])
        std = np.array([float(row["std_return"] or 0) for row in rows])
        yield Curve(source, int(rows[0]["n_seeds"]), frames, mean, mean - std, mean + std)


def read_overrides(folders: Sequence[Path]) -> list[str]:
    """What the runs were started with, seeds and environments aside."""
    found = [yaml.safe_load((folder / ".hydra/overrides.yaml").read_text()) for folder in folders]
    every = dict.fromkeys(override for overrides in found for override in overrides)
    return [override for override in every if not override.startswith(("env=", "seed="))]


def summarise(
    curves: Mapping[str, Curve], published: Mapping[str, Sequence[Curve]], *, is_reduced: bool
) -> Iterator[str]:
    """Lines of Markdown: how to read it, a count for each published curve, every common step."""
    yield f"Return of {EVAL_EPISODES} episodes without noise. Ours: mean and 95 % interval over"
    yield "seeds (Student's t). Published: mean and standard deviation over seeds. Ours is inside"
    yield "if its mean is within one such deviation of the published mean; where that is of one"
    yield "seed, if our interval holds it. Else it is above or below. Compared is where both were"
    yield "evaluated after the same number of frames (environment steps before action repeat)."
    yield "Nothing is interpolated."
    yield ""
    if is_reduced:
        yield "These runs have another task, network or batch than the published ones: they are at"
        yield "reduced size and **no comparison** with the published curves."
        yield ""
    common = [
        (task, other, compare(curves[task], other)) for task in curves for other in published[task]
    ]
    if not is_reduced:
        yield "| task | published by | common steps | above | inside | below |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for task, other, points in common:
            places = [place for *_, place in points]
            counts = [str(places.count(place)) for place in ("above", "inside", "below")]
            yield f"| {task} | {other.source} | {len(points)} | {' | '.join(counts)} |"
        yield ""
    yield "| task | frames | ours | published | by (seeds) | ours is |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for task, other, points in common:
        for frames, ours, theirs, place in points:
            by = f"{other.source} ({other.num_seeds})"
            verdict = "not compared" if is_reduced else place
            yield f"| {task} | {frames:,} | {ours} | {theirs} | {by} | {verdict} |"
