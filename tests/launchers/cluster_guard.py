"""Run the daemons of a private SLURM cluster, and leave no process of it behind.

``python cluster_guard.py FOLDER PARENT``: until a daemon or the parent ends, or SIGTERM comes.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)


def main(folder: Path, parent: int, nodes: list[str]) -> None:
    """Start the daemons, wait, and kill all they have started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # SLURM's processes leave their parents, jobs may too: all of them become children of this one
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        daemons = {start(folder, "munged", *munged_options(folder))}
        while not (folder / "munge.socket").exists() and not reap() & daemons:
            time.sleep(0.01)
        daemons.add(start(folder, "slurmctld", "-D"))
        daemons.update(start(folder, "slurmd", "-D", "-N", node) for node in nodes)
        while os.getppid() == parent and not reap() & daemons:
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kill_all()
        if os.getppid() != parent:
            shutil.rmtree(folder)


def munged_options(folder: Path) -> list[str]:
    """A munged of its own, whoever owns the folders above its files."""
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    return ["--foreground", "--force", *(f"--{key}={folder / name}" for key, name in files.items())]


def start(folder: Path, *command: str) -> int:
    """Start a daemon, which is killed if this process is; returns its pid."""
    with (folder / "daemons.log").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, preexec_fn=die_with_parent
        ).pid


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_all() -> None:
    """Kill the children, and theirs, which become children then, until there are none."""
    while pids := children():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.01)


def children() -> list[int]:
    """The pids of this process's children, those not yet waited for included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid():
            found.append(int(path.parent.name))
    return found


def reap() -> set[int]:
    """Forget the children that have ended; returns their pids."""
    ended = set()
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    except ChildProcessError:
        pass
    return ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
