"""What tests share: the config tree, small spaces, and randomness that is the same every time."""

import functools
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import hypothesis
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from research.hydra_versions import VERSION_BASE
from research.load_order import load_triton

CONF = Path(__file__).parents[1] / "conf"

Load: TypeAlias = Callable[..., DictConfig]
"""Composes the root config with overrides."""

Spaces: TypeAlias = tuple[Box, Box]
"""Of the observations and of the actions."""

load_triton()  # tests render and train in this one process

# A machine shared with others has no deadlines.
hypothesis.settings.register_profile("here", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("here")


def options(group: str) -> list[str]:
    """The choices of a config group, such as ``alg``."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names, f"no such config group: {group}"
    return names


def algs(trainer: str) -> list[str]:
    """The algorithms that bring a trainer: ``online`` or ``supervised``."""
    return [name for name in options("alg") if companion(name, "trainer") == trainer]


@functools.cache
def companion(alg: str, group: str) -> str:
    """What ``alg=x`` alone chooses in another group."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("config", ["name=test", f"alg={alg}"], return_hydra_config=True)
    return cfg.hydra.runtime.choices[group]


def write_examples(path: Path) -> None:
    """375 examples for ``dataset=arrays``: three features, and their sum to be told."""
    obs = np.random.default_rng(0).normal(size=(375, 3))
    np.savez(path, obs=obs, target=obs.sum(1))


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Hear what a shell's background job, or nohup, would have the tests' programs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same state of the global generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def load() -> Load:
    """Compose the root config: ``load("alg=td3", "env=pendulum")``."""

    def load(*overrides: str) -> DictConfig:
        # the name, unless it is given, asks Hydra which choices a running program has made
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            return compose("config", ["name=test", *overrides])

    return load


@pytest.fixture
def spaces() -> Spaces:
    """Three unbounded observations and two actions in [-1, 1]."""
    return Box(-np.inf, np.inf, (3,), np.float32), Box(-1, 1, (2,), np.float32)
