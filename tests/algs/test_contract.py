"""What holds for every algorithm that has a yaml."""

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from omegaconf import DictConfig
from torch import Tensor

from research.algs.base import Algorithm, Metrics
from research.batches import Step, Tree, map_tensors
from research.config import build, check
from research.datasets.base import CountableDataset
from research.processors.base import Processor
from research.training.collector import to_tensors
from tests.conftest import Load, algs, alone, collects, small


class Parts(NamedTuple):
    """What an algorithm's config builds."""

    env: Any
    processor: Processor
    alg: Algorithm
    dataset: Any

    def update(self, first: int = 0, count: int = 1) -> list[dict[str, Tensor]]:
        """Make ``count`` updates, of which the first is number ``first``."""
        return [
            self.alg.update(self.processor(self.dataset.sample()), step=100 + n, updates=n)
            for n in range(first, first + count)
        ]


@pytest.fixture(params=algs(), scope="module")
def cfg(
    request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> DictConfig:
    """What an algorithm alone composes to, but for the sizes of its dataset and of its images."""
    folder = tmp_path_factory.mktemp("data")
    return load(*small(request.param, folder, batch_size=16, capacity=400))


def make(cfg: DictConfig, seed: int = 0, *, weights_seed: int | None = None) -> Parts:
    """The parts in the order of ``train.py``; a dataset that is filled has 100 random steps."""
    torch.manual_seed(seed if weights_seed is None else weights_seed)
    env = build(cfg.env)
    dataset = build(cfg.dataset, env, seed)
    processor = build(cfg.processor, dataset.observation_space, dataset.action_space)
    alg = make_alg(cfg, processor)
    alg.make_optimizers()
    if isinstance(dataset, CountableDataset):
        processor.eval()
        processor.fit(dataset.training_batches())
        processor.train()
    if collects(cfg):
        key = (str(cfg.env), seed)
        if key not in RECORDED:
            RECORDED[key] = list(record(env, num_steps=100, seed=seed))
        fill(dataset, RECORDED[key])
    return Parts(env, processor, alg, dataset)


def make_alg(cfg: DictConfig, processor: Processor) -> Algorithm:
    """The algorithm, without optimizers."""
    network = build(cfg.network, processor.observation_space, processor.action_space)
    return build(cfg.alg, network)


def sample_obs(parts: Parts, size: int, scale: float = 1.0) -> Tree:
    """Processed observations (B, O), ``scale`` times those of the dataset's space."""
    space = batch_space(parts.dataset.observation_space, size)
    space.seed(0)
    obs = to_tensors(space.sample())
    scaled = obs if scale == 1 else map_tensors(lambda part: part * scale, obs)
    return parts.processor.process_obs(scaled)


RECORDED: dict[tuple[str, int], list[dict[str, Any]]] = {}
"""Random steps by environment and seed: images take their time."""


def fill(dataset: Any, steps: list[dict[str, Any]]) -> None:
    """Put recorded steps into a dataset."""
    for step in steps:
        if step["begun"].any():
            dataset.start_episodes(step["first"], step["begun"])
        dataset.add(Step(*(step[name] for name in ("action", "reward", "ended", "cut", "obs"))))


def record(env: Any, *, num_steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Act at random; episodes that do not end are cut every 40 steps, the second time for good."""
    env.action_space.seed(seed)
    over, obs = np.ones(env.num_envs, np.bool_), None
    for step in range(num_steps):
        begun = over
        if begun.any():
            seeds = [seed + step + index for index in range(env.num_envs)]
            obs, _ = env.reset(seed=seeds, options={"reset_mask": begun})
        first, action = obs, env.action_space.sample()
        obs, reward, ended, cut, _ = env.step(action)
        ended, cut = ended | (step == 79), cut | (step % 40 == 39)
        over = ended | cut
        yield {
            "begun": begun,
            "first": first,
            "action": action,
            "reward": reward,
            "ended": ended,
            "cut": cut,
            "obs": obs,
        }


def saved_and_loaded(state: Any) -> Any:
    """A state after its way through a checkpoint's file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one: Algorithm, other: Algorithm) -> None:
    """Compare two algorithms' weights to the last bit."""
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def assert_metrics(metrics: Metrics) -> None:
    """Check that they are what the trainer can log."""
    assert metrics
    for name, value in metrics.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert torch.isfinite(value), name


def test_the_algorithm_alone_brings_companions_that_suit_it(cfg: DictConfig) -> None:
    check(cfg)
    parts = make(cfg)
    assert isinstance(parts.alg, Algorithm)
    assert parts.dataset.sample()


def test_metrics_are_finite_detached_and_without_dimensions(cfg: DictConfig) -> None:
    for metrics in make(cfg).update(count=4):
        assert_metrics(metrics)


def test_updates_change_the_weights_and_leave_them_finite(cfg: DictConfig) -> None:
    parts = make(cfg)
    before = copy.deepcopy(parts.alg)
    parts.update(count=4)
    for (name, value), old in zip(parts.alg.named_parameters(), before.parameters(), strict=True):
        assert torch.isfinite(value).all(), name
        assert not (value.requires_grad and torch.equal(value, old)), name


def test_a_reloaded_algorithm_goes_on_exactly(cfg: DictConfig, tmp_path: Path) -> None:
    parts, twin = make(cfg), make(cfg, weights_seed=1)
    parts.update(count=3)
    twin.alg.load_state_dict(saved_and_loaded(parts.alg.state_dict()))
    twin.processor.load_state_dict(saved_and_loaded(parts.processor.state_dict()))
    twin.dataset.load(saved_and_loaded(parts.dataset.save(tmp_path)), tmp_path)
    for name, optim in twin.alg.optimizers.items():
        optim.load_state_dict(saved_and_loaded(parts.alg.optimizers[name].state_dict()))
    assert_same(twin.alg, parts.alg)
    for each in (parts, twin):
        torch.manual_seed(7)
        each.update(first=3, count=3)
    assert_same(twin.alg, parts.alg)


def test_acting_on_loaded_weights_needs_no_optimizers(cfg: DictConfig) -> None:
    trained = make(cfg)
    trained.update(count=2)
    alg = make_alg(cfg, trained.processor)
    alg.load_state_dict(saved_and_loaded(trained.alg.state_dict()))
    assert not alg.optimizers
    obs = sample_obs(trained, 10)
    alg.eval()
    trained.alg.eval()
    assert torch.equal(alg.act(obs, 0, explore=False), trained.alg.act(obs, 0, explore=False))


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(cfg: DictConfig) -> None:
    one, other = make(cfg, seed=3), make(cfg, seed=3)
    for each in (one, other):
        torch.manual_seed(7)
        each.update(count=4)
    assert_same(one.alg, other.alg)


def test_another_seed_gives_other_weights(cfg: DictConfig) -> None:
    one, other = make(cfg, seed=3), make(cfg, seed=4)
    with pytest.raises(AssertionError):
        assert_same(one.alg, other.alg)


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_actions_lie_in_the_action_space(cfg: DictConfig, explore: bool, scale: float) -> None:
    parts = make(cfg)
    acts = isinstance(parts.env, VectorEnv)
    space = parts.env.single_action_space if acts else parts.dataset.action_space
    action = parts.alg.act(sample_obs(parts, 50, scale), 0, explore)
    action = parts.processor.unprocess_action(action)
    assert not action.requires_grad
    assert len(action) == 50
    assert all(space.contains(row) for row in action.numpy())


def test_acting_without_exploration_is_always_the_same(cfg: DictConfig) -> None:
    parts = make(cfg)
    parts.alg.eval()
    obs = sample_obs(parts, 10)
    one, other = (parts.alg.act(obs, 0, explore=False) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "cfg", [alg for alg in algs() if "num_envs" not in alone(alg).env], indirect=True
)
def test_validating_changes_nothing_and_gives_finite_numbers(cfg: DictConfig) -> None:
    parts = make(cfg)
    parts.update(count=2)
    for module in (parts.alg, parts.processor):
        module.eval()
    before = copy.deepcopy(parts.alg)
    for batch in parts.dataset.validation_batches():
        assert_metrics(parts.alg.validate(parts.processor(batch)))
    assert_same(parts.alg, before)


def test_every_trained_parameter_has_one_optimizer(cfg: DictConfig) -> None:
    alg = make(cfg).alg
    owned = [
        parameter
        for optim in alg.optimizers.values()
        for group in optim.param_groups
        for parameter in group["params"]
    ]
    assert len(owned) == len(set(owned))
    assert set(owned) == {parameter for parameter in alg.parameters() if parameter.requires_grad}


def test_every_frozen_copy_is_told(cfg: DictConfig) -> None:
    alg = make(cfg).alg
    told = [parameter for frozen, _ in alg.copies() for parameter in frozen.parameters()]
    trained = [parameter for parameter in alg.parameters() if parameter.requires_grad]
    for name, parameter in alg.named_parameters():
        is_constant = bool((parameter == parameter.flatten()[:1]).all())  # equal by chance
        if not parameter.requires_grad and not is_constant and any(map(parameter.equal, trained)):
            assert any(parameter is each for each in told), name
    for frozen, original in alg.copies():
        torch.testing.assert_close(dict(frozen.state_dict()), dict(original.state_dict()))
