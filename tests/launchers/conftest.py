"""What the launchers' tests share: a real SLURM cluster, and logging as it was."""

import logging
from collections.abc import Iterator

import pytest

from tests.launchers.cluster import Cluster, unavailable


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
