"""What a run would build is built beforehand, for many configs, and nothing of it is used."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

import train
from research import config
from research.errors import UserError
from research.rehearsal import Rehearsal, rehearsing
from research.training.run import Run
from tests.conftest import Load, algs, small, write_examples


def task(cfg: DictConfig, run: Run) -> float:
    return train.main.__wrapped__(cfg, run)  # type: ignore[attr-defined]


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    with rehearsing(task, elsewhere=False) as rehearsal:
        yield rehearsal


@pytest.mark.parametrize("alg", algs())
def test_every_algorithm_can_be_rehearsed_and_leaves_nothing(
    rehearsal: Rehearsal, load: Load, tmp_path: Path, alg: str
) -> None:
    overrides = small(alg, tmp_path, batch_size=16, capacity=5000)
    rehearsal(load(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["trainer.score.metric=train/q"], "trainer: score.metric must be one of the"),
        (
            ["trainer.total_steps=9", "trainer.pace.warmup_steps=9"],
            "trainer: trainer.total_steps=9 lies within the warm-up",
        ),
        (["env=gymnasium", "env.id=Pendulum-v7"], "env: 'Pendulum-v7' cannot be made"),
        (["logger.trackers=[csv,wand]"], "logger.trackers: 'wand' is not a tracker"),
        (["logger.trackers=[tensorboard]"], "logger.trackers must name csv"),
        (["init_from=away"], "init_from=away does not exist"),
    ],
)
def test_what_a_part_refuses_is_refused(
    rehearsal: Rehearsal, load: Load, tmp_path: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=f"^{reason}"):
        rehearsal(load("env=pendulum", *overrides), tmp_path)


def test_devices_that_are_elsewhere_are_no_matter(
    rehearsal: Rehearsal, load: Load, tmp_path: Path
) -> None:
    cfg = load(
        "alg=classification", "trainer.devices=8", "device=cuda:7", "logger.wandb.project=mine"
    )
    rehearsal(cfg, tmp_path)


def test_an_environment_is_built_once_and_a_config_once_for_all_seeds(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def construct_part(node: DictConfig, *collaborators: object) -> object:
        built.append(str(node._get_full_key(None)))
        return config.construct_part(node, *collaborators)

    monkeypatch.setattr("research.rehearsal.construct_part", construct_part)
    with rehearsing(task, elsewhere=False) as rehearsal:
        for tau in (0.1, 0.2):
            for seed in (0, 1):
                rehearsal(load(f"alg.tau={tau}", f"seed={seed}", "env=pendulum"), tmp_path)
        counts = {name: built.count(name) for name in ("env", "dataset", "network", "trainer")}
        assert counts == {"env": 1, "dataset": 1, "network": 2, "trainer": 2}
        rehearsal(load("env=cartpole"), tmp_path)
        assert built.count("env") == built.count("dataset") == 2


def test_on_other_machines_data_may_be_there_and_all_else_is_judged(
    load: Load, tmp_path: Path
) -> None:
    arrays = ("alg=regression", "network=mlp", "dataset=arrays")
    with rehearsing(task, elsewhere=True) as rehearsal:
        rehearsal(load(*arrays, f"dataset.path={tmp_path / 'away.npz'}"), tmp_path)
        with pytest.raises(UserError, match=r"^network: log_std_bounds must rise, got \[2, -5\]$"):
            rehearsal(load("alg=sac", "network.log_std_bounds=[2,-5]"), tmp_path)
    with (
        rehearsing(task, elsewhere=False) as rehearsal,
        pytest.raises(UserError, match=r"away\.npz is not there"),
    ):
        rehearsal(load(*arrays, f"dataset.path={tmp_path / 'away.npz'}"), tmp_path)


def test_data_of_two_configs_is_never_in_memory_at_once(
    rehearsal: Rehearsal, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in paths:
        write_examples(path)
    numpy_load = np.load

    def look(*arguments: object, **options: object) -> object:
        held.append("dataset" in rehearsal.parts)
        return numpy_load(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "load", look)
    for path in paths:
        rehearsal(
            load("alg=regression", "network=mlp", "dataset=arrays", f"dataset.path={path}"),
            tmp_path,
        )
    assert held == [False, False]
