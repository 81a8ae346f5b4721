"""A round of chaos: a sweep that is struck while it runs, typed again, and judged."""

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_checks import (
    MARK,
    Seen,
    processes,
    read_completed,
    read_plan,
    run_directories,
    snapshot,
)
from benchmarks.chaos_sweeps import JOB, Sweep
from benchmarks.measure import ROOT, environment

TICK_S, SCAN_S, COMMAND_S = 0.003, 0.05, 180.0


@dataclass
class Blow:
    """What is done to a sweep: ``target`` is killed, or ``twin``: its command is typed again.

    Attributes:
        after_s: of the command's start.
        after_changes: to its files; if not None, ``after_s`` is counted from the last of them.
        waits: for the end of all processes before the command is typed again.
        choice: which of several targets, in [0, 1).

    """

    target: str
    after_s: float
    after_changes: int | None
    waits: bool
    choice: float
    due: float | None = None
    before: set[tuple[str, int]] = field(default_factory=set)
    changes: int = 0

    def is_due(self, start: float, folder: Path) -> bool:
        """Whether the moment has come; ``start`` is the command's, on the monotonic clock."""
        now = time.monotonic()
        if self.after_changes is None:
            self.due = start + self.after_s
        elif self.due is None and (after := snapshot(folder)) != self.before:
            self.before, self.changes = after, self.changes + 1
            self.due = now + self.after_s if self.changes > self.after_changes else None
        return self.due is not None and now >= self.due


