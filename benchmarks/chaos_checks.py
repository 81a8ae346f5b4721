"""What rounds of chaos look at: the processes that live, and the files that jobs leave."""

import itertools
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "CHAOS_ROUND"
STEPS = 10
"""Of a job of the small app."""

DIES_S, RECORDED_S = 0.2, 1.0
"""A job dies up to ``DIES_S`` after its pool (33 ms were seen, on a busy machine), and one that is
killed within ``RECORDED_S`` of its last line has perhaps not recorded its end."""


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
    """Names and times of a sweep's files, journals and logs aside."""
    found = set()
    for root, _, names in os.walk(folder):
        for name in names:
            if name != "journal.txt" and not name.endswith((".log", ".out", ".err")):
                with suppress(OSError):
                    found.add((name, os.stat(os.path.join(root, name)).st_mtime_ns))
    return found


def read_plan(folder: Path) -> list[dict[str, str]]:
    """The jobs in ``sweep.json``; none before it is written."""
    path = folder / "sweep.json"
    return json.loads(path.read_text())["jobs"] if path.exists() else []


def read_completed(folder: Path) -> dict[str, str]:
    """The status files of a sweep's completed jobs, by run directory."""
    texts = {path.parent.name: path.read_text() for path in folder.glob("*/status.json")}
    return {name: text for name, text in texts.items() if '"completed"' in text}


def run_directories(folder: Path) -> list[str]:
    """The names of the folders in a sweep's."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def check_journal(folder: Path, kills: Sequence[float]) -> list[str]:
    """What is wrong with the journal of the small app's job; ``kills`` are times of the epoch."""
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
        was_killed = any(-DIES_S <= kill - float(when) < RECORDED_S for kill in kills)
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
    if status["score"] is None:
        problems.append("it completed without its score")
    return problems
