"""Where every run comes from: code, versions, machine, command, and its attempts."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.errors import UserError
from research.results.report.document import Cell, Section, Table, count, joined
from research.results.runs import StoredRun
from research.training.saving.provenance import read_attempts

UNKNOWN: Mapping[str, Any] = {}


def provenance_section(runs: Mapping[str, StoredRun]) -> Section:
    """What ``provenance.json`` says of each run, by its name."""
    attempts = {name: read_or_none(run) for name, run in runs.items()}
    lasts = {name: (tried[-1] if tried else UNKNOWN) for name, tried in attempts.items()}
    rows = [
        [Cell(name), *facts(lasts[name]), Cell(str(len(tried)), len(tried))]
        for name, tried in attempts.items()
    ]
    columns = ("run", "commit", "uncommitted", "host", "device", "python", "command", "attempts")
    blocks: list[str | Table] = [
        *sentences(lasts),
        Table("The last attempt of each run", columns, rows),
    ]
    if differing := versions_that_differ(lasts):
        blocks.append(differing)
    if resumed := resumptions(attempts):
        blocks.append(resumed)
    return Section("Provenance", blocks)


def read_or_none(run: StoredRun) -> list[Mapping[str, Any]]:
    """The attempts of a run; none if its file is missing or damaged."""
    try:
        attempts = read_attempts(run.folder / "provenance.json")
    except UserError:
        return []
    return [attempt for attempt in attempts if isinstance(attempt, dict)]


def facts(attempt: Mapping[str, Any]) -> list[Cell]:
    """Code, machine and command of an attempt."""
    machine, git = part(attempt, "machine"), part(attempt, "git")
    gpus = machine.get("gpus")
    device = ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else machine.get("cpu")
    command = attempt.get("command")
    words = shlex.join(map(str, command)) if isinstance(command, list) else "-"
    python = str(attempt.get("python", "-")).partition(", ")[2].split(" ")[0] or "-"
    host = str(machine.get("host", "-"))
    return [
        Cell(commit_of(attempt)),
        Cell(changes(git)),
        *map(Cell, (host, str(device or "-"), python, words)),
    ]


def part(attempt: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping in an attempt, empty if it lacks it."""
    found = attempt.get(name)
    return found if isinstance(found, dict) else UNKNOWN


def commit_of(attempt: Mapping[str, Any]) -> str:
    """The first digits of the commit."""
    return str(part(attempt, "git").get("commit", "unknown"))[:10]


def changes(git: Mapping[str, Any]) -> str:
    """How far the code was from its commit."""
    if "dirty" not in git:
        return "unknown"
    lines = [line for line in str(git.get("diff") or "").splitlines() if line[:3] not in HEADS]
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    if not git["dirty"]:
        return "none"
    new = git.get("untracked")
    return f"+{added} -{removed} lines" + (f", {count(len(new), 'new file')}" if new else "")


HEADS = ("+++", "---")


def sentences(attempts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader should know before comparing these runs."""
    commits = {commit_of(attempt) for attempt in attempts.values()}
    dirty = [name for name, each in attempts.items() if part(each, "git").get("dirty")]
    unknown = [name for name, each in attempts.items() if not each]
    lines = []
    if len(commits) == 1:
        lines.append(f"All runs are of commit {commits.pop()}.")
    else:
        lines.append(
            f"The runs are of {len(commits)} commits ({joined(sorted(commits))}): a difference "
            "between them may come from the code."
        )
    if dirty:
        lines.append(
            f"{count(len(dirty), 'run')} of {len(attempts)} had uncommitted changes; the changes "
            "themselves are in provenance.json of each run."
        )
    if unknown:
        lines.append(f"Nothing is known of {joined(unknown)}: no provenance.json that can be read.")
    same = {name: seen for name, seen in versions(attempts.values()).items() if len(seen) == 1}
    if same:
        lines.append(
            f"Versions: {', '.join(f'{name} {next(iter(v))}' for name, v in same.items())}."
        )
    return lines


def versions(attempts: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Each package, and its versions in these attempts."""
    found: dict[str, set[str]] = {}
    for attempt in attempts:
        for name, version in part(attempt, "packages").items():
            found.setdefault(name, set()).add(str(version))
    return found


def versions_that_differ(attempts: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """The packages of which the runs had several versions."""
    differing = [name for name, seen in versions(attempts.values()).items() if len(seen) > 1]
    if not differing:
        return None
    rows = [
        [
            Cell(name),
            *(Cell(str(part(each, "packages").get(package, "-"))) for package in differing),
        ]
        for name, each in attempts.items()
    ]
    return Table("Versions that differ between runs", ("run", *differing), rows)


def resumptions(attempts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table | None:
    """Every attempt of the runs that had several."""
    rows = [
        [
            Cell(name),
            Cell(str(number), number),
            Cell(str(attempt.get("time", "-"))),
            Cell(commit_of(attempt)),
            Cell(changes(part(attempt, "git"))),
            Cell("; ".join(map(str, attempt.get("changes") or ())) or "none"),
        ]
        for name, tried in attempts.items()
        if len(tried) > 1
        for number, attempt in enumerate(tried, 1)
    ]
    columns = ("run", "attempt", "time (UTC)", "commit", "uncommitted", "changes of the config")
    return Table("Runs that were resumed", columns, rows) if rows else None
