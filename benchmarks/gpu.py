"""Everything that only a GPU can tell, in one command with a budget of minutes.

    python -m benchmarks.gpu --minutes 9

Parts come in the order of their value; each has a limit of its own, and none begins without a
minute left. What a part measured is kept in the results folder as it comes, so that half a run is
still evidence; one that fails does not stop the rest.

- ``tests``: those marked gpu.
- ``td3``, ``sac``: updates per second, eager, captured, compiled, beside Stable-Baselines3 and a
  bare captured loop (``benchmarks/gpu_updates.py``).
- ``runs``: steps per second of whole runs, eager and captured: TD3, SAC, PPO, DrQ-v2.
- ``seeds``: those of 1, 4, 16 and 64 seeds of TD3 in one process.
- ``pack``: those of 1, 16 and 4 processes on the GPU, with and without MPS.
- ``supervised``: images per second of ResNet-18, captured, beside a bare loop.
- ``learn``: eight seeds of TD3 on walker walk, packed on the GPU; only if it is named.
"""

import argparse
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT, describe_machine, environment, read_rows, write_rows

PYTHON = sys.executable
QUIETLY = (
    *("trainer.log_every=500", "trainer.evaluation.every=1000000", "trainer.evaluation.episodes=1"),
    "trainer.checkpoints.every=null",
)
TD3 = ("alg=td3", "env=cheetah", "trainer.pace.warmup_steps=1000", "trainer.total_steps=6000")
RUNS: Mapping[str, Sequence[str]] = {
    "td3": TD3,
    "sac": ("alg=sac", *TD3[1:]),
    "drqv2": (
        *("alg=drqv2", "env=cheetah", "dataset.capacity=20000", "trainer.log_every=200"),
        *("env.subprocesses=true", "trainer.pace.warmup_steps=500", "trainer.total_steps=3000"),
    ),
    "ppo": (
        *("alg=ppo", "env=cartpole_gym", "env.num_envs=64", "trainer.pace.horizon=128"),
        *("trainer.total_steps=163840", "trainer.log_every=8192"),  # a row for each rollout
    ),
}
LIMITS = {
    "tests": 150,
    "td3": 120,
    "sac": 120,
    "runs": 45,
    "seeds": 60,
    "pack": 150,
    "supervised": 90,
}
"""Seconds that each process of a part may take."""

log = logging.getLogger(__name__)


