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

FAST = ["hydra.launcher.stagger_s=0"]


def test_hydra_finds_the_launchers() -> None:
    names = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    assert {"LocalLauncher", "SlurmLauncher", "BasicLauncher"} <= names


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", FAST)])
class TestLocal(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("local", [*FAST, "hydra.sweeper.max_batch_size=2"])]
)
class TestLocalInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=local", *FAST])]
)
class TestLocalAsProgram(IntegrationTestSuite):
    @pytest.mark.xfail(strict=True, reason="runs a completed sweep again, which does nothing here")
    def test_to_absolute_path_multirun(
        self, tmpdir: Path, task_launcher_cfg: Any, extra_flags: list[str]
    ) -> None:
        super().test_to_absolute_path_multirun(tmpdir, task_launcher_cfg, extra_flags)
