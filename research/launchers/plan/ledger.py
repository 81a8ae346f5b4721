"""The plan of a sweep: its jobs, which keep their numbers when more are added."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.differences import differences
from research.errors import UserError
from research.files import write_whole
from research.launchers.plan.names import folder_names, varying
from research.status import utc_now

PLAN = "sweep.json"


class Job(NamedTuple):
    """A job of a sweep.

    Attributes:
        number: from 0, in the order of planning.
        overrides: what sets it apart from the base config, as on the command line.
        varies: the swept keys and their values.
        folder: the run directory, absolute.
        name: unique, made of what varies; ``hydra.job.id``.

    """

    number: int
    overrides: tuple[str, ...]
    varies: dict[str, str]
    folder: Path
    name: str


class Plan:
    """``sweep.json`` of a sweep directory.

    Args:
        folder: the sweep directory.
        command: the command that resumes it, program included.
        config: the base config that all jobs share, as plain values.
        extendable: keys of numbers in it that may be larger than before, such as a length of
            training; every job then gets the new value, and ``extend`` writes it.

    Raises:
        UserError: the directory holds a sweep of another base config, or ``sweep.json`` is damaged.

    """

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str],
        config: Mapping[str, Any],
        extendable: Collection[str] = (),
    ) -> None:
        self.folder = folder
        config = json.loads(json.dumps(config, default=str))
        self.latest = {"command": list(command), "config": config}
        self.content = read_plan(folder) or {
            "created": utc_now(),
            "command": list(command),
            "folder": os.getcwd(),
            "config": config,
            "jobs": [],
        }
        varied = {key for entry in self.content["jobs"] for key in entry["varies"]}
        self.extendable = set(extendable) - varied
        before = self.content["config"]
        changes = [
            line
            for path, line in differences(before, config)
            if path not in self.extendable or not is_larger(at(config, path), at(before, path))
        ]
        if changes:
            raise UserError(
                f"{folder} holds a sweep of another base config: {'; '.join(changes)}; "
                "choose another hydra.sweep.dir"
            )

    def add(
        self,
        batch: Sequence[Sequence[str]],
        *,
        swept: Iterable[str],
        locate: Callable[[int, str, Sequence[str]], str],
    ) -> list[Job]:
        """The jobs for the overrides in ``batch``; those that are not planned yet are added.

        The plan is written at once, unless its config has grown: ``extend`` writes it then.

        Args:
            batch: the overrides of each job.
            swept: the keys that the sweep varies, even if these jobs do not show it.
            locate: returns a job's run directory, relative to the sweep's, from its number, its
                name and its overrides.

        Raises:
            UserError: two jobs would share a run directory.

        """
        if self.is_extended:
            self.lengthen(batch[0])
        planned = {identity(entry["overrides"]): entry for entry in self.content["jobs"]}
        new = [list(overrides) for overrides in batch if identity(overrides) not in planned]
        new = list({identity(overrides): overrides for overrides in new}.values())
        known = [entry["overrides"] for entry in self.content["jobs"]]
        keys = varying(list(map(as_mapping, [*known, *new])), swept)
        taken = {entry["folder"]: entry["number"] for entry in self.content["jobs"]}
        names = folder_names(
            list(map(as_mapping, new)), keys, [entry["name"] for entry in self.content["jobs"]]
        )
        entries = []
        for number, (name, overrides) in enumerate(zip(names, new, strict=True), len(known)):
            name = name if keys else str(number)
            folder = locate(number, name, overrides)
            if folder in taken:
                raise UserError(
                    f"jobs {taken[folder]} and {number} would share the run directory {folder}; "
                    "hydra.sweep.subdir must differ between jobs, as ${hydra.job.num} does"
                )
            taken[folder] = number
            values = as_mapping(overrides)
            varies = {key: values[key] for key in keys if key in values}
            entry = {"number": number, "name": name, "folder": folder, "varies": varies}
            entries.append({**entry, "overrides": overrides})
        self.content["jobs"] += entries
        if entries and not self.is_extended:
            self.write()
        planned |= {identity(entry["overrides"]): entry for entry in entries}
        return [as_job(self.folder, planned[identity(overrides)]) for overrides in batch]

    def lengthen(self, overrides: Iterable[str]) -> None:
        """Give all jobs the values of extendable keys in ``overrides``, which are a new job's."""
        lengths = [each for each in overrides if key_of(each) in self.extendable]
        for entry in self.content["jobs"]:
            kept = [each for each in entry["overrides"] if key_of(each) not in self.extendable]
            entry["overrides"] = [*kept, *lengths]

    @property
    def is_extended(self) -> bool:
        """Whether the config has grown and the plan has not been written since."""
        return self.content["config"] != self.latest["config"]

    def extend(self) -> None:
        """Write the plan with the new command, config and lengths."""
        self.content |= self.latest
        self.write()

    def write(self) -> None:
        """Replace the file."""
        write_whole(self.folder / PLAN, json.dumps(self.content, indent=1) + "\n")


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The content of ``sweep.json``, or None if there is none.

    Raises:
        UserError: it is not a sweep's plan.

    """
    path = folder / PLAN
    try:
        content = json.loads(path.read_text())
        if not {"command", "folder", "config", "jobs"} <= set(content):
            raise ValueError("keys are missing")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a sweep's plan: {error}") from error
    return content


def planned_jobs(folder: Path) -> list[Job]:
    """All jobs of the sweep in ``folder``.

    Raises:
        UserError: there is no plan, or it is damaged.

    """
    content = read_plan(folder)
    if content is None:
        raise UserError(f"{folder} holds no sweep (no {PLAN})")
    return [as_job(folder, entry) for entry in content["jobs"]]


def as_job(folder: Path, entry: Mapping[str, Any]) -> Job:
    """A job from its entry in the plan."""
    return Job(
        number=entry["number"],
        overrides=tuple(entry["overrides"]),
        varies=entry["varies"],
        folder=(folder / entry["folder"]).absolute(),
        name=entry["name"],
    )


def identity(overrides: Iterable[str]) -> tuple[str, ...]:
    """A key that is equal for the same overrides in any order."""
    return tuple(sorted(overrides))


def key_of(override: str) -> str:
    """The key that an override changes."""
    return override.partition("=")[0].lstrip("+~")


def at(config: Any, path: str) -> Any:
    """The value at a path of mappings, or None."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def is_larger(new: Any, old: Any) -> bool:
    """Whether both are numbers, the new one above the old."""
    return isinstance(new, int | float) and isinstance(old, int | float) and new > old


def as_mapping(overrides: Iterable[str]) -> dict[str, str]:
    """Keys and values of overrides; a deleted key (``~key``) has the value ``deleted``."""
    pairs = (override.partition("=") for override in overrides)
    return {
        key.lstrip("+~"): value if not key.startswith("~") else "deleted" for key, _, value in pairs
    }
