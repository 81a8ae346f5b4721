"""Hydra's own tests of launchers, on ours."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase
from packaging.version import Version

from tests.launchers.cluster import Cluster

FAST = ["hydra.launcher.stagger_s=0"]
PACKED = ["hydra.launcher.jobs_per_allocation=2", "hydra.launcher.setup=[]"]
Plugins.instance()  # before Hydra's fixtures note which singletons there are
Plugins.instance()  # before Hydra's fixtures note which singletons there are
NOT_TWICE = "runs a completed sweep again, which does nothing here"


@pytest.fixture
def on_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's commands talk to the private cluster."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environ[name])


@pytest.fixture(autouse=True)
def hydras_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs without a ``version_base``, whatever the tests before this one ran."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))


def test_hydra_finds_the_launchers() -> None:
    names = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    assert {"LocalLauncher", "SlurmLauncher", "BasicLauncher"} <= names


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", FAST)])
class TestLocal(LauncherTestSuite):
    # Of Hydra 1.4: here the traceback is in the job's log, and its error is one line.
    test_failure_preserves_task_traceback: Any = None


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("local", [*FAST, "hydra.sweeper.max_batch_size=2"])]
)
class TestLocalInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=local", *FAST])]
)
class TestLocalAsProgram(IntegrationTestSuite):
    @pytest.mark.xfail(strict=True, reason=NOT_TWICE)
    def test_to_absolute_path_multirun(
        self, tmpdir: Path, task_launcher_cfg: Any, extra_flags: list[str]
    ) -> None:
        super().test_to_absolute_path_multirun(tmpdir, task_launcher_cfg, extra_flags)


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("slurm", PACKED)])
class TestSlurm(LauncherTestSuite):
    # Of Hydra 1.4: here the traceback is in the job's log, and its error is one line.
    test_failure_preserves_task_traceback: Any = None


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("slurm", [*PACKED, "hydra.sweeper.max_batch_size=2"])]
)
class TestSlurmInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=slurm", *PACKED])]
)
class TestSlurmAsProgram(IntegrationTestSuite):
    @pytest.mark.xfail(strict=True, reason=NOT_TWICE)
    def test_to_absolute_path_multirun(
        self, tmpdir: Path, task_launcher_cfg: Any, extra_flags: list[str]
    ) -> None:
        super().test_to_absolute_path_multirun(tmpdir, task_launcher_cfg, extra_flags)
