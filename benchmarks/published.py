"""Do SAC and DrQ-v2 learn as well as published? The seeds of one sweep beside published curves.

The sweep is ``train.py -m`` with the local launcher, all its jobs packed on the GPU if there is
one. The same command goes on where it was stopped; what there is then goes into a CSV, a figure
and a table. Seeds that the CSV has already, from another machine, need no run here. A limit of time
is ``--overrides hydra.launcher.timeout_s=...``.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.learning import t_interval
from benchmarks.measure import RESULTS, ROOT, read_rows, write_rows
from research.files import write_whole
from research.training.saving.provenance import read_attempts

TASKS = {"cheetah": "cheetah run", "walker": "walker walk", "cartpole": "cartpole swingup"}
SAC_CURVES = {"pytorch_sac": "sac_state_pytorch_sac", "SAC of TD-MPC2": "sac_state_tdmpc2"}
DRQV2_CURVES = {"authors of DrQ-v2": "drqv2_pixels_drqv2"}
SIMBA_TASKS = ["cheetah", "walker"]
FREE = (
    *("env=", "seed=", "device=", "logger.", "dataset.storage=", "dataset.device="),
    *("trainer.total_steps=", "trainer.evaluation.", "trainer.log_every=", "trainer.checkpoints."),
    "trainer.execution=",
)
"""Overrides that change neither a task nor how it is learned, but for rounding."""


class Method(NamedTuple):
    """An algorithm, its experiment and tasks, and who published which file of curves.

    ``eval_every`` counts frames, and divides the periods of these curves.
    """

    name: str
    experiment: str
    action_repeat: int
    tasks: Sequence[str]
    sources: Mapping[str, str]
    eval_every: int = 20_000


METHODS = {
    "sac": Method("SAC", "sac_dmc", 1, list(TASKS), SAC_CURVES),
    "drqv2": Method("DrQ-v2", "drqv2_easy", 2, ["cartpole", "walker"], DRQV2_CURVES),
    "drqv2_medium": Method("DrQ-v2", "drqv2_medium", 2, ["cheetah"], DRQV2_CURVES),
    "sac_simba": Method(
        "SAC with SimBa's network",
        "sac_simba",
        2,
        SIMBA_TASKS,
        {"authors of SimBa": "sac_simba_state"},
        eval_every=10_000,
    ),
    "sac_simba_mlp": Method(
        "SAC as SimBa was compared with",
        "sac_simba_mlp",
        2,
        SIMBA_TASKS,
        {"authors of SimBa": "sac_state_simba"},
        eval_every=10_000,
    ),
}


class Curve(NamedTuple):
    """Mean returns (T,) after so many frames (T,), and the half width (T,) of a band."""

    source: str
    num_seeds: int
    frames: np.ndarray
    mean: np.ndarray
    half: np.ndarray

    def show(self, index: int) -> str:
        """A point, with its band if there is one."""
        band = f" +- {self.half[index]:.1f}" if self.num_seeds > 1 else ""
        return f"{self.mean[index]:.1f}{band}"


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alg", choices=METHODS, required=True)
    parser.add_argument("--tasks", nargs="+", help="as in env=; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--frames", type=int, default=1_000_000, help="of a run")
    parser.add_argument("--overrides", nargs="*", default=[], help="of train.py, or its launcher")
    parser.add_argument("--work", type=Path, help="the sweep; default: outputs/published_<alg>")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--report-only", action="store_true", help="of the runs as they stand")
    options = parser.parse_args()
    method = METHODS[options.alg]
    tasks = options.tasks or method.tasks
    if not set(tasks) <= set(method.tasks):
        parser.error(f"--tasks={' '.join(tasks)}; allowed: {' '.join(method.tasks)}")
    work = (options.work or ROOT / "outputs" / f"published_{options.alg}").resolve()
    runs = {task: [work / f"{task}_{seed}" for seed in range(options.seeds)] for task in tasks}
    status = 0 if options.report_only else sweep(method, work, tasks, options)
    report(method, runs, options.results / f"published_{options.alg}")
    sys.exit(status)


def sweep(method: Method, work: Path, tasks: Sequence[str], options: argparse.Namespace) -> int:
    """Make the runs; the exit status."""
    command = (
        *(sys.executable, ROOT / "train.py", "-m", f"experiment={method.experiment}"),
        *(f"env={','.join(tasks)}", f"seed={','.join(map(str, range(options.seeds)))}"),
        f"trainer.total_steps={options.frames // method.action_repeat}",
        f"trainer.evaluation.every={method.eval_every // method.action_repeat}",
        *("hydra/launcher=local", f"hydra.launcher.jobs_per_gpu={len(tasks) * options.seeds}"),
        *(f"hydra.sweep.dir={work}", "hydra.sweep.subdir=${hydra:runtime.choices.env}_${seed}"),
    )
    return subprocess.run([*command, *options.overrides], cwd=ROOT).returncode


def report(method: Method, runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write ``path`` as .csv, .png and .md, of the seeds that have been evaluated."""
    stored = read_rows(path.with_suffix(".csv"))
    rows: list[dict[str, str]] = []
    for task, folders in runs.items():
        for seed, folder in enumerate(folders):
            place = {"task": TASKS[task], "seed": str(seed)}
            own = [{**place, **row} for row in read_rows(folder / "eval.csv")]
            rows += own or [row for row in stored if place.items() <= row.items()]
    curves = {
        name: [read_ours([row for row in rows if row["task"] == name])]
        for name in dict.fromkeys(row["task"] for row in rows)
    }
    if not curves:
        sys.exit("no report yet: no seed has been evaluated")
    for task, together in curves.items():
        together += read_published(method, task)
    write_rows(path.with_suffix(".csv"), rows)
    folders = [each for task in runs for each in runs[task] if (each / "eval.csv").exists()]
    overrides = [yaml.safe_load((each / ".hydra/overrides.yaml").read_text()) for each in folders]
    same = (f"experiment={method.experiment}", *FREE)
    is_reduced = not all(each.startswith(same) for words in overrides for each in words)
    title = method.name + (", at reduced size" if is_reduced else "")
    draw(curves, title, path.with_suffix(".png"))
    end = (
        [f"\nFirst run here: `{' '.join(overrides[0])}`\n", describe(folders[0])] if folders else []
    )
    lines = [f"# {title}", "", *summarise(curves, is_reduced=is_reduced), *end]
    text = "\n".join(lines) + "\n"
    write_whole(path.with_suffix(".md"), text)
    print(text)