def main() -> None:
    """Measure and print, and keep what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(LIMITS)}, learn; all but learn")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu to try it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of tables and logs")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {*LIMITS, "learn"}
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(LIMITS)}, learn")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    bench = Bench(arguments.results, arguments.device, time.monotonic() + 60 * arguments.minutes)
    log.info("%s", bench.facts)
    for part in arguments.parts or LIMITS:
        getattr(bench, part)()
    log.info("%.0f s of the budget are left", bench.left())


class Bench:
    """Runs the parts, each a method.

    Args:
        results: gets a table ``gpu.csv`` with a line for each figure, and a log for each process.
        device: ``cuda``, or ``cpu`` to try it.
        end_s: when the budget is over, by ``time.monotonic``.

    """

    def __init__(self, results: Path, device: str, end_s: float) -> None:
        self.results = results
        self.device = device
        self.end_s = end_s
        self.logs = results / "gpu_logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.path = results / "gpu.csv"
        name = card() if device == "cuda" else "cpu"
        self.facts = {"device": name, **describe_machine(threads=threads())}

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.end_s - time.monotonic()

    def note(self, part: str, name: str, figure: float | str, unit: str) -> None:
        """Put a line into the table, instead of an earlier one of that name."""
        log.info("%s: %s %s %s", part, name, figure, unit)
        row = {"part": part, "name": name, "figure": figure, "unit": unit, **self.facts}
        kept = [row for row in read_rows(self.path) if (row["part"], row["name"]) != (part, name)]
        write_rows(self.path, [*kept, row])

    def run(self, part: str, name: str, *words: str | Path) -> Path | None:
        """Run this Python, as long as the part may; its log if it did not fail."""
        limit = LIMITS.get(part, 540)
        path = self.logs / f"{part}_{name}.log"
        if self.left() < min(limit, 60):
            log.info("%s %s is left out: the budget is over", part, name)
            return None
        start = time.monotonic()
        with path.open("wb") as output:
            process = subprocess.Popen(
                [PYTHON, *map(str, words)],
                cwd=ROOT,
                env=environment(threads()),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its group is to end with it
            )
        done: int | str = "interrupted"
        try:
            done = process.wait(min(limit, self.left()))
        except subprocess.TimeoutExpired:
            done = "timed out"
        finally:
            if not isinstance(done, int):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.info("%s %s: %s after %.0f s", part, name, done, time.monotonic() - start)
        if done != 0:
            lines = path.read_text(errors="replace").splitlines() or [""]
            self.note(part, name, "failed", f"{done}: {lines[-1][:200]}")
            return None
        return path

    def tests(self) -> None:
        """Those marked gpu."""
        words = ("-m", "pytest", "-n", "4", "--maxfail=20", "-m", "gpu", "tests")
        if path := self.run("tests", "gpu", *words):
            self.note("tests", "gpu", path.read_text().splitlines()[-1], "")

    def td3(self) -> None:
        """Updates of TD3."""
        self.updates("td3")

    def sac(self) -> None:
        """Updates of SAC."""
        self.updates("sac")

    def updates(self, alg: str) -> None:
        """Updates per second, by benchmarks/gpu_updates.py."""
        path = self.results / f"gpu_updates_{alg}.csv"
        path.unlink(missing_ok=True)  # so that none of before is taken for this one
        few = () if self.device == "cuda" else ("--updates", "20", "--rounds", "1")
        words = ("--alg", alg, "--device", self.device, "--results", self.results, *few)
        self.run(alg, "updates", "-m", "benchmarks.gpu_updates", *words)
        rows = read_rows(path)
        for column in rows[0] if rows else ():
            if column.endswith(("_ratio", "_per_s")):
                self.note(alg, column, median([float(r[column]) for r in rows if r[column]]), "")

    def runs(self) -> None:
        """Whole runs, by train.py."""
        for alg, overrides in RUNS.items():
            for execution in ("eager", "graph" if self.device == "cuda" else "compile"):
                own = (*overrides, f"trainer.execution={execution}")
                self.train("runs", f"{alg}_{execution}", own, 1)

    def seeds(self) -> None:
        """Seeds in one process."""
        for count in (1, 4, 16, 64) if self.device == "cuda" else (1, 2):
            steps = max(900, 6000 // count)
            own = (*TD3, f"trainer.num_seeds={count}", f"trainer.total_steps={steps}")
            own += ("trainer.pace.warmup_steps=300", "trainer.log_every=50")
            own += ("dataset.capacity=10000",)
            self.train("seeds", f"td3_{count}", own, count)

    def train(self, part: str, name: str, overrides: Sequence[str], count: int) -> None:
        """A run of train.py: the sum of the speeds of its seeds when it is steady."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "run"
            words = (*QUIETLY, *overrides, f"device={self.device}", f"hydra.run.dir={folder}")
            if self.device == "cpu" and "alg=ppo" not in overrides:
                words += ("trainer.total_steps=1536", "trainer.log_every=128")
            self.run(part, name, "train.py", *words)
            folders = [folder] if count == 1 else sorted(folder.glob("seed=*"))
            warmups = re.findall(r"warmup_steps=(\d+)", " ".join(words))
            first = int(warmups[-1]) if warmups else 0
            found = [list(speeds(each, first))[-3:] for each in folders]
            if found and all(found):  # also of a run that was too slow to end in time
                self.note(part, name, sum(map(median, found)), "steps/s")
            else:
                log.info("%s %s: not trained by the end", part, name)

    def pack(self) -> None:
        """Processes that share the GPU, by benchmarks/launch.py."""
        for count in (1, 16, 4) if self.device == "cuda" else (1, 2):
            folder = self.logs / f"pack_{count}"
            kind = "--gpu" if self.device == "cuda" else "--quick"
            words = ("--sweeps", "0", "--rounds", "1", "--counts", str(count), kind)
            words += ("--window", "6", "--settle", "200", "--results", str(folder))
            self.run("pack", str(count), "-m", "benchmarks.launch", *words)
            for row in read_rows(folder / "launch_gpu.csv")[:1]:
                for column, value in row.items():
                    if column.endswith("_steps_per_s") and value:
                        self.note("pack", column.removesuffix("_steps_per_s"), value, "steps/s")

    def supervised(self) -> None:
        """ResNet-18 against a bare loop, by benchmarks/supervised.py."""
        case = "resnet18_large" if self.device == "cuda" else "resnet18"
        words = ("--cases", case, "--systems", "bare", "ours", "--device", self.device)
        words += ("--rounds", "2", "--results", str(self.results))
        if path := self.run("supervised", "resnet18", "-m", "benchmarks.supervised", *words):
            print(path.read_text())

    def learn(self) -> None:
        """Eight seeds of TD3 on walker walk, all on the GPU."""
        words = ("--plan", "td3", "--tasks", "walker", "--seeds", "8", "--results", self.results)
        self.run("learn", "td3", "-m", "benchmarks.learning", *words)


def threads() -> int:
    """Of each process that has the machine to itself."""
    return max(1, min(8, os.cpu_count() or 1))


def card() -> str:
    """The GPU's name, by nvidia-smi."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def speeds(folder: Path, first: int) -> Iterator[float]:
    """Steps per second of a run after its step ``first``, by its rows."""
    for row in read_rows(folder / "time.csv"):
        if row.get("steps_per_s") and int(row["step"]) > first:
            yield float(row["steps_per_s"])


def median(values: Sequence[float]) -> float:
    """The lower of the two in the middle."""
    return sorted(values)[(len(values) - 1) // 2]


if __name__ == "__main__":
    main()
