"""What tests share: the config tree, small spaces, and randomness that is the same every time."""

import functools
import logging
import random
import signal
from collections.abc import Callable, Iterator
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
from research.process import collect_seldom

CONF = Path(__file__).parents[1] / "conf"
TOYS = Path(__file__).parent / "algs" / "conf"
"""Algorithms of kinds that ``CONF`` has none of."""

Load: TypeAlias = Callable[..., DictConfig]
"""Composes the root config with overrides."""

Spaces: TypeAlias = tuple[Box, Box]
"""Of the observations and of the actions."""

collect_seldom()
load_triton()  # tests render and train in this one process

# A machine shared with others has no deadlines.
hypothesis.settings.register_profile("here", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("here")


def options(group: str, conf: Path = CONF) -> list[str]:
    """The choices of a config group, such as ``alg``."""
    names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    assert names, f"no such config group: {group}"
    return names


def algs() -> list[str]:
    """Every algorithm that has a yaml."""
    return [*options("alg"), *options("alg", TOYS)]


def choosing(alg: str) -> list[str]:
    """The overrides that choose an algorithm, wherever its yaml is."""
    if alg in options("alg"):
        return [f"alg={alg}"]
    return [f"alg={alg}", f"hydra.searchpath=[file://{TOYS}]", "trusted_modules=[tests]"]


@functools.cache
def alone(alg: str) -> DictConfig:
    """What an algorithm alone composes to, with Hydra's own node."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose("config", ["name=test", *choosing(alg)], return_hydra_config=True)


def choice(alg: str, group: str) -> str:
    """What an algorithm alone chooses in another group."""
    return alone(alg).hydra.runtime.choices[group]


def collects(cfg: DictConfig) -> bool:
    """Whether a trainer fills its dataset from an environment."""
    return cfg.trainer.pace is not None


def small(alg: str, folder: Path, *, batch_size: int, capacity: int) -> list[str]:
    """An algorithm's companions at these sizes, as far as they have any; files go to ``folder``.

    Critics that are wider than actors are not.
    """
    cfg, overrides = alone(alg), choosing(alg)
    if "critic_hidden_dims" in cfg.network:
        overrides.append("network.critic_hidden_dims=[32,32]")
    if "batch_size" in cfg.dataset:
        overrides.append(f"dataset.batch_size={batch_size}")
    if "capacity" in cfg.dataset:
        overrides.append(f"dataset.capacity={capacity}")
    if "minibatches" in cfg.dataset:
        overrides += [f"trainer.pace.horizon={3 * batch_size}", "trainer.pace.minibatches=3"]
    if "path" in cfg.dataset:
        write_examples(folder / "examples.npz")
        overrides.append(f"dataset.path={folder / 'examples.npz'}")
    if cfg.env.get("pixels"):
        overrides.append("env.pixel_size=24")
    return overrides


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
def _consoles() -> Iterator[None]:
    """Remove the log handlers that a command sets, whose stream ends with its test."""
    before = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            logging.root.removeHandler(handler)


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
