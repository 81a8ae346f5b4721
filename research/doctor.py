"""Prints what this machine offers to a job, and what to do if a job would not run.

``python -m research.doctor``; the exit status is 1 if something that every training run needs is
broken.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from research.envs.rendering import HEADLESS, find_renderer, try_library
from research.errors import UserError, message_of
from research.machine.cpus import cpu_quota, usable_cpus
from research.machine.gpus import driver_version, find_gpus, gpu_models, usable_gpus
from research.machine.mounts import control_groups

ROOT = Path("/")
PIXEL_SIZE = 84
RENDERING_S = 120
"""Time limit of the trial of the renderer: a broken driver may hang."""
MIN_DISK = 10**9
"""Bytes for a few checkpoints of a network for pixels."""
NO_LIMIT = "no limit of the control group"


class Broken(Exception):
    """Something that every training run needs is missing; the message says what to do."""


def main() -> int:
    """Print a line for each check; returns the exit status."""
    status = 0
    for name, check in CHECKS.items():
        try:
            line = check()
        except Broken as error:
            line, status = f"BROKEN: {message_of(error)}", 1
        except UserError as error:
            line = f"PROBLEM: {message_of(error)}"
        except Exception as error:  # an unknown kind of machine gets no traceback
            line = f"cannot tell: {type(error).__name__}: {message_of(error)}"
        sys.stdout.write(f"{name:<10} {line}\n")
        sys.stdout.flush()
    return status


def check_cpus() -> str:
    """Usable CPUs and the control group's limit."""
    quota = cpu_quota()
    limit = NO_LIMIT if quota is None else f"control group grants {quota:g}"
    return f"{len(usable_cpus('auto'))} usable of {os.cpu_count()}, {limit}"


def check_memory(root: Path = ROOT) -> str:
    """Memory of the machine, how much is available to this process, and the lowest limit."""
    from research.machine.memory import available_memory  # imports torch, which may be broken

    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    granted = min(memory_limits(root), default=None)
    limit = NO_LIMIT if granted is None else f"control group grants {gigabytes(granted)}"
    return f"{gigabytes(available_memory(root))} available of {gigabytes(size)}, {limit}"


def memory_limits(root: Path) -> Iterator[int]:
    """The limits of this process's control groups, in bytes."""
    from research.machine.memory import GROUP_FILES

    for kind, folders in control_groups("memory", root):
        for folder in folders:
            try:
                limit = (folder / GROUP_FILES[kind][0]).read_text().strip()
            except OSError:
                limit = "max"
            if limit != "max" and int(limit) < 2**60:  # version 1 writes a huge number for no limit
                yield int(limit)


def check_gpus() -> str:
    """The GPUs here, their MIG devices, and those that a job would be given."""
    names = gpu_models(ROOT)
    present = find_gpus(os.environ.get("PATH", os.defpath))
    if not present:
        return "none"
    lines = []
    for gpu in present:
        name = names[gpu.index] if gpu.index < len(names) else gpu.uuid
        lines.append(f"{gpu.index}: {name}" + (f" ({len(gpu.migs)} MIG)" if gpu.migs else ""))
    usable = usable_gpus("auto")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        lines.append(f"CUDA_VISIBLE_DEVICES leaves {', '.join(usable or ()) or 'none'}")
    return ", ".join(lines)


def check_torch() -> str:
    """Versions of torch, CUDA and the driver, and whether they work together."""
    try:
        import torch
    except Exception as error:  # a library that it loads may fail in any way
        raise Broken(
            f"torch cannot be imported ({message_of(error)}); . ./setup_shell.sh"
        ) from error
    has_gpu = bool(usable_gpus("auto"))
    driver = driver_version(ROOT) or ("unknown" if has_gpu else "none")
    what = f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, driver {driver}"
    if not has_gpu:
        return f"{what}: computes on the CPU"
    if torch.version.cuda is None:
        raise Broken(f"{what}: this torch is for CPUs only; pip install torch from pytorch.org")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    if not has_cuda:
        reasons = [str(warning.message).partition("(Triggered")[0] for warning in caught]
        reason = reasons[0] if reasons else "torch finds no GPU; is the driver installed?"
        raise Broken(f"{what}: {reason.strip()} Update the driver, or install an older torch")
    try:
        torch.ones(1, device="cuda").add(1).item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        hint = "is it full, or does it need another torch?"
        raise Broken(f"{what}: the GPU does not compute ({reason}); {hint}") from error
    return f"{what}: computes on {torch.cuda.get_device_name()}"


def check_rendering() -> str:
    """The library that renders, and its speed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    library = environment["MUJOCO_GL"] = find_renderer()
    hint = f"try MUJOCO_GL={' or '.join(name for name in HEADLESS if name != library)}"
    command = [sys.executable, "-c", "from research.doctor import write_speed as w; w()"]
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=RENDERING_S
        )
        speed = json.loads(answer.stdout)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{library} renders nothing in {RENDERING_S} s; {hint}") from error
    except ValueError as error:
        reason = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        raise UserError(f"{library} renders nothing ({reason[-1]}); {hint}") from error
    if isinstance(speed, str):
        raise UserError(speed)
    note = ""
    if not os.environ.get("MUJOCO_GL") and library == HEADLESS[-1]:
        note = f"; on the CPU, since egl does not work ({try_library('egl')})"
    size = f"{PIXEL_SIZE}x{PIXEL_SIZE}"
    return f"{library}, {speed:.0f} frames per second at {size} (cheetah){note}"


def write_speed() -> None:
    """Write frames per second as JSON to standard output, or why rendering failed."""
    from research.envs.dm_control import DMControl

    env = DMControl(
        domain="cheetah",
        task="run",
        flatten_obs=True,
        height=PIXEL_SIZE,
        width=PIXEL_SIZE,
        camera_id=0,
    )
    env.reset(seed=0)
    answer: float | str
    try:
        env.render()  # the first one starts the library
        start, num_frames = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 1:
            env.render()
            num_frames += 1
        answer = num_frames / seconds
    except UserError as error:
        answer = str(error)
    env.close()
    sys.stdout.write(json.dumps(answer))


def check_disk() -> str:
    """Free disk space in the current folder, where runs write."""
    folder, free = os.getcwd(), shutil.disk_usage(".").free
    if not os.access(".", os.W_OK):
        raise Broken(f"{folder} cannot be written to; start runs from another folder")
    if free < MIN_DISK:
        raise Broken(f"only {gigabytes(free)} free in {folder}; clear old outputs")
    return f"{gigabytes(free)} free in {folder}"


def gigabytes(num_bytes: int) -> str:
    """``num_bytes`` in powers of 1000."""
    return f"{num_bytes / 1e9:.1f} GB"


def check_slurm() -> str:
    """The version of SLURM."""
    if shutil.which("sinfo") is None:
        return "none"
    answer = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=60)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"sinfo is installed but finds no cluster ({reason})")
    return answer.stdout.strip()


CHECKS: dict[str, Callable[[], str]] = {
    "cpus": check_cpus,
    "memory": check_memory,
    "gpus": check_gpus,
    "torch": check_torch,
    "rendering": check_rendering,
    "disk": check_disk,
    "slurm": check_slurm,
}

if __name__ == "__main__":
    sys.exit(main())
