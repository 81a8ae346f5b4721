"""A process outside the pool that kills the jobs the pool leaves behind, even if it was killed.

It runs as a script that needs only the standard library, in a session of its own, so that a signal
to the pool's process group does not kill it. Its standard input ends when the pool does.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO


class Guard:
    """Kills the process groups that were added and not removed, when this process ends."""

    def __init__(self) -> None:
        self.groups: set[int] = set()
        self.process = start()

    def add(self, group: int) -> None:
        """Kill this process group at the end."""
        self.groups.add(group)
        self.tell(f"+{group}")

    def remove(self, group: int) -> None:
        """Forget this process group, which has ended by itself."""
        self.groups.discard(group)
        self.tell(f"-{group}")

    def tell(self, line: str) -> None:
        """Send one line to the guard, or replace the guard if it was killed."""
        try:
            self.write(line)
        except BrokenPipeError:
            self.process.wait()
            self.revive()

    def revive(self) -> None:
        """If the guard was killed, start another one, and send it all groups."""
        if self.process.poll() is not None:
            self.process = start()
            for group in self.groups:
                self.write(f"+{group}")

    def write(self, line: str) -> None:
        """Send one line to the current guard process."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def close(self) -> None:
        """End the guard, which then kills the groups that are left."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start() -> "subprocess.Popen[bytes]":
    """A guard process without groups."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )


def watch(lines: IO[str]) -> None:
    """Add and remove groups until the lines end, then kill those that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in lines:
        if not line.endswith("\n"):  # cut off when the pool was killed
            break
        if line[0] == "+":
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    watch(sys.stdin)
