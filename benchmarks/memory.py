"""The memory that a dry run forecasts beside what the run then takes, in 10^9 bytes.

``hydra.sweeper.dry_run=true`` tries each job for a few updates; the run goes on to its end. On a
GPU both have a column for the memory that torch reserves there.
"""

import argparse
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT, describe_machine, read_rows, run_python, write_rows

OFF_POLICY = "trainer.evaluation.every=2500", "trainer.evaluation.episodes=2"
RUNS: Mapping[str, Sequence[str]] = {
    "TD3": ["alg=td3", "env=cheetah", "trainer.total_steps=6_000", *OFF_POLICY],
    "DQN, Pong, a buffer that fills": [
        *("experiment=rainbow", "env=atari", "env.game=Pong", "network/encoder=nature"),
        *("network.encoder.feature_dim=null", "trainer.total_steps=30_000"),
        *("trainer.evaluation.every=30_000", "trainer.evaluation.episodes=1"),
        *("trainer.pace.steps_per_update=64", "trainer.pace.warmup_steps=1000"),
    ],
    "SAC, compiled": [
        *("alg=sac", "env=cheetah", "trainer.total_steps=5_000", *OFF_POLICY),
        "trainer.execution=compile",
    ],
    "four seeds of SAC": [
        *("alg=sac", "env=pendulum", "trainer.total_steps=3_000", *OFF_POLICY),
        "trainer.num_seeds=4",
    ],
    "DQN": ["alg=dqn", "env=cartpole_gym", "trainer.total_steps=20_000", *OFF_POLICY],
    "PPO": ["alg=ppo", "env=cartpole_gym", "trainer.total_steps=20_480", *OFF_POLICY],
    "DrQ-v2": [
        *("alg=drqv2", "env=walker", "trainer.total_steps=800", "trainer.evaluation.episodes=1"),
        *("trainer.evaluation.every=400", "trainer.pace.warmup_steps=500"),
    ],
    "classification": ["alg=classification", "trainer.total_epochs=20"],
}

log = logging.getLogger(__name__)


def main() -> None:
    """Forecast, run, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    facts = describe_machine(threads=arguments.threads)
    rows: list[dict[str, object]] = []
    for name in arguments.only:
        overrides = [*RUNS[name], f"device={arguments.device}"]
        with tempfile.TemporaryDirectory() as folder:
            forecast = forecast_of(overrides, Path(folder), arguments.threads)
            used = memory_of(overrides, Path(folder), arguments.threads)
        ratios = {
            f"{key}_ratio": forecast[key] / used[key] for key in used if used[key] and forecast[key]
        }
        measured = {
            f"{key}_{kind}_gb": values[key]
            for kind, values in (("forecast", forecast), ("used", used))
            for key in used
        }
        rows.append({"run": name, **measured, **ratios, "device": arguments.device, **facts})
        told = ", ".join(f"{key} {forecast[key]:.2f} GB, used {used[key]:.2f} GB" for key in used)
        log.info("%s: %s", name, told)
        write_rows(arguments.results / "memory.csv", rows)


def forecast_of(overrides: Sequence[str], folder: Path, threads: int) -> dict[str, float]:
    """What a dry run prints, by kind of memory."""
    log_file = folder / "dry_run.log"
    options = ["-m", f"hydra.sweep.dir={folder / 'sweep'}", "hydra.sweeper.dry_run=true"]
    run_python([ROOT / "train.py", *overrides, *options], threads=threads, log=log_file)
    (row,) = re.findall(r"^0 .*?(\S+ GB|-)  +(\S+ GB|-)$", log_file.read_text(), re.MULTILINE)
    host, gpu = (float(cell.removesuffix(" GB").replace("-", "0")) for cell in row)
    return {"host": host, "gpu": gpu}


def memory_of(overrides: Sequence[str], folder: Path, threads: int) -> dict[str, float]:
    """The peaks of a whole run, from its log, by kind of memory."""
    run = folder / "run"
    command = [ROOT / "train.py", *overrides, f"hydra.run.dir={run}"]
    run_python(command, threads=threads, log=folder / "run.log")
    path = next(run.rglob("time.csv"))  # of several seeds, any: they share the process
    last = read_rows(path)[-1]
    return {"host": float(last["memory_gb"]), "gpu": float(last.get("gpu_memory_gb") or 0)}


if __name__ == "__main__":
    main()
