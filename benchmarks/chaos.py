"""Does a sweep survive ``kill -9``? Rounds in which one is killed somewhere, and typed again.

A round is a sweep in a fresh directory. Its command is typed; at a random moment (of its time, or
right after a random change to its files) a random one of its processes is killed: the command
itself, a job, or the guard; or the command is typed a second time beside the first. Some rounds do
so up to three times. Then the command is typed undisturbed, and once more. From what jobs, files
and processes left it is checked that every job of the plan completed exactly once, that none was
lost, run twice or renumbered, that exit codes told the truth, and that no process is left over.

Most rounds sweep a small Hydra app whose jobs keep a journal; some sweep ``train.py``.
"""

import argparse
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import RESULTS, ROOT, describe_machine, environment, write_rows

MARK = "CHAOS_ROUND"
JOB = "research.launchers.process"
LOCAL_TARGETS = {"job": JOB, "guard": "launchers/guard.py"}
STEPS = 10
TICK_S, SCAN_S, GONE_S, COMMAND_S = 0.003, 0.05, 5.0, 120.0
APP = '''
import os, subprocess, time
from pathlib import Path
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

ConfigStore.instance().store(name="config", node={"task": "a", "seed": 0, "steps": 10})


def started(pid):
    """When a process started, in ticks; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    own = f"{os.getpid()}.{started(os.getpid())}"
    journal = Path(HydraConfig.get().runtime.output_dir) / "journal.txt"
    lines = journal.read_text().splitlines() if journal.exists() else []

    def note(text):
        with journal.open("ab", buffering=0) as file:
            file.write(f"{time.time():.3f} {own} {text}\\n".encode())

    note("start")
    for other in {line.split()[1] for line in lines}:
        pid, _, since = other.partition(".")
        if started(pid) == since:
            note(f"beside {other}")
    subprocess.Popen(["sleep", "1000"])  # left behind, for the launcher to end
    for step in range(sum(" step " in line for line in lines), cfg.steps):
        time.sleep(0.04 * (1 + cfg.seed))
        note(f"step {step}")
    note("end")
    return float(cfg.seed)


main()
'''

log = logging.getLogger(__name__)


@dataclass
class Sweep:
    """A command whose every job must complete exactly once.

    Attributes:
        name: in the table.
        command: without ``hydra.sweep.dir``.
        num_jobs: of its plan.
        targets: what may be killed beside the command: a text in the process's command line.
        check: what is wrong with the run directory of a completed job, given the times of kills.
        duration_s: of the command undisturbed.
        changes: that it makes to its files, as ``snapshot`` sees them.

    """

    name: str
    command: Sequence[str]
    num_jobs: int
    targets: Mapping[str, str]
    check: Callable[[Path, Sequence[float]], list[str]]
    duration_s: float = 0.0
    changes: int = 0


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


class Seen(NamedTuple):
    """A process of a round.

    Attributes:
        command: its command line, arguments separated by blanks.
        output: the file that it prints to.
        leads: a session of its own.

    """

    pid: int
    command: str
    output: str
    leads: bool


