"""The CPUs that jobs may use on this machine."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from research.errors import UserError, did_you_mean

ROOT = Path("/")


def usable_cpus(choice: str | int | Sequence[int], *, root: Path = ROOT) -> list[int]:
    """The CPUs that ``choice`` (``auto``, a number of them, or a list) means on this machine.

    ``auto`` are those this process may run on, no more than its control group pays for, ordered so
    that the threads of a core and the cores of a socket are neighbours.

    Raises:
        UserError: a CPU is not there or not for this process.

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
    """The listed CPUs, each of them usable and named once."""
    wrong = [cpu for cpu in choice if cpu not in allowed or choice.count(cpu) > 1]
    if wrong or not choice:
        raise UserError(
            f"hydra.launcher.cpus={list(choice)}: each must be named once, of those this process"
            f" may use: {', '.join(map(str, sorted(allowed)))}"
        )
    return list(choice)


def allowed_cpus() -> set[int]:
    """The CPUs this process may run on; all of them on a system that cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def position(cpu: int, root: Path) -> tuple[int, ...]:
    """Socket, die and core of a CPU; without the kernel's files every CPU is a core."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    place = []
    for name, default in ("physical_package_id", 0), ("die_id", 0), ("core_id", cpu):
        try:
            place.append(int((folder / name).read_text()))
        except (OSError, ValueError):
            place.append(default)
    return tuple(place)


def cpu_quota(*, root: Path = ROOT) -> float | None:
    """The CPUs whose time this process's control groups (v1 or v2) grant it; None: no limit."""
    return min(filter(None, map(folder_quota, control_groups(root))), default=None)


def folder_quota(folder: Path) -> float | None:
    """The CPUs that one control group grants; None: no limit."""
    for names in ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            return int(words[0]) / int(words[1]) if int(words[0]) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def control_groups(root: Path) -> Iterator[Path]:
    """The directories of this process's CPU control groups and of the groups around them."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for mount in mounts:
        fields, _, system = mount.partition(" - ")
        source, folder = fields.split()[3:5]
        kind, *_, options = system.split()
        controllers = {"cgroup": options, "cgroup2": ""}.get(kind, "none").split(",")
        for group in groups:
            _, names, path = group.split(":", 2)
            controller = "cpu" if names else ""  # version 2 has one tree, without a name
            if controller in names.split(",") and controller in controllers:
                below = path_below(path, source)
                yield from (root / folder[1:] / part for part in (below, *below.parents))


def path_below(path: str, source: str) -> PurePosixPath:
    """Where a group lies under its mount; seen from a container it may lie outside of it."""
    whole = PurePosixPath(path)
    is_below = whole.is_relative_to(source) and ".." not in whole.parts
    return whole.relative_to(source) if is_below else PurePosixPath()
