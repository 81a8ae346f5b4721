"""Processors one after the other."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor

from research.batches import Transition
from research.config import build
from research.processors.base import Processor
from research.processors.chain import Chain
from research.processors.normalise import NormaliseObservations
from tests.conftest import Load, Spaces


class OnObs(Processor):
    """Does to the observations of a batch what it does to those to act on."""

    def forward(self, batch: Any) -> Any:
        obs, next_obs = self.process_obs(batch.obs), self.process_obs(batch.next_obs)
        return batch._replace(obs=obs, next_obs=next_obs)


class Triple(OnObs):
    """Observations times three; the environment's actions are a third of the algorithm's."""

    def __init__(self, observation_space: Space, action_space: Space) -> None:
        assert isinstance(observation_space, Box)
        tripled = Box(observation_space.low * 3, observation_space.high * 3)
        super().__init__(tripled, action_space)

    def process_obs(self, obs: Any) -> Any:
        return obs * 3

    def unprocess_action(self, action: Tensor) -> Tensor:
        return action / 3


class Append(OnObs):
    """Observations with one more column, of ones; actions plus one."""

    def __init__(self, observation_space: Space, action_space: Space) -> None:
        assert isinstance(observation_space, Box)
        assert isinstance(action_space, Box)
        bounds = observation_space.low, observation_space.high
        low, high = (np.append(bound, np.float32(1)) for bound in bounds)
        super().__init__(Box(low, high), Box(action_space.low - 1, action_space.high - 1))

    def process_obs(self, obs: Any) -> Any:
        return torch.cat([obs, torch.ones(len(obs), 1)], dim=1)

    def unprocess_action(self, action: Tensor) -> Tensor:
        return action + 1


NORMALISE = partial(NormaliseObservations, clip=10.0, epsilon=1e-8, source="batches")
assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.fixture
def chain() -> Chain:
    return Chain(Box(-2, 2, (3,)), Box(-1, 1, (2,)), processors=[Triple, Append])


def make_batch(obs: Tensor) -> Transition:
    number = torch.zeros(len(obs))
    return Transition(obs, torch.zeros(len(obs), 2), number, number, obs)


def test_each_processor_is_made_for_the_spaces_of_the_one_before(chain: Chain) -> None:
    assert isinstance(chain.observation_space, Box)
    assert chain.observation_space.low.tolist() == [-6, -6, -6, 1]
    assert chain.observation_space.high.tolist() == [6, 6, 6, 1]
    assert chain.action_space == Box(-2, 0, (2,))


def test_observations_and_batches_go_through_in_order(chain: Chain) -> None:
    expected = torch.tensor([[3.0, 6.0, 0.0, 1.0]])
    obs = torch.tensor([[1.0, 2.0, 0.0]])
    assert_same(chain.process_obs(obs), expected)
    assert_same(chain(make_batch(obs)).obs, expected)


def test_actions_come_back_in_reverse_order(chain: Chain) -> None:
    assert torch.equal(
        chain.unprocess_action(torch.tensor([[5.0, 2.0]])), torch.tensor([[2.0, 1.0]])
    )


def test_an_empty_chain_changes_nothing(spaces: Spaces) -> None:
    chain, obs = Chain(*spaces, processors=[]), torch.randn(4, 3)
    assert (chain.observation_space, chain.action_space) == spaces
    assert chain.process_obs(obs) is obs
    assert chain.unprocess_action(obs) is obs


def test_the_links_statistics_are_the_chains(spaces: Spaces) -> None:
    chain, twin = (Chain(*spaces, processors=[Append, NORMALISE]) for _ in range(2))
    chain(make_batch(torch.randn(8, 3) + 5))
    twin.load_state_dict(chain.state_dict())
    obs = torch.randn(8, 3)
    assert_same(twin.process_obs(obs), chain.process_obs(obs))
    assert twin.state_dict()["links.1.registered.0.count"] == 8


def test_the_links_follow_the_chains_mode(spaces: Spaces) -> None:
    chain = Chain(*spaces, processors=[NORMALISE])
    chain.eval()(make_batch(torch.randn(8, 3) + 5))
    assert not any(value.any() for name, value in chain.state_dict().items() if "mean" in name)


class Standardise(OnObs):
    """Subtracts the mean of all training observations, and divides by their deviation."""

    mean, std = torch.zeros(()), torch.ones(())

    def fit(self, batches: Iterable[Any]) -> None:
        self.seen = torch.cat([batch.obs for batch in batches])
        self.mean, self.std = self.seen.mean(), self.seen.std()

    def process_obs(self, obs: Any) -> Any:
        return (obs - self.mean) / self.std


def test_every_link_is_fitted_to_all_batches_as_those_before_it_leave_them(spaces: Spaces) -> None:
    chain = Chain(*spaces, processors=[Standardise, Triple, Standardise])
    values = torch.randn(12, 3) * 7 + 5
    chain.fit([make_batch(part) for part in values.split(5)])
    first, _, last = chain.links
    assert isinstance(first, Standardise)
    assert isinstance(last, Standardise)
    assert_same(first.seen, values)
    assert last.seen.shape == values.shape
    assert (last.seen.mean().item(), last.seen.std().item()) == pytest.approx((0, 3), abs=1e-5)


def test_the_yaml_takes_a_list_of_processors(load: Load, spaces: Spaces) -> None:
    identity = "{_target_: research.processors.base.Identity, _partial_: true}"
    normalise = (
        "{_target_: research.processors.normalise.NormaliseObservations, _partial_: true, "
        "clip: 10.0, epsilon: 1e-8, source: batches}"
    )
    cfg = load("processor=chain", f"processor.processors=[{identity}, {normalise}]")
    chain = build(cfg.processor, *spaces)
    assert [type(link).__name__ for link in chain.links] == ["Identity", "NormaliseObservations"]
    assert chain.observation_space == Box(-10, 10, (3,), np.float32)


def test_links_observe_what_those_before_make_of_it(spaces: Spaces) -> None:
    watching = partial(NORMALISE, source="steps")
    chain = Chain(*spaces, processors=[NORMALISE, watching])
    assert chain.observes
    assert not Chain(*spaces, processors=[NORMALISE]).observes
    first, second = (link for link in chain.links if isinstance(link, NormaliseObservations))
    first.update(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]]))
    obs = torch.randn(4, 3)
    chain.observe(obs)
    assert first.moments["obs"].count == 2
    assert second.moments["obs"].count == 4
    processed = first.process_obs(obs)
    assert isinstance(processed, Tensor)
    expected = processed.double().mean(dim=0)
    torch.testing.assert_close(second.moments["obs"].mean, expected)
