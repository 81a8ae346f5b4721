"""How fast is training, and how soon does it begin? Ours against others.

TD3 and SAC on cheetah run: environment steps per second and CPU seconds per step in a window of
steady training (one update per step, no evaluation), ours by ``train.py`` with its logging, eager
and with ``trainer.execution=compile``; Stable-Baselines3 by ``benchmarks/sb3.py``, which logs
nothing, with the same command line. Beside it the share of what this machine's fp32 matrix products
would allow if there were nothing else.

PPO on eight CartPoles: the same, in a window of whole rollouts with their updates.

DrQ-v2 on walker walk, 84 x 84 pixels: frames per second (two frames a step, an update every two
steps), CPU seconds per step, and where the time goes, by the shares that each program logs:
environment (acting, simulating, rendering, storing), sample and update (with the shifts). Beside it
``plain``, a stand-in of ours for the authors' program (see ``benchmarks/drqv2_plain.py``).

Start-up, with TD3: seconds from the command to the first environment step, against
Stable-Baselines3 and a script of ours with the imports and set-up of CleanRL's (see
``benchmarks/first_step.py``); and the CPU seconds of that, without those of other programs that are
called (git, by ours).

Every window is a process of its own and the systems take turns. Keep the machine quiet meanwhile.
"""

import argparse
import json
import logging
import math
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
    read_rows,
    run_python,
    spread,
    write_rows,
)

OBS_DIM, ACTION_DIM, HIDDEN_DIM, BATCH_SIZE = 17, 6, 256, 256  # of cheetah run and conf/
WARMUP_STEPS = 1000
PIXEL_WARMUP_STEPS = 500  # an episode of walker walk: the stand-in replays whole ones
WINDOWS = {"td3": (400, 2000), "sac": (400, 2000), "drqv2": (20, 40), "ppo": (512, 1024)}
"""Of each algorithm: settling steps, timed steps; of PPO those of each environment."""
HORIZON, NUM_ENVS = 256, 8
CARTPOLES = (
    *("env=timed_cartpole", f"env.env.num_envs={NUM_ENVS}"),
    *(f"trainer.pace.horizon={HORIZON}", "trainer.pace.minibatches=32"),
)
PHASES = ("environment", "sample", "update")
OURS = {"ours": ("trainer.execution=eager",), "compiled": ("trainer.execution=compile",)}
PEERS = {"sb3": "benchmarks/sb3.py", "plain": "benchmarks/drqv2_plain.py"}
STARTERS = ("ours", "sb3", "cleanrl")

