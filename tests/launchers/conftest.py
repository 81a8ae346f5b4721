"""What the launchers' tests share: a real SLURM cluster, and pretended machines."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.cluster import Cluster, unavailable
from tests.launchers.machines import Machine


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Take back what Hydra, run in this process, does to everybody's logging."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for all tests; a test that fills or changes it leaves it as it was."""
    if reason := unavailable():
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may run on CPUs 0 to 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