@dataclass
class Round:
    """One sweep, from its first command to its last.

    Attributes:
        blows: the targets that were hit.
        kills: when, in seconds since the epoch.
        statuses: of the commands, in the order of typing; None for one that was killed.
        to_end_s: the longest time from the command's end to the end of its last process.
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
                        self.require_no_process()
                    self.judge()
            for _ in range(2):
                self.type(None)
                self.require_no_process()
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
                env={**environment(threads=1), MARK: self.mark},
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
            time.sleep(TICK_S)
        if twin:
            self.judge_twins(command.returncode, twin.wait(timeout=COMMAND_S))
        else:
            was_killed = command.returncode == -signal.SIGKILL
            self.statuses.append(None if was_killed else command.returncode)

    def kill(self, blow: Blow, command: int, seen: Sequence[Seen]) -> bool:
        """Kill one process of a kind; False if there is none."""
        text = self.sweep.targets.get(blow.target)
        pids = [command] if text is None else [one.pid for one in seen if text in one.command]
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

    def require_no_process(self) -> None:
        """All processes of the round end soon."""
        start = time.monotonic()
        while left := processes(self.mark):
            if time.monotonic() - start > GONE_S:
                self.problems += [f"left over: {one.pid} {one.command}" for one in left]
                self.sweep_up()
                return
            time.sleep(0.01)
        self.to_end_s = max(self.to_end_s, time.monotonic() - start)

    def sweep_up(self) -> None:
        """End what must not be left when the round is over."""
        for one in processes(self.mark):
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)

    def judge(self) -> None:
        """Compare plan, status files and exit code with those before, and with each other."""
        plan = read_plan(self.folder)
        if plan[: len(self.plan)] != self.plan:
            self.problems.append(f"the plan changed from {self.plan} to {plan}")
        self.plan = plan
        completed = self.read_completed()
        for name, text in self.completed.items():
            if completed.get(name) != text:
                self.problems.append(f"{name} had completed, and was touched again")
        self.completed = completed
        status = self.statuses[-1]
        if status is not None and (status == 0) != self.is_complete():
            self.problems.append(
                f"it ended with {status}, and {len(completed)} of {self.sweep.num_jobs} jobs done"
            )

    def read_completed(self) -> dict[str, str]:
        """The status files of the completed jobs, by run directory."""
        texts = {path.parent.name: path.read_text() for path in self.folder.glob("*/status.json")}
        return {name: text for name, text in texts.items() if '"completed"' in text}

    def is_complete(self) -> bool:
        """Whether as many jobs have completed as there are to be."""
        return len(self.read_completed()) == self.sweep.num_jobs

    def judge_jobs(self) -> None:
        """Every planned job is there, with an honest journal; nothing else is there."""
        folders = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        planned = sorted(entry["folder"] for entry in read_plan(self.folder))
        if folders != planned or len(planned) != self.sweep.num_jobs:
            self.problems.append(f"planned {planned}, found {folders}")
        for name in planned:
            found = self.sweep.check(self.folder / name, self.kills)
            self.problems += [f"{name}: {problem}" for problem in found]


def processes(mark: str) -> list[Seen]:
    """The living processes of a round: those with its mark in their environment."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        folder = Path(entry.path)
        with suppress(OSError):
            if wanted not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            session = (folder / "stat").read_text().rpartition(")")[2].split()[3]
            output = os.readlink(folder / "fd" / "1")
            found.append(Seen(int(entry.name), command, output, session == entry.name))
    return found


def snapshot(folder: Path) -> set[tuple[str, int]]:
    """Names and times of a sweep's files, its jobs' journals and logs aside."""
    found = set()
    for root, _, names in os.walk(folder):
        for name in names:
            if name not in ("journal.txt", "output.log"):
                with suppress(OSError):
                    found.add((name, os.stat(os.path.join(root, name)).st_mtime_ns))
    return found


def read_plan(folder: Path) -> list[dict[str, str]]:
    """The jobs in ``sweep.json``; none before it is written."""
    path = folder / "sweep.json"
    return json.loads(path.read_text())["jobs"] if path.exists() else []


def check_journal(folder: Path, kills: Sequence[float]) -> list[str]:
    """What is wrong with the journal of the small app's job."""
    lines = [line.split(maxsplit=2) for line in (folder / "journal.txt").read_text().splitlines()]
    who = [owner for owner, _ in itertools.groupby(owner for _, owner, _ in lines)]
    problems = [text for _, _, text in lines if text.startswith("beside")]
    if len(set(who)) < len(who):
        problems.append(f"processes took turns: {who}")
    steps = [text for _, _, text in lines if text.startswith("step")]
    if steps != [f"step {step}" for step in range(STEPS)]:
        problems.append(f"steps are {steps}")
    if lines[-1][2] != "end":
        problems.append("it did not come to its end")
    for when, owner, text in lines:
        was_killed = any(0 <= kill - float(when) < 1 for kill in kills)  # before it was recorded
        if text == "end" and owner != who[-1] and not was_killed:
            problems.append(f"{owner} had come to its end, and {who[-1]} ran again")
    return problems


def check_training(folder: Path, kills: Sequence[float]) -> list[str]:
    """What is wrong with a run directory of ``train.py``."""
    status = json.loads((folder / "status.json").read_text())
    rows = (folder / "train.csv").read_text().splitlines()
    steps = [int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]]
    problems = [] if steps == sorted(set(steps)) else [f"train.csv has steps {steps}"]
    if status["step"] != status["total_steps"] or steps[-1] != status["total_steps"]:
        problems.append(f"completed at step {status['step']}, {steps[-1]} in train.csv")
    return problems


def small_sweep(folder: Path, options: Sequence[str] = ("hydra/launcher=local",)) -> Sweep:
    """Four short jobs, two at once, of an app in ``folder``."""
    app = folder / "app.py"
    app.write_text(APP)
    choices = ("hydra/sweeper=grid", "hydra.launcher.max_jobs=2", "hydra.launcher.stagger_s=0")
    values = ("task=a,b", "seed=0,1", f"steps={STEPS}")
    command = [sys.executable, str(app), "-m", *options, *choices, *values]
    return Sweep("app.py", command, 4, LOCAL_TARGETS, check_journal)