def read_ours(rows: Sequence[Mapping[str, str]]) -> Curve:
    """Mean and 95 % interval of the rows of a task where every seed was evaluated."""
    seeds: dict[str, dict[int, float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], {})[int(row["frames"])] = float(row["return"])
    frames = sorted(set.intersection(*map(set, seeds.values())))
    returns = np.array([[seed[each] for each in frames] for seed in seeds.values()])
    half = np.zeros(len(frames))
    if len(seeds) > 1:
        low, high = t_interval(returns)
        half = (high - low) / 2
    return Curve("ours", len(seeds), np.array(frames), returns.mean(axis=0), half)


def read_published(method: Method, task: str) -> Iterator[Curve]:
    """The published curves of a task; the band is the standard deviation over seeds."""
    for source, name in method.sources.items():
        rows = read_rows(ROOT / "benchmarks" / "reference" / f"{name}.csv")
        rows = [row for row in rows if row["task"] == task.replace(" ", "_")]
        columns = ("env_steps", "mean_return", "std_return")
        frames, mean, std = np.array([[float(row[key] or 0) for row in rows] for key in columns])
        yield Curve(source, int(rows[0]["n_seeds"]), frames, mean, std)


def compare(ours: Curve, theirs: Curve) -> Iterator[tuple[str, str]]:
    """For each number of frames that both have: cells of a table, and where ours is."""
    common = np.intersect1d(ours.frames, theirs.frames, return_indices=True)
    for frames, here, there in zip(*common, strict=True):
        difference = ours.mean[here] - theirs.mean[there]
        half = theirs.half[there] if theirs.num_seeds > 1 else ours.half[here]
        place = "inside" if abs(difference) <= half else "above" if difference > 0 else "below"
        yield f"{frames:,.0f} | {ours.show(here)} | {theirs.show(there)}", place