log = logging.getLogger(__name__)


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", choices=list(WINDOWS), default="td3")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--windows", type=int, default=7, help="of each system; 0 to skip")
    parser.add_argument("--steps", type=int, help="of a window; 2000, DrQ-v2 40")
    parser.add_argument(
        "--settle", type=int, help="steps with updates before it, at least; 400, DrQ-v2 20"
    )
    parser.add_argument("--starts", type=int, default=7, help="of each system, TD3; 0 to skip")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settle, steps = WINDOWS[arguments.alg]
    settle = settle if arguments.settle is None else arguments.settle
    steps = arguments.steps or steps
    measures = {"drqv2": measure_pixels, "ppo": measure_rollouts}
    measure = measures.get(arguments.alg, measure_throughput)
    facts = describe_machine(threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.alg, arguments.threads)
        tables = {
            f"train_speed_{arguments.alg}.csv": measure(bench, arguments.windows, settle, steps),
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

    def train(self, system: str, *overrides: str, first: int, last: int) -> dict[str, float]:
        """Time the steps after ``first`` up to ``last`` of a training run."""
        never = 1000 * HORIZON * NUM_ENVS
        overrides = (
            f"alg={self.alg}",
            f"hydra.searchpath=[file://{ROOT / 'benchmarks' / 'conf'}]",
            "trusted_modules=[benchmarks]",
            f"env.first={first}",
            f"env.last={last}",
            "env.report=REPORT",
            "device=cpu",
            f"trainer.total_steps={never}",
            f"trainer.evaluation.every={never}",
            f"trainer.checkpoints.every={never}",
            "trainer.checkpoints.minutes=null",
            *overrides,
        )
        folder = "hydra.run.dir=FOLDER" if system in OURS else "FOLDER"
        return self.run(PEERS.get(system, "train.py"), folder, *overrides, *OURS.get(system, ()))

    def train_on_pixels(self, system: str, *, first: int, steps: int) -> dict[str, float]:
        """Time ``steps`` steps of DrQ-v2, with the row of its own log.

        A process ends within its last step, before that could be logged, so the window that it
        logs is one step earlier.
        """
        report = self.train(
            system,
            "env=timed_pixels",
            "~env.pixels",
            "~env.action_repeat",
            "dataset.capacity=10_000",  # about 200 MB
            f"trainer.log_every={steps}",
            f"trainer.pace.warmup_steps={PIXEL_WARMUP_STEPS}",
            first=first + 1,
            last=first + steps + 1,
        )
        rows = read_rows(self.folder / str(self.count) / "time.csv")
        row = next(row for row in rows if int(row["step"]) == first + steps)
        return {**report, **{name: float(value) for name, value in row.items()}}

    def start(self, system: str) -> dict[str, float]:
        """Time from the command to the end of the first environment step, as ``start_s``."""
        if system == "ours":
            return self.train(system, "env=timed", first=0, last=1)
        return self.run("benchmarks/first_step.py", system, "REPORT")


def measure_throughput(
    bench: Bench, windows: int, settle: int, steps: int
) -> list[dict[str, float]]:
    """One row for each pair of windows."""
    rows: list[dict[str, float]] = [{} for _ in range(windows)]
    first = WARMUP_STEPS + settle
    for index, system in interleaved(("matmul", *OURS, "sb3"), windows):
        row = rows[index]
        if system == "matmul":
            row["matmul_gflops"] = bench.run("benchmarks/matmul.py", "REPORT")["gflops"]
            continue
        warmup = f"trainer.pace.warmup_steps={WARMUP_STEPS}"
        window = bench.train(system, "env=timed", warmup, first=first, last=first + steps)
        row[f"{system}_steps_per_s"] = steps / window["wall_s"]
        row[f"{system}_cpu_s_per_step"] = window["cpu_s"] / steps
        share = row[f"{system}_steps_per_s"] * update_gflop(bench.alg) / row["matmul_gflops"]
        row[f"{system}_share_of_bound"] = share
        log.info("window %d: %s %.1f steps/s", index, system, steps / window["wall_s"])
    return [with_ratios(row) for row in rows]


def measure_rollouts(bench: Bench, windows: int, settle: int, steps: int) -> list[dict[str, float]]:
    """One row for each pair of windows of PPO, both of whole rollouts."""
    if settle % HORIZON or steps % HORIZON:
        raise ValueError(f"--settle and --steps must be multiples of the horizon, {HORIZON}")
    rows: list[dict[str, float]] = [{} for _ in range(windows)]
    for index, system in interleaved((*OURS, "sb3"), windows):
        window = bench.train(system, *CARTPOLES, first=settle, last=settle + steps)
        steps_per_s = steps * NUM_ENVS / window["wall_s"]
        rows[index][f"{system}_steps_per_s"] = steps_per_s
        rows[index][f"{system}_cpu_s_per_step"] = window["cpu_s"] / (steps * NUM_ENVS)
        log.info("window %d: %s %.1f steps/s", index, system, steps_per_s)
    return [with_ratios(row) for row in rows]


def with_ratios(row: dict[str, float]) -> dict[str, float]:
    """The row with ours to Stable-Baselines3's."""
    ratios = {}
    for system, prefix in (("ours", ""), ("compiled", "compiled_")):
        if f"{system}_steps_per_s" in row:
            for ratio, unit in (("speed_ratio", "steps_per_s"), ("cpu_ratio", "cpu_s_per_step")):
                ratios[prefix + ratio] = row[f"{system}_{unit}"] / row[f"sb3_{unit}"]
    return row | ratios


def measure_pixels(bench: Bench, windows: int, settle: int, steps: int) -> list[dict[str, float]]:
    """One row for each pair of windows of DrQ-v2."""
    rows: list[dict[str, float]] = [{} for _ in range(windows)]
    # a run logs at multiples of ``steps``
    first = math.ceil((PIXEL_WARMUP_STEPS + settle) / steps) * steps
    for index, system in interleaved(("ours", "plain"), windows):
        window, row = bench.train_on_pixels(system, first=first, steps=steps), rows[index]
        frames = steps * window["frames"] / window["step"]
        row[f"{system}_frames_per_s"] = frames / window["wall_s"]
        row[f"{system}_cpu_s_per_step"] = window["cpu_s"] / steps
        for phase in PHASES:
            row[f"{system}_{phase}_s_per_step"] = window[phase] * window["wall_s"] / steps
            row[f"{system}_{phase}_share"] = window[phase]
        log.info("window %d: %s %.2f frames/s", index, system, frames / window["wall_s"])
    for row in rows:
        row["speed_ratio"] = row["ours_frames_per_s"] / row["plain_frames_per_s"]
        row["cpu_ratio"] = row["ours_cpu_s_per_step"] / row["plain_cpu_s_per_step"]
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