def training_sweep() -> Sweep:
    """Two tiny runs of TD3."""
    overrides = (
        *("env=pendulum", "device=cpu", "seed=0,1", "network.hidden_dims=[16]"),
        *("trainer.total_steps=600", "trainer.collector.warmup_steps=100", "trainer.log_every=50"),
        *("trainer.checkpoint_every=100", "trainer.eval_every=600", "trainer.eval_episodes=1"),
    )
    command = [sys.executable, str(ROOT / "train.py"), "-m", *overrides]
    return Sweep("train.py", command, 2, LOCAL_TARGETS, check_training)


def rehearse(sweep: Sweep, folder: Path) -> None:
    """Run a sweep without a blow; the others learn from it when to strike."""
    rehearsal, never = Round(sweep, folder), Blow("command", 0.0, sys.maxsize, True, 0.0)
    rehearsal.folder.mkdir()
    start = time.monotonic()
    rehearsal.type(never)
    sweep.duration_s, sweep.changes = time.monotonic() - start, never.changes
    rehearsal.require_no_process()
    rehearsal.judge()
    rehearsal.judge_jobs()
    if rehearsal.problems:
        raise RuntimeError(f"undisturbed: {rehearsal.problems}")


def draw_blow(sweep: Sweep, rng: random.Random) -> Blow:
    """A random target at a random moment, half of the time right after a change to the files."""
    target = rng.choice([*["command", *sweep.targets] * 2, "twin"])
    waits, choice = rng.random() < 0.5, rng.random()
    if rng.random() < 0.5:
        return Blow(target, rng.uniform(0, 0.03), rng.randrange(sweep.changes), waits, choice)
    return Blow(target, rng.uniform(0, sweep.duration_s), None, waits, choice)


def run_rounds(sweep: Sweep, folder: Path, *, rounds: int, seed: int) -> list[Round]:
    """Rounds with one to three blows each; one whose first blow came too late is drawn again."""
    folder.mkdir()
    rehearse(sweep, folder / "rehearsal")
    done: list[Round] = []
    for attempt in itertools.count():
        if len(done) == rounds:
            return done
        rng = random.Random(f"{seed} {attempt}")
        round_ = Round(sweep, folder / str(attempt))
        round_.run([draw_blow(sweep, rng) for _ in range(rng.choice((1, 1, 2, 3)))])
        if round_.blows or round_.problems:
            done.append(round_)
            values = " | ".join(map(str, as_row(round_).values()))
            log.info("%s", "\n    ".join([f"{len(done)} | {values}", *round_.problems]))
    raise AssertionError


def as_row(round_: Round) -> dict[str, object]:
    """A round as a row of the table."""
    ends = ["killed" if status is None else str(status) for status in round_.statuses]
    return {
        "sweep": round_.sweep.name,
        "blows": " ".join(round_.blows),
        "ends": " ".join(ends),
        "longest_to_end_s": round(round_.to_end_s, 3),
        "problems": len(round_.problems),
    }


def summary(rounds: Sequence[Round]) -> list[str]:
    """A line for each sweep and target: how often, the longest until all had ended, problems."""
    lines = [
        f"{'sweep':10} {'blow':10} {'rounds':>6} {'blows':>6} {'gone in s':>9} {'problems':>8}"
    ]
    hit = {(each.sweep.name, blow) for each in rounds for blow in each.blows}
    for name, blow in sorted(hit):
        those = [each for each in rounds if each.sweep.name == name and blow in each.blows]
        count = sum(each.blows.count(blow) for each in those)
        longest = max(each.to_end_s for each in those)
        problems = sum(len(each.problems) for each in those)
        lines.append(f"{name:10} {blow:10} {len(those):6} {count:6} {longest:8.2f} {problems:8}")
    problems = sum(len(each.problems) for each in rounds)
    return [*lines, f"{len(rounds)} rounds, {problems} problems"]


def main() -> None:
    """Run the rounds, print them, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="of the small app")
    parser.add_argument("--training", type=int, default=5, help="further rounds of train.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--keep", type=Path, help="folder for the sweeps; default: none is kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cases = ((small_sweep(folder), arguments.rounds), (training_sweep(), arguments.training))
        done: list[Round] = []
        for sweep, rounds in cases:
            if rounds:
                sweeps = folder / sweep.name.removesuffix(".py")
                done += run_rounds(sweep, sweeps, rounds=rounds, seed=arguments.seed)
    print("\n".join(summary(done)))
    facts = describe_machine(threads=1)
    write_rows(arguments.results / "chaos.csv", [{**as_row(each), **facts} for each in done])
    sys.exit(any(round_.problems for round_ in done))


if __name__ == "__main__":
    main()
