"""The memory that this process may use, and the check that data fits in it."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from research.machine.mounts import control_groups

GROUP_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By file system: limit, use, and the entry of memory.stat that the kernel can reclaim."""


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of host memory that this process may still use.

    The least of what the machine has left, what the limits of the process's control groups
    (versions 1 and 2, up to the topmost) leave, and what ``ulimit -v`` and ``ulimit -d`` leave.

    Args:
        root: the folder that holds ``proc`` and the control groups.

    """
    return max(0, min((*machine_memory(root), *group_memory(root), *limit_memory(root))))


def available_on(device: torch.device) -> int:
    """Bytes of the memory of ``device`` that this process may still use."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def require_memory(num_bytes: int, what: str, device: torch.device, way_out: str) -> None:
    """Check that ``num_bytes`` fit in the memory of ``device``.

    Raises:
        ValueError: they do not; the message ends with ``way_out``, which says what to do.

    """
    available = available_on(device)
    where = f"free on {device}" if device.type == "cuda" else "available to this process"
    if num_bytes > available:
        raise ValueError(
            f"{what} needs {format_bytes(num_bytes)} of memory, but {format_bytes(available)} "
            f"are {where}; {way_out}"
        )


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has taken so far, in 10^9 bytes, by name.

    ``memory_gb`` is what was in the host's memory, without its environments' processes;
    ``gpu_memory_gb`` is what torch had reserved on a GPU.
    """
    found = {"memory_gb": peak_bytes() / 1e9}
    if device.type == "cuda":
        found["gpu_memory_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    return found


def peak_bytes(root: Path = Path("/")) -> int:
    """The most bytes of this process that were in the host's memory.

    Args:
        root: the folder that holds ``proc``.

    """
    with suppress(OSError):  # for on Linux, getrusage counts what the parent had at the fork
        lines = (root / "proc/self/status").read_text().splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def format_bytes(num_bytes: int) -> str:
    """A readable size in powers of 1000: ``93.1 GB``."""
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def machine_memory(root: Path) -> Iterator[int]:
    """Bytes that the machine has left."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        # Not Linux: all memory, since the free part is not known.
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def group_memory(root: Path) -> Iterator[int]:
    """Bytes that each memory limit of the process's control groups leaves."""
    for kind, folders in control_groups("memory", root):
        limit_file, use_file, reclaimable_key = GROUP_FILES[kind]
        for folder in folders:
            try:
                limit = (folder / limit_file).read_text().strip()
                use = int((folder / use_file).read_text())
                stat = (folder / "memory.stat").read_text().split()
            except OSError:
                limit = "max"
            if limit != "max":
                reclaimable = dict(zip(stat[::2], stat[1::2], strict=True)).get(reclaimable_key, 0)
                yield int(limit) - use + int(reclaimable)


def limit_memory(root: Path) -> Iterator[int]:
    """Bytes that the process's own limits on address space and data leave."""
    try:
        pages = (root / "proc/self/statm").read_text().split()
    except OSError:
        pages = ["0"] * 7
    for name, column in (("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - int(pages[column]) * os.sysconf("SC_PAGE_SIZE")
