"""What every benchmark needs: processes with a fixed number of threads, order, machine, medians."""

import csv
import io
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from research.files import write_whole
from research.training.saving.provenance import git_state, machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "stable-baselines3", "numpy", "gymnasium", "dm_control", "mujoco")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_python(arguments: Sequence[str | Path], *, threads: int, log: Path) -> None:
    """Run this Python in a process of its own, from the repository, its output going to ``log``.

    Raises:
        RuntimeError: it failed; the message ends with its last lines.

    """
    command = [sys.executable, *map(str, arguments)]
    with log.open("wb") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(threads), stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}\n{tail}")


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with the number of threads, and the repository to import from."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": path}


def interleaved(systems: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """A B A B: a machine's drift over minutes then meets every system alike."""
    for index in range(rounds):
        for system in systems:
            yield index, system


def describe_machine(*, threads: int) -> dict[str, str | int]:
    """Processor, cores, threads, versions and commit, as the columns of a result."""
    git = git_state(ROOT)
    return {
        "cpu": str(machine()["cpu"]),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "python": sys.version.split()[0],
        **{name: version(name) for name in PACKAGES},
        "commit": str(git.get("commit", "none")) + (" and changes" if git.get("dirty") else ""),
    }


def version(package: str) -> str:
    """The version that is installed, or ``none``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def spread(values: Sequence[float]) -> str:
    """``median (min to max)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file whole; its columns are those of all the rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(path, text.getvalue())


def write_config(folder: Path, config: DictConfig) -> None:
    """Make ``folder`` a run directory of a config that was composed with Hydra's own."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    with open_dict(config):
        hydra = config.pop("hydra")
    for name, content in (("config", config), ("hydra", {"hydra": hydra})):
        write_whole(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(content))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