def summarise(curves: Mapping[str, Sequence[Curve]], *, is_reduced: bool) -> Iterator[str]:
    """Lines of Markdown: how to read it, a count for each published curve, every common step."""
    yield "Return without noise, of 10 episodes unless it is said below. Ours: mean +- half of"
    yield "the 95 % interval over seeds (Student's t). Published: mean +- standard deviation over"
    yield "seeds. Inside: the means differ by at most that deviation or, where a single seed was"
    yield "published, by half of our interval. Frames are environment steps before action repeat;"
    yield "all that both curves have are compared, and nothing is interpolated. Sources:"
    yield "benchmarks/reference."
    yield ""
    if is_reduced:
        yield "These runs are at reduced size: their task, network or batch is another than the"
        yield "published, with which they are **not to be compared**."
        yield from ("", "| task | frames | ours |", "| --- " * 3 + "|")
        for task, (ours, *_) in curves.items():
            for index, frames in enumerate(ours.frames):
                yield f"| {task} | {frames:,} | {ours.show(index)} |"
        return
    details = ["", "| task | frames | ours | published | by | ours is |", "| --- " * 6 + "|"]
    yield "| task | published by | common steps | above | inside | below |"
    yield "| --- " * 6 + "|"
    for task, (ours, *published) in curves.items():
        for theirs in published:
            by = f"{theirs.source} (seeds: {theirs.num_seeds})"
            points = list(compare(ours, theirs))
            places = [place for _, place in points]
            counts = [str(places.count(place)) for place in ("above", "inside", "below")]
            yield f"| {task} | {by} | {len(points)} | {' | '.join(counts)} |"
            details += [f"| {task} | {cells} | {by} | {place} |" for cells, place in points]
    yield from details


def describe(run: Path) -> str:
    """Machine, versions and commit of a run's last attempt."""
    attempt: Any = read_attempts(run / "provenance.json")[-1]
    machine, git = attempt["machine"], attempt["git"]
    versions = [f"{name} {version}" for name, version in attempt["packages"].items()]
    commit = f"commit {git.get('commit', 'unknown')}" + " and changes" * bool(git.get("dirty"))
    return ", ".join([*(machine["gpus"] or ["no GPU"]), machine["cpu"], *versions, commit])


def draw(curves: Mapping[str, Sequence[Curve]], title: str, path: Path) -> None:
    """One panel per task: every curve and its band, as far as ours goes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(curves), 3.2), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    styles = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."))
    for panel, (task, together) in zip(panels, curves.items(), strict=True):
        for curve, (color, line) in zip(together, styles, strict=False):
            frames, label = curve.frames / 1000, f"{curve.source} (seeds: {curve.num_seeds})"
            panel.plot(frames, curve.mean, line, color=color, label=label, lw=1.8)
            band = curve.mean - curve.half, curve.mean + curve.half
            panel.fill_between(frames, *band, color=color, alpha=0.2, lw=0)
        panel.set(title=task, xlabel="frames (thousands)", ylabel="return", ylim=(0, 1000))
        panel.set_xlim(0, together[0].frames[-1] / 1000)
        panel.grid(alpha=0.3, lw=0.5)
        panel.legend(loc="upper left", fontsize=7, frameon=False)
    figure.suptitle(title)
    figure.savefig(path)


if __name__ == "__main__":
    main()
