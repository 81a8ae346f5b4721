"""Where a run comes from: command, code, versions and machine, enough to repeat it."""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from research.errors import UserError
from research.files import read_json, write_whole
from research.machine.gpus import driver_version, gpu_models

PACKAGES = (
    *("torch", "torchvision", "numpy", "gymnasium", "gym", "dm_control", "mujoco"),
    *("hydra-core", "omegaconf", "submitit", "optuna", "tensorboard", "tqdm"),
    *("wandb", "trackio", "mlflow", "mlflow-skinny", "onnx", "onnxruntime", "onnxscript"),
)
VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"),
    *("CUDA_VISIBLE_DEVICES", "MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "OMP_NUM_THREADS"),
)
"""Never the whole environment: it holds people's keys."""

CODE = (".py", ".yaml", ".yml", ".toml", ".sh")
"""Files whose text is kept although git does not know them; others may be data or secrets."""

MAX_CHARACTERS = 2**18
MAX_FILE_BYTES = 2**28
"""Room for hundreds of attempts that all have the longest diff."""
GIT_S = 5.0


def write_provenance(run_dir: Path, command: Sequence[str], changes: Sequence[str] = ()) -> None:
    """Add this attempt to ``provenance.json``, which holds ``{"attempts": [...]}``.

    It takes about 15 ms, most of it in git, in the main thread: a second thread would make forking
    the environments unsafe.

    Args:
        run_dir: the run directory.
        command: the command line, as in ``sys.argv``.
        changes: how this attempt's config differs from the one before, a line each.

    Raises:
        UserError: the file exists and is something else.

    """
    path = run_dir / "provenance.json"
    attempts = read_attempts(path)
    attempt = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "changes": list(changes),
        "folder": os.getcwd(),
        "git": git_state(Path(__file__).parents[2]),
        "python": f"{sys.executable}, {sys.version}",
        "packages": package_versions(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "machine": machine(),
    }
    write_whole(path, json.dumps({"attempts": [*attempts, attempt]}, indent=2) + "\n")


def read_attempts(path: Path) -> list[object]:
    """The attempts in ``path``, each a dict; none if it does not exist.

    Raises:
        UserError: the file is something else.

    """
    try:
        content = read_json(path, max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a run's provenance: {error}") from error
    attempts = content.get("attempts") if isinstance(content, dict) else None
    if not isinstance(attempts, list) or not all(isinstance(each, dict) for each in attempts):
        raise UserError(f"{path} is not a run's provenance: it has no list of attempts")
    return attempts


def package_versions() -> dict[str, str]:
    """Versions of the installed ones of ``PACKAGES``."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, object]:
    """Host, processors, memory, threads and GPUs; torch is asked only if it is loaded."""
    facts: dict[str, object] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": gpu_models(),
        "gpu_driver": driver_version(),
    }
    if hasattr(os, "sched_getaffinity"):
        facts["affinity"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    if torch := sys.modules.get("torch"):
        facts |= {"torch_threads": torch.get_num_threads(), "torch_cuda": torch.version.cuda}
    return facts


def cpu_model() -> str:
    """The processor's name, from ``/proc/cpuinfo`` if it exists."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
            return next(names, platform.processor())
    except OSError:
        return platform.processor()


def git_state(folder: Path) -> dict[str, object]:
    """Commit, branch and everything uncommitted of the repository ``folder`` lies in.

    Without git or a repository, the only key is ``error``. ``note`` says if the diff was cut.
    A launcher's snapshot of a repository has the commit that the launcher noted.
    """
    snapshot = folder.parent / ".commit"
    if snapshot.exists():
        commit, _, changed = snapshot.read_text().strip().partition("-")
        return {"root": str(folder.parent), "commit": commit, "dirty": bool(changed)}
    try:
        if ignores(folder):
            return {"error": f"{folder} lies in a repository that ignores it"}
        answer = git(folder, "rev-parse", "--show-toplevel", "HEAD", "--abbrev-ref", "HEAD")
        root, commit, branch = answer.splitlines()
        options = ("--no-color", "--no-ext-diff", "--no-textconv")
        diff = git(Path(root), "diff", *options, "HEAD")
        listing = git(Path(root), "ls-files", "--others", "--exclude-standard", "-z")
    except subprocess.CalledProcessError as error:
        return {"error": f"no repository with a commit, or not one that git trusts: {error}"}
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}
    cut = f"the diff is cut after {MAX_CHARACTERS:,} characters"
    untracked = untracked_code(Path(root), [name for name in listing.split("\0") if name])
    return {
        "root": root,
        "commit": commit,
        "branch": branch,
        "dirty": bool(diff or untracked),
        "diff": diff[:MAX_CHARACTERS],
        "untracked": untracked,
        "note": cut if len(diff) > MAX_CHARACTERS else None,
    }


def ignores(folder: Path) -> bool:
    """Whether the repository around ``folder`` ignores it, as it does a snapshot of the code."""
    command = ["git", "check-ignore", "--quiet", "."]
    done = subprocess.run(
        command, cwd=folder, env=git_environment(), capture_output=True, timeout=GIT_S
    )
    return done.returncode == 0


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command.

    Raises:
        OSError: there is no git.
        subprocess.SubprocessError: the command failed or took too long.

    """
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=git_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=GIT_S,
        check=True,
    ).stdout.decode(errors="replace")


def git_environment() -> dict[str, str]:
    """The environment without the variables by which a git hook sets its repository."""
    pointers = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
    return {name: value for name, value in os.environ.items() if name not in pointers}


def untracked_code(root: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Texts of the code files among ``names``, up to a total length; None for the others."""
    texts: dict[str, str | None] = dict.fromkeys(names)
    left = MAX_CHARACTERS
    for name in names:
        path = root / name
        try:
            if path.suffix in CODE and path.stat().st_size <= left:
                text = path.read_text(errors="replace")
                texts[name], left = text, left - len(text)
        except OSError:
            continue
    return texts
