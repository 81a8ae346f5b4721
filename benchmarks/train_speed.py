"""How fast is training, and how soon does it begin? TD3 and SAC on cheetah run against others.

Throughput: environment steps per second and CPU seconds per step in a window of steady training
(one update per step, no evaluation), ours by ``train.py`` with its logging, Stable-Baselines3 by
``benchmarks/sb3.py``, which logs nothing, with the same command line. Beside it the share of
what this machine's fp32 matrix products would allow if there were nothing else to do.

Start-up: seconds from the command to the first environment step, against Stable-Baselines3 and
a script of ours with the imports and set-up of CleanRL's (see ``benchmarks/first_step.py``); and
the CPU seconds of that, without those of other programs that are called (git, by ours).

Every window is a process of its own and the systems take turns. Keep the machine quiet meanwhile.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import (
    RESULTS,
    ROOT,
    describe_machine,
    interleaved,
    run_python,
    spread,
    write_rows,
)

OBS_DIM, ACTION_DIM, HIDDEN_DIM, BATCH_SIZE = 17, 6, 256, 256  # of cheetah run and conf/
WARMUP_STEPS = 1000
STARTERS = ("ours", "sb3", "cleanrl")

log = logging.getLogger(__name__)


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", choices=["td3", "sac"], default="td3")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--windows", type=int, default=7, help="of each system; 0 to skip")
    parser.add_argument("--steps", type=int, default=2000, help="of a window")
    parser.add_argument("--settle", type=int, default=400, help="steps with updates before it")
    parser.add_argument("--starts", type=int, default=7, help="of each system, TD3; 0 to skip")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    facts = describe_machine(threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.alg, arguments.threads)
        tables = {
            f"train_speed_{arguments.alg}.csv": measure_throughput(
                bench, arguments.windows, arguments.settle, arguments.steps
            ),
            "start_up.csv": measure_start_up(bench, arguments.starts * (arguments.alg == "td3")),
        }
    for name, rows in tables.items():
        if rows:
            write_rows(arguments.results / name, [{**row, **facts} for row in summarised(rows)])
            print(f"\n{name}: median (minimum to maximum) of {len(rows)}")
            for column in rows[0]:
                print(f"  {column:28} {spread([row[column] for row in rows])}")
    print(f"\n{', '.join(f'{name} {value}' for name, value in facts.items())}")


class Bench:
    """Starts the processes that are timed, each in a fresh folder.

    Args:
        folder: for what they leave.
        alg: what is trained.
        threads: of each process.

    """

    def __init__(self, folder: Path, alg: str, threads: int) -> None:
        self.folder = folder
        self.alg = alg
        self.threads = threads
        self.count = 0

    def run(self, script: str, *arguments: str) -> dict[str, float]:
        """The report of a process, and ``start_s`` until it; FOLDER and REPORT are filled in."""
        self.count += 1
        folder = self.folder / str(self.count)
        report = self.folder / f"{self.count}.json"
        filled = [
            a.replace("FOLDER", str(folder)).replace("REPORT", str(report)) for a in arguments
        ]
        start = time.time()
        run_python(
            [ROOT / script, *filled], threads=self.threads, log=self.folder / f"{self.count}.log"
        )
        result = json.loads(report.read_text())
        return {**result, "start_s": result.get("ended", start) - start}

    def train(self, system: str, *, warmup: int, first: int, last: int) -> dict[str, float]:
        """Time the steps after ``first`` up to ``last`` of a training run."""
        overrides = (
            f"alg={self.alg}",
            "env=timed",
            f"hydra.searchpath=[file://{ROOT / 'benchmarks' / 'conf'}]",
            "trusted_modules=[benchmarks]",
            f"env.first={first}",
            f"env.last={last}",
            "env.report=REPORT",
            "device=cpu",
            f"trainer.collector.warmup_steps={warmup}",
            "trainer.eval_every=1_000_000",
            "trainer.checkpoint_every=1_000_000",
        )
        if system == "ours":
            return self.run("train.py", *overrides, "hydra.run.dir=FOLDER")
        return self.run("benchmarks/sb3.py", "FOLDER", *overrides)

    def start(self, system: str) -> dict[str, float]:
        """Time from the command to the end of the first environment step, as ``start_s``."""
        if system == "ours":
            return self.train(system, warmup=10_000, first=0, last=1)
        return self.run("benchmarks/first_step.py", system, "REPORT")


def measure_throughput(
    bench: Bench, windows: int, settle: int, steps: int
) -> list[dict[str, float]]:
    """One row for each pair of windows."""
    rows: list[dict[str, float]] = [{} for _ in range(windows)]
    first = WARMUP_STEPS + settle
    for index, system in interleaved(("matmul", "ours", "sb3"), windows):
        row = rows[index]
        if system == "matmul":
            row["matmul_gflops"] = bench.run("benchmarks/matmul.py", "REPORT")["gflops"]
            continue
        window = bench.train(system, warmup=WARMUP_STEPS, first=first, last=first + steps)
        row[f"{system}_steps_per_s"] = steps / window["wall_s"]
        row[f"{system}_cpu_s_per_step"] = window["cpu_s"] / steps
        share = row[f"{system}_steps_per_s"] * update_gflop(bench.alg) / row["matmul_gflops"]
        row[f"{system}_share_of_bound"] = share
        log.info("window %d: %s %.1f steps/s", index, system, steps / window["wall_s"])
    for row in rows:
        row["speed_ratio"] = row["ours_steps_per_s"] / row["sb3_steps_per_s"]
        row["cpu_ratio"] = row["ours_cpu_s_per_step"] / row["sb3_cpu_s_per_step"]
    return rows


def measure_start_up(bench: Bench, starts: int) -> list[dict[str, float]]:
    """One row for each round of starts; one round before them warms the disk's cache."""
    rows: list[dict[str, float]] = [{} for _ in range(starts)]
    for index, system in interleaved(STARTERS, starts + 1 if starts else 0):
        result = bench.start(system)
        if index > 0:
            rows[index - 1][f"{system}_start_s"] = result["start_s"]
            rows[index - 1][f"{system}_start_cpu_s"] = result["process_cpu_s"]
            log.info("start %d: %s %.2f s", index, system, result["start_s"])
    for row in rows:
        for other in STARTERS[1:]:
            row[f"ratio_to_{other}"] = row["ours_start_s"] / row[f"{other}_start_s"]
    return rows