@dataclass
class Round:
    """One sweep, from its first command to its last.

    Attributes:
        blows: the targets that were hit.
        kills: when, in seconds since the epoch.
        statuses: of the commands, in the order of typing; None for one that was killed.
        to_end_s: the longest time from the end of a command, unless its jobs go on without it, to
            that of its last process.
        problems: what must not be.

    """

    sweep: Sweep
    folder: Path
    blows: list[str] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    to_end_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    completed: dict[str, str] = field(default_factory=dict)
    plan: list[dict[str, str]] = field(default_factory=list)

    def run(self, blows: Sequence[Blow]) -> None:
        """Type the command with each blow, while it is not done; then undisturbed, twice."""
        self.folder.mkdir()
        try:
            for blow in blows:
                if not self.is_complete():
                    self.type(blow)
                    if blow.waits or self.statuses[-1] is not None:
                        self.require_nothing_left()
                    self.judge()
            for _ in range(2):
                self.type(None)
                self.require_nothing_left()
                self.judge()
            self.judge_jobs()
        finally:
            self.sweep_up()

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """Type the command; its output goes to a file beside the sweep directory."""
        with self.log(name).open("ab") as output:
            return subprocess.Popen(
                [*self.sweep.command, f"hydra.sweep.dir={self.folder}"],
                cwd=ROOT,
                env={**environment(threads=1), **self.sweep.environ, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """What a command of the current typing prints to: ``command`` or its ``twin``."""
        return self.folder.with_suffix(f".{len(self.statuses)}.{name}.log")

    def type(self, blow: Blow | None) -> None:
        """Type the command, and wait for its end."""
        command, twin, struck = self.start("command"), None, blow is None
        start = time.monotonic()
        next_scan = start
        while command.poll() is None:
            is_due = blow is not None and not struck and blow.is_due(start, self.folder)
            if is_due or time.monotonic() >= next_scan:
                seen = processes(self.mark)
                next_scan = time.monotonic() + SCAN_S
                self.require_one_process_per_job(seen)
            if blow and is_due and blow.target == "twin":
                twin, struck = self.start("twin"), True
                self.blows.append("twin")
            elif blow and is_due:
                struck = self.kill(blow, command.pid, seen)
            if time.monotonic() - start > COMMAND_S:
                self.problems.append(f"the command was not done after {COMMAND_S:g} s")
                command.kill()
            self.note_completed()
            time.sleep(TICK_S)
        if twin:
            self.judge_twins(command.returncode, twin.wait(timeout=COMMAND_S))
        else:
            was_killed = command.returncode == -signal.SIGKILL
            self.statuses.append(None if was_killed else command.returncode)

    def kill(self, blow: Blow, command: int, seen: Sequence[Seen]) -> bool:
        """Kill one process of a kind; False if there is none."""
        pattern = self.sweep.targets.get(blow.target)
        pids = [one.pid for one in seen if pattern and re.search(pattern, one.command)]
        if pattern is None:
            pids = [command]
        if not pids:
            return False
        self.kills.append(time.time())
        with suppress(ProcessLookupError):
            os.kill(pids[int(blow.choice * len(pids))], signal.SIGKILL)
        self.blows.append(blow.target)
        return True

    def judge_twins(self, command: int, twin: int) -> None:
        """Of two commands one must have been refused, or have come when the other was done."""
        statuses = {"command": command, "twin": twin}
        logs = {name: self.log(name).read_text(errors="replace") for name in statuses}
        refused = [name for name, text in logs.items() if "in use by another process" in text]
        if len(refused) > 1 or any(statuses[name] == 0 for name in refused):
            self.problems.append(f"of two commands, {refused} were refused: {statuses}")
        statuses = {name: status for name, status in statuses.items() if name not in refused}
        if any(statuses.values()):
            self.problems.append(f"of two commands, one ended badly: {statuses}")
        self.statuses.append(max(statuses.values(), default=1))

    def require_one_process_per_job(self, seen: Sequence[Seen]) -> None:
        """No two jobs print to the same file."""
        outputs = [one.output for one in seen if JOB in one.command and one.leads]
        for output in {output for output in outputs if outputs.count(output) > 1}:
            if output.endswith("output.log"):
                self.problems.append(f"two processes at once: {output}")

    def require_nothing_left(self) -> None:
        """All processes of the round end soon, and nothing waits."""
        goes_on = self.statuses[-1] is None
        patience_s = self.sweep.goes_on_s if goes_on else self.sweep.gone_s
        start = time.monotonic()
        while left := [*processes(self.mark), *self.sweep.queue()]:
            if time.monotonic() - start > patience_s:
                self.problems += [f"left over: {one}" for one in left]
                self.sweep_up()
                return
            self.note_completed()
            time.sleep(0.01)
        if not goes_on or self.sweep.goes_on_s == self.sweep.gone_s:
            self.to_end_s = max(self.to_end_s, time.monotonic() - start)

    def sweep_up(self) -> None:
        """End what must not be left when the round is over."""
        tasks = [line.split()[0] for line in self.sweep.queue()]
        if tasks:
            subprocess.run(["scancel", *tasks], env=self.sweep.environ)
        for one in processes(self.mark):
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)

    def note_completed(self) -> None:
        """Note the jobs that have completed, and those of them that are not left as they are."""
        completed = read_completed(self.folder)
        for name, text in self.completed.items():
            if completed.get(name) != text:
                self.problems.append(f"{name} had completed, and was touched again")
        self.completed = completed

    def judge(self) -> None:
        """Compare plan, status files and exit code with those before, and with each other."""
        plan = read_plan(self.folder)
        if plan[: len(self.plan)] != self.plan:
            self.problems.append(f"the plan changed from {self.plan} to {plan}")
        self.plan = plan
        self.note_completed()
        status = self.statuses[-1]
        if status is not None and (status == 0) != self.is_complete():
            done = f"{len(self.completed)} of {self.sweep.num_jobs} jobs done"
            self.problems.append(f"it ended with {status}, and {done}")

    def is_complete(self) -> bool:
        """Whether as many jobs have completed as there are to be."""
        return len(read_completed(self.folder)) == self.sweep.num_jobs

    def judge_jobs(self) -> None:
        """Every planned job is there, with an honest journal; nothing else is there."""
        folders = run_directories(self.folder)
        planned = sorted(entry["folder"] for entry in read_plan(self.folder))
        if folders != planned or len(planned) != self.sweep.num_jobs:
            self.problems.append(f"planned {planned}, found {folders}")
        for name in planned:
            found = self.sweep.check(self.folder / name, self.kills)
            self.problems += [f"{name}: {problem}" for problem in found]
