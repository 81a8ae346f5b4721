"""What holds for every processor that has a yaml."""

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from omegaconf import DictConfig
from torch import Tensor

from research.batches import Rollout, Transition, count_rows
from research.config import build
from research.errors import UserError
from research.processors.base import Processor
from tests.conftest import Load, Spaces, options

Make: TypeAlias = Callable[[], Processor]
Batches: TypeAlias = Callable[[], Transition | Rollout]
assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.fixture(params=options("processor"), scope="module")
def node(request: pytest.FixtureRequest, load: Load) -> DictConfig:
    return load(f"processor={request.param}").processor


@pytest.fixture
def suited(node: DictConfig, spaces: Spaces) -> Spaces:
    """Flat observations, or images for a processor that takes no others."""
    try:
        build(node, *spaces)
    except UserError:
        return Box(0, 255, (3, 12, 12), np.uint8), spaces[1]
    return spaces


@pytest.fixture
def make(node: DictConfig, suited: Spaces) -> Make:
    """Builds the processor that a yaml describes."""
    return partial(build, node, *suited)


@pytest.fixture
def make_batch(make: Make, suited: Spaces) -> Batches:
    """Random transitions, with observations far from the standard normal.

    A processor that takes no other gets rollouts of 8 steps in 2 environments.
    """
    shape, size = suited[0].shape, 16

    def make_transition() -> Transition:
        obs, next_obs = torch.randn(2, size, *shape) * 5 + 20
        if suited[0].dtype == np.uint8:
            obs, next_obs = obs.byte(), next_obs.byte()
        return Transition(obs, torch.rand(size, 2), torch.randn(size), torch.rand(size), next_obs)

    def make_rollout() -> Rollout:
        over, env = torch.rand(size) < 0.2, torch.arange(2).repeat(8)
        return Rollout(*make_transition(), over, env, extras={}, info={}, next_info={})

    try:
        make()(make_transition())
    except UserError:
        return make_rollout
    return make_transition


def test_observations_lie_in_the_space_that_is_declared(make: Make, make_batch: Batches) -> None:
    processor, batch = make(), make_batch()
    processed = processor(batch)
    for obs in (processed.obs, processed.next_obs, processor.process_obs(batch.obs)):
        assert isinstance(obs, Tensor)
        assert all(processor.observation_space.contains(row) for row in obs.numpy())


def test_actions_come_back_into_the_environments_space(make: Make, spaces: Spaces) -> None:
    processor = make()
    processor.action_space.seed(0)
    actions = torch.stack([torch.as_tensor(processor.action_space.sample()) for _ in range(16)])
    assert all(spaces[1].contains(row) for row in processor.unprocess_action(actions).numpy())


def test_acting_changes_no_state(make: Make, make_batch: Batches) -> None:
    processor = make()
    processor(make_batch())
    before = copy.deepcopy(processor.state_dict())
    processor.process_obs(make_batch().obs)
    assert_same(dict(processor.state_dict()), dict(before))


def test_a_reloaded_processor_acts_and_learns_alike(make: Make, make_batch: Batches) -> None:
    processor, twin, batch = make(), make(), make_batch()
    processor(make_batch())
    twin.load_state_dict(processor.state_dict())
    assert_same(twin.process_obs(batch.obs), processor.process_obs(batch.obs))
    processed = []
    for each in (twin, processor):
        torch.manual_seed(1)
        processed.append(each(batch))
    assert_same(*processed)
    assert_same(dict(twin.state_dict()), dict(processor.state_dict()))


def test_a_batch_keeps_its_type_and_size(make: Make, make_batch: Batches) -> None:
    batch = make_batch()
    processed = make()(batch)
    assert type(processed) is type(batch)
    assert [count_rows(value) for value in processed[:5]] == [16] * 5