def update_gflop(alg: str) -> float:
    """Work of the matrix products of one update, of TD3 with a delay of 2, in 1e9 operations.

    A product with a weight matrix of n entries takes 2 n B operations, forward, for the gradient
    of its input and for that of its weights. The first layer needs no gradient of its input but
    where an action flows into a critic. Acting, on a batch of 1, is left out.
    """
    first_of_actor, first_of_critic = OBS_DIM * HIDDEN_DIM, (OBS_DIM + ACTION_DIM) * HIDDEN_DIM
    num_outputs = {"td3": ACTION_DIM, "sac": 2 * ACTION_DIM}[alg]
    actor = first_of_actor + HIDDEN_DIM**2 + HIDDEN_DIM * num_outputs
    critic = first_of_critic + HIDDEN_DIM**2 + HIDDEN_DIM
    targets = actor + 2 * critic
    critic_update = 2 * (3 * critic - first_of_critic)
    # an actor climbs one critic, every second time, or the lower of two
    critics_climbed, period = {"td3": (1, 2), "sac": (2, 1)}[alg]
    actor_update = 3 * actor - first_of_actor + 2 * critics_climbed * critic
    return 2 * BATCH_SIZE * (targets + critic_update + actor_update / period) / 1e9


def summarised(rows: Sequence[Mapping[str, float]]) -> Iterator[Mapping[str, object]]:
    """The rows, numbered, and below them minimum, median and maximum of every column."""
    for index, row in enumerate(rows):
        yield {"round": index, **row}
    for summary in (min, statistics.median, max):
        yield {"round": summary.__name__} | {
            name: summary([row[name] for row in rows]) for name in rows[0]
        }


if __name__ == "__main__":
    main()
