"""What holds for every processor that has a yaml."""

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from research.batches import Transition
from research.config import build
from research.processors.base import Processor
from tests.conftest import Load, Spaces, options

Make: TypeAlias = Callable[[], Processor]
assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.fixture(params=options("processor"), scope="module")
def node(request: pytest.FixtureRequest, load: Load) -> DictConfig:
    return load(f"processor={request.param}").processor


@pytest.fixture
def make(node: DictConfig, spaces: Spaces) -> Make:
    """Builds the processor that a yaml describes, for flat observations."""
    return partial(build, node, *spaces)


def make_batch(size: int = 16) -> Transition:
    obs, next_obs = torch.randn(2, size, 3) * 5 + 2
    return Transition(obs, torch.rand(size, 2), torch.randn(size), torch.rand(size), next_obs)


def test_observations_lie_in_the_space_that_is_declared(make: Make) -> None:
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


def test_acting_changes_no_state(make: Make) -> None:
    processor = make()
    processor(make_batch())
    before = copy.deepcopy(processor.state_dict())
    processor.process_obs(make_batch().obs)
    assert_same(dict(processor.state_dict()), dict(before))


def test_a_reloaded_processor_acts_and_learns_alike(make: Make) -> None:
    processor, twin, batch = make(), make(), make_batch()
    processor(make_batch())
    twin.load_state_dict(processor.state_dict())
    assert_same(twin.process_obs(batch.obs), processor.process_obs(batch.obs))
    assert_same(twin(batch), processor(batch))
    assert_same(dict(twin.state_dict()), dict(processor.state_dict()))


def test_a_batch_keeps_its_type_and_size(make: Make) -> None:
    batch = make_batch()
    processed = make()(batch)
    assert isinstance(processed, Transition)
    assert all(len(value) == len(batch.reward) for value in processed)
