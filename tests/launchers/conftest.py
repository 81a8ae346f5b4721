"""What the launchers' tests share: a real SLURM cluster."""

from collections.abc import Iterator

import pytest

from tests.launchers.cluster import Cluster, unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for all tests; a test that fills or changes it leaves it as it was."""
    if reason := unavailable():
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster
