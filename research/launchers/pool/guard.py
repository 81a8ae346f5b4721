"""A process outside the pool that ends what the pool leaves behind, even when it was killed.

It runs as a script, on nothing but the standard library, in a session of its own, so that what
kills the pool's process group does not kill it. Its standard input ends when the pool does.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO


class Guard:
    """Kills the process groups that were added and not removed, when this process ends."""

    def __init__(self) -> None:
        self.entries: dict[str, None] = {}
        self.process = start()

    def add(self, group: int) -> None:
        """Kill this process group at the end."""
        self.tell("+", f"kill {group}")

    def remove(self, group: int) -> None:
        """It has ended by itself."""
        self.tell("-", f"kill {group}")

    def add_command(self, command: Sequence[str]) -> None:
        """Run this command at the end, after the groups are killed."""
        self.tell("+", shlex.join(["run", *command]))

    def remove_command(self, command: Sequence[str]) -> None:
        """It is not needed any more."""
        self.tell("-", shlex.join(["run", *command]))

    def tell(self, sign: str, entry: str) -> None:
        """Pass an entry on."""
        if sign == "+":
            self.entries[entry] = None
        else:
            self.entries.pop(entry, None)
        try:
            self.write(f"{sign}{entry}")
        except BrokenPipeError:
            self.process.wait()
            self.revive()

    def revive(self) -> None:
        """Replace a guard that was killed by one that knows all entries."""
        if self.process.poll() is not None:
            self.process = start()
            for entry in self.entries:
                self.write(f"+{entry}")

    def write(self, line: str) -> None:
        """Send one line, at once."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def close(self) -> None:
        """End the guard, which ends what is left."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start() -> "subprocess.Popen[bytes]":
    """A guard process without entries."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )


def watch(lines: IO[str]) -> None:
    """Keep the entries until the lines end, then act on those that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    entries: dict[str, None] = {}
    for line in lines:
        if not line.endswith("\n"):  # cut by the end of the pool
            break
        if line[0] == "+":
            entries[line[1:].strip()] = None
        else:
            entries.pop(line[1:].strip(), None)
    for verb, *arguments in sorted(map(shlex.split, entries)):  # kill before run
        if verb == "kill":
            with suppress(ProcessLookupError):
                os.killpg(int(arguments[0]), signal.SIGKILL)
        else:
            subprocess.run(arguments, stdin=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    watch(sys.stdin)
