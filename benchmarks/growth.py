"""How does cost grow? A figure for each of environments, batch, width, jobs and seeds.

- ``environments``: microseconds per call of the loop (a step of all of them and an update) of DQN
  on so many CartPoles, stepped as arrays (``env=native``).
- ``batch``, ``width``: microseconds per update of TD3, eager and compiled, on the spaces of cheetah
  run; widths are those of both hidden layers.
- ``jobs``: microseconds until each of so many TD3 trainings, as processes that share the cores, has
  made a step; ``seeds``: the same of so many seeds in one process, compiled.

Each point is a median of rounds, in which all points take turns, with its range; the figures show
it against the first point, the smallest size.
Keep the machine quiet meanwhile.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch

from benchmarks import seeds
from benchmarks.gpu_updates import Learn, make_ours
from benchmarks.measure import (
    RESULTS,
    ROOT,
    describe_machine,
    interleaved,
    read_rows,
    run_python,
    write_rows,
)
from research.training.execution import Execution

CPU = torch.device("cpu")
ENVIRONMENTS, BATCHES, WIDTHS = (
    (1, 16, 256, 4096),
    (16, 64, 256, 1024, 4096),
    (64, 128, 256, 512, 1024),
)
COUNTS = (1, 2, 4)
CALLS, SETTLING = 400, 100
"""Calls of the loop that are timed, in a run on environments; and those before."""
SECONDS = 1.5
"""Of updates in a window."""

log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One size on one line of one figure, and what measures its microseconds."""

    figure: str
    line: str
    size: int
    measure: Callable[[], float]


def main() -> None:
    """Measure, and write table and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of all processes together")
    parser.add_argument("--figures", nargs="+", help="of environments, batch, width, jobs, seeds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of table and figure")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    facts = describe_machine(threads=arguments.threads)
    points = {
        f"{point.figure} {point.line} {point.size}": point
        for point in make_points(arguments.threads)
        if not arguments.figures or point.figure in arguments.figures
    }
    found: dict[str, list[float]] = {name: [] for name in points}
    for index, name in interleaved(list(points), arguments.rounds):
        found[name].append(points[name].measure())
        log.info("round %d: %s: %.0f us", index, name, found[name][-1])
        if name == list(points)[-1]:
            write_table(arguments.results, points, found, facts)
    draw(arguments.results)


def write_table(
    results: Path,
    points: Mapping[str, Point],
    found: Mapping[str, Sequence[float]],
    facts: Mapping[str, object],
) -> None:
    """The table of what was found, beside the figures that it has from an earlier command."""
    rows = []
    for name, (figure, line, size, _) in points.items():
        us = {
            "us": statistics.median(found[name]),
            "least": min(found[name]),
            "most": max(found[name]),
        }
        rows.append({"figure": figure, "line": line, "size": size, **us, **facts})
    drawn = {point.figure for point in points.values()}
    path = results / "growth.csv"
    kept = [row for row in read_rows(path) if row["figure"] not in drawn]
    write_rows(path, [*kept, *rows])


def make_points(threads: int) -> Iterator[Point]:
    """All points, the smallest of each line first."""
    for size in ENVIRONMENTS:
        yield Point("environments", "DQN", size, partial(time_environments, size, threads))
    for figure, sizes, key in (
        ("batch", BATCHES, "dataset.batch_size={}"),
        ("width", WIDTHS, "network.hidden_dims=[{0},{0}]"),
    ):
        for line in ("eager", "compile"):
            for size in sizes:
                updates = Updates(line, key.format(size))
                yield Point(figure, line, size, updates.time)
    for figure, way in (("jobs", "processes"), ("seeds", "one_process")):
        for size in COUNTS:
            yield Point(figure, way, size, partial(time_runs, way, size, threads))


class Updates:
    """Times the updates of TD3, whose learner is made when it is first needed.

    Args:
        execution: of them.
        override: of the config.

    """

    def __init__(self, execution: Execution, override: str) -> None:
        self.execution: Execution = execution
        self.override = override
        self.learn: Learn | None = None

    def time(self) -> float:
        """Microseconds per update."""
        if self.learn is None:
            self.learn = make_ours("td3", CPU, self.execution, self.override)
            self.learn(4)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            self.learn(10)
            count += 10
        return 1e6 * elapsed / count


def time_environments(count: int, threads: int) -> float:
    """Microseconds per call of the loop with so many environments."""
    calls = CALLS + SETTLING
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        overrides = (
            *("alg=dqn", "env=native", "env.id=CartPole-v1", f"env.num_envs={count}"),
            *("device=cpu", "dataset.capacity=1000000", f"hydra.run.dir={folder}"),
            *(f"trainer.total_steps={calls * count}", f"trainer.pace.warmup_steps={20 * count}"),
            *(f"trainer.pace.steps_per_update={count}", f"trainer.log_every={SETTLING * count}"),
            *("trainer.evaluation.episodes=1", f"trainer.evaluation.every={calls * count}"),
            *("trainer.checkpoints.every=null", "trainer.execution=eager"),
        )
        run_python([ROOT / "train.py", *overrides], threads=threads, log=Path(temporary) / "log")
        rows = [
            row for row in read_rows(folder / "time.csv") if int(row["step"]) > SETTLING * count
        ]
        speed = statistics.harmonic_mean([float(row["steps_per_s"]) for row in rows])
    return 1e6 * count / speed


def time_runs(way: str, count: int, threads: int) -> float:
    """Microseconds until each of so many trainings has made a step."""
    with tempfile.TemporaryDirectory() as folder:
        return 1e6 * count / seeds.measure(way, Path(folder), count, threads)


def draw(results: Path) -> None:
    """The figures side by side, from the table."""
    mpl.use("agg")
    from matplotlib import pyplot

    rows = read_rows(results / "growth.csv")
    names = list(dict.fromkeys(row["figure"] for row in rows))
    made, axes = pyplot.subplots(1, len(names), figsize=(3.4 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own: Sequence[dict[str, Any]] = [row for row in rows if row["figure"] == name]
        for line in dict.fromkeys(row["line"] for row in own):
            points = [row for row in own if row["line"] == line]
            sizes = [int(row["size"]) for row in points]
            ratios, least, most = (
                [float(row[column]) / float(own[0]["us"]) for row in points]
                for column in ("us", "least", "most")
            )
            axis.plot(sizes, ratios, marker="o", markersize=3, label=line.replace("_", " "))
            axis.fill_between(sizes, least, most, alpha=0.2)
        sizes = sorted({int(row["size"]) for row in own})
        axis.plot(
            sizes, [size / sizes[0] for size in sizes], "k:", linewidth=1, label="in proportion"
        )
        axis.set(xscale="log", yscale="log", xlabel=name, title="cost, to that of the smallest")
        axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axis.minorticks_off()
        axis.legend(fontsize=7)
    axes[0][0].set_title("cost, to that of the smallest", fontsize=9)
    for axis in axes[0]:
        axis.title.set_fontsize(9)
    made.tight_layout()
    made.savefig(results / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
