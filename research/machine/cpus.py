"""The CPUs that jobs may use on this machine."""

import os
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError, did_you_mean
from research.machine.mounts import control_groups

ROOT = Path("/")


def usable_cpus(choice: str | int | Sequence[int], *, root: Path = ROOT) -> list[int]:
    """The CPUs of this machine that ``choice`` (``auto``, a number of them, or a list) selects.

    ``auto`` selects those this process may run on, no more than its control groups grant, ordered
    so that the threads of a core and the cores of a socket are adjacent.

    Raises:
        UserError: ``choice`` is invalid, or names a CPU that this process may not use.

    """
    allowed = sorted(allowed_cpus(), key=lambda cpu: (*position(cpu, root), cpu))
    if isinstance(choice, Sequence) and not isinstance(choice, str):
        return checked_cpus(choice, allowed)
    quota = cpu_quota(root=root)
    usable = allowed if quota is None else allowed[: max(1, int(quota))]
    if choice == "auto":
        return usable
    if not isinstance(choice, int):
        hint = did_you_mean(choice, ["auto"])
        raise UserError(
            f"hydra.launcher.cpus must be auto, a number or a list, got '{choice}'{hint}"
        )
    if not 1 <= choice <= len(usable):
        raise UserError(
            f"hydra.launcher.cpus={choice}: allowed is a number from 1 to {len(usable)}"
            " (the CPUs this process may use), auto or a list"
        )
    return usable[:choice]


def checked_cpus(choice: Sequence[int], allowed: Sequence[int]) -> list[int]:
    """The listed CPUs, if each of them is usable and named once."""
    wrong = [cpu for cpu in choice if cpu not in allowed or choice.count(cpu) > 1]
    if wrong or not choice:
        raise UserError(
            f"hydra.launcher.cpus={list(choice)}: each must be named once and be one of those this"
            f" process may use: {', '.join(map(str, sorted(allowed)))}"
        )
    return list(choice)


def allowed_cpus() -> set[int]:
    """The CPUs this process may run on; all of them on a system that cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def position(cpu: int, root: Path) -> tuple[int, ...]:
    """Socket, die and core of a CPU; without the kernel's files, every CPU counts as a core."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    place = []
    for name, default in ("physical_package_id", 0), ("die_id", 0), ("core_id", cpu):
        try:
            place.append(int((folder / name).read_text()))
        except (OSError, ValueError):
            place.append(default)
    return tuple(place)


def cpu_quota(*, root: Path = ROOT) -> float | None:
    """The number of CPUs that this process's control groups (v1 or v2) grant; None: no limit."""
    folders = [folder for _, folders in control_groups("cpu", root) for folder in folders]
    return min(filter(None, map(folder_quota, folders)), default=None)


def folder_quota(folder: Path) -> float | None:
    """The number of CPUs that one control group grants; None: no limit."""
    for names in ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            return int(words[0]) / int(words[1]) if int(words[0]) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None
