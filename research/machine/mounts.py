"""The mounts of this machine and the control groups of this process, from Linux's own files."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Mount(NamedTuple):
    """A mounted file system.

    Attributes:
        source: the folder of the file system that is mounted.
        folder: where it is mounted.
        kind: such as ``ext4``, ``tmpfs``, ``cgroup2``.
        options: of the file system; for ``cgroup``, its controllers are among them.

    """

    source: str
    folder: Path
    kind: str
    options: tuple[str, ...]


def read_mounts(root: Path) -> list[Mount]:
    """All mounts, in the order in which they were made; none where the system is not Linux.

    Args:
        root: the folder that holds ``proc``; the folders of the mounts lie below it.

    """
    try:
        lines = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        place, _, system = line.partition(" - ")
        source, folder = place.split()[3:5]
        kind, *_, options = system.split()
        path = root / folder.replace("\\040", " ").lstrip("/")
        mounts.append(Mount(source, path, kind, tuple(options.split(","))))
    return mounts


def control_groups(controller: str, root: Path) -> Iterator[tuple[str, list[Path]]]:
    """Hierarchies of control groups (versions 1 and 2) that may limit ``controller``.

    Args:
        controller: ``cpu`` or ``memory``.
        root: the folder that holds ``proc`` and the control groups.

    Yields:
        ``cgroup`` or ``cgroup2``, and the directories of this process's group and of the groups
        around it, up to the topmost.

    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own: dict[str, str] = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for mount in read_mounts(root):
        # Version 2 has one hierarchy, without a name, for all controllers.
        name = {"cgroup": controller, "cgroup2": ""}.get(mount.kind)
        if name is not None and (not name or name in mount.options):
            below = path_below(own.get(name, "/"), mount.source)
            yield mount.kind, [mount.folder / part for part in (below, *below.parents)]


def path_below(path: str, source: str) -> PurePosixPath:
    """The path of a group below its mount; empty if it lies outside, as in some containers."""
    whole = PurePosixPath(path)
    is_below = whole.is_relative_to(source) and ".." not in whole.parts
    return whole.relative_to(source) if is_below else PurePosixPath()
