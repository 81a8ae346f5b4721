"""Finds runs, and the jobs of sweeps that have none."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import UserError
from research.launchers.plan.ledger import (
    PLAN,
    Job,
    as_mapping,
    key_of,
    planned_jobs,
    read_plan,
)
from research.results.keys import Filter, to_value, values_from, values_of
from research.results.runs import StoredRun, find_folders, read_run


class Found(NamedTuple):
    """A directory that holds a run, or should.

    Attributes:
        folder: the directory.
        run: None if ``problem`` says why there is none.
        values: the keys of the run and their values; empty if unknown.
        problem: what is wrong with it, or None.

    """

    folder: Path
    run: StoredRun | None
    values: dict[str, Any]
    problem: str | None


def find(paths: Iterable[Path]) -> list[Found]:
    """The runs in these directories, and the jobs of sweeps that never began, each once.

    Raises:
        UserError: a directory does not exist or holds neither, or a plan is damaged.

    """
    found: dict[Path, Found] = {}
    jobs: dict[Path, tuple[Job, Path]] = {}
    for path in paths:
        folders = list(find_folders(path))
        sweeps = list(find_sweeps(path)) if path not in folders else []
        if not folders and not sweeps:
            read_run(path)  # which tells what is wrong with it
        new = [folder for folder in folders if folder.resolve() not in found]
        found |= {folder.resolve(): read(folder) for folder in new}
        for sweep in sweeps:
            jobs |= {job.folder.resolve(): (job, sweep) for job in read_jobs(sweep)}
    began: dict[Path, list[tuple[Job, Found]]] = {}
    missing: dict[Path, list[Job]] = {}
    # a job of several seeds has a run in a folder for each
    within = {parent: run for folder, run in found.items() for parent in folder.parents}
    for folder, (job, sweep) in jobs.items():
        if run := found.get(folder) or within.get(folder):
            began.setdefault(sweep, []).append((job, run))
        else:
            missing.setdefault(sweep, []).append(job)
    never = [never_began(sweep, missing[sweep], began.get(sweep, [])) for sweep in missing]
    return [*found.values(), *itertools.chain(*never)]


def find_sweeps(folder: Path) -> Iterator[Path]:
    """The sweep directories in a folder, itself included, in the order of their names."""
    for path, names, files in os.walk(folder):
        if PLAN in files:
            yield Path(path)
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))


def read_jobs(sweep: Path) -> list[Job]:
    """All jobs of a sweep.

    Raises:
        UserError: its plan is damaged.

    """
    try:
        return planned_jobs(sweep)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{sweep / PLAN} is not a sweep's plan: {error!r}") from error


def read(folder: Path) -> Found:
    """The run in a directory, or what is wrong with it."""
    try:
        run = read_run(folder)
        return Found(folder, run, values_of(run), None)
    except (UserError, OSError) as error:
        return Found(folder, None, {}, str(error))


def never_began(
    sweep: Path, jobs: Iterable[Job], began: Sequence[tuple[Job, Found]]
) -> Iterator[Found]:
    """The planned jobs of a sweep without a run.

    The keys of a job are those of the most similar run of its sweep (or, if there is none, of the
    plan), and what it differs in. Its task is then named as on the command line.
    """
    plan = read_plan(sweep)
    assert plan is not None
    config = plan["config"]
    planned = values_from(config if isinstance(config, dict) else {}, {})
    for job in jobs:
        base, same, most = planned, set(), (-1, -1)
        for other, run in began:
            shared = {*job.overrides} & {*other.overrides}
            keys = [key for key in map(key_of, shared) if key != "seed"]
            # First the choices, such as alg, which bring other keys with them.
            similarity = sum("." not in key for key in keys), len(keys)
            if run.values and similarity > most:
                base, same, most = run.values, shared, similarity
        new = as_mapping(each for each in job.overrides if each not in same)
        varies = {key: to_value(value) for key, value in new.items()}
        yield Found(Path(os.path.relpath(job.folder)), None, {**base, **varies}, "it never began")


def choose(found: Sequence[Found], filters: Iterable[str]) -> list[Found]:
    """Those for which every filter holds; what is too damaged to tell stays."""
    for text in filters:
        known = [each.values for each in found if each.values]
        chosen = iter(Filter(text).choose(known))
        found = [each for each in found if not each.values or next(chosen)]
    return list(found)
