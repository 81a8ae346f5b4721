"""Observations normalised by running statistics."""

import io
from collections import OrderedDict
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from research.batches import Transition, Tree
from research.processors.normalise import NormaliseObservations, RunningMoments

FLAT = Box(-np.inf, np.inf, (3,), np.float32)
PIXELS = Box(0, 255, (3, 4, 4), np.uint8)
UNIT = Box(-1, 1, (2,), np.float32)
EPSILON = 0.01
assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


class Labelled(NamedTuple):
    """A batch without next observations."""

    obs: Tensor
    label: Tensor


def make(
    space: Space = FLAT,
    *,
    clip: float = 100.0,
    epsilon: float = EPSILON,
    source: Literal["batches", "steps"] = "batches",
) -> NormaliseObservations:
    return NormaliseObservations(space, UNIT, clip=clip, epsilon=epsilon, source=source)


def make_batch(obs: Tree, next_obs: Tree | None = None) -> Transition:
    size = len(obs if isinstance(obs, Tensor) else next(iter(obs.values())))
    next_obs = obs if next_obs is None else next_obs
    return Transition(obs, torch.randn(size, 2), torch.randn(size), torch.rand(size), next_obs)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """A state after its way through a checkpoint's file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def part(batch_size: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(batch_size, st.just(2))
    return arrays(np.float32, shape, elements=st.floats(-1000, 1000, width=32))


@given(st.lists(part(st.integers(1, 6)), min_size=1, max_size=6))
def test_moments_of_batches_are_those_of_all_values_together(batches: list[np.ndarray]) -> None:
    moments = RunningMoments((2,))
    for batch in batches:
        moments.update(torch.as_tensor(batch))
    values = np.concatenate(batches).astype(np.float64)
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-9, atol=1e-7)


def test_moments_stay_exact_far_from_zero() -> None:
    moments = RunningMoments((1,))
    values = 1e6 + torch.randn(100, 50, 1, dtype=torch.float64)
    for batch in values:
        moments.update(batch)
    assert moments.mean.item() == pytest.approx(values.mean().item(), abs=1e-8)
    assert moments.variance.item() == pytest.approx(values.var(correction=0).item(), rel=1e-8)


def test_a_training_batch_is_normalised_by_all_seen_so_far_and_itself() -> None:
    processor = make()
    first, second = torch.randn(8, 3) * 5 + 2, torch.randn(4, 3)
    processor(make_batch(first))
    batch = make_batch(second, next_obs=torch.randn(4, 3) + 50)
    processed = processor(batch)
    seen = torch.cat([first, second])
    mean, std = seen.mean(dim=0), (seen.var(dim=0, correction=0) + EPSILON).sqrt()
    torch.testing.assert_close(processed.obs, (batch.obs - mean) / std)
    torch.testing.assert_close(processed.next_obs, (batch.next_obs - mean) / std)
    assert all(processed[i] is batch[i] for i in (1, 2, 3))


def test_before_the_first_batch_observations_stay_as_they_are() -> None:
    obs = torch.randn(8, 3)
    torch.testing.assert_close(make(epsilon=1e-8).process_obs(obs), obs)


def test_a_batch_without_next_observations_is_normalised_too() -> None:
    batch = Labelled(torch.randn(50, 3) * 3 + 1, torch.arange(50))
    processed = make()(batch)
    torch.testing.assert_close(processed.obs.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    assert processed.label is batch.label


def test_statistics_stand_still_in_evaluation_mode() -> None:
    processor = make()
    processor(make_batch(torch.randn(8, 3)))
    before = saved_and_loaded(processor.state_dict())
    obs = torch.randn(8, 3) + 7
    processed = processor.eval()(make_batch(obs))
    assert_same(dict(processor.state_dict()), before)
    assert_same(processed.obs, processor.process_obs(obs))


def test_acting_moves_no_statistics_in_any_mode() -> None:
    for processor, obs in (
        (make(), torch.randn(8, 3)),
        (make(Dict({"a": FLAT})), {"a": torch.randn(8, 3)}),
    ):
        before = saved_and_loaded(processor.state_dict())
        processor.process_obs(obs)
        assert_same(dict(processor.state_dict()), before)


def test_statistics_of_dict_observations_are_saved_and_restored_exactly() -> None:
    space = Dict({"b": FLAT, "a": Box(-1, 1, (2,)), "pixels": PIXELS})
    obs: Tree = {"a": torch.randn(8, 2), "b": torch.randn(8, 3), "pixels": torch.zeros(8, 1)}
    processor, twin = make(space), make(space)
    processor(make_batch(obs))
    twin.load_state_dict(saved_and_loaded(processor.state_dict()))
    assert_same(twin.process_obs(obs), processor.process_obs(obs))
    more: Tree = {"a": torch.randn(4, 2), "b": torch.randn(4, 3), "pixels": torch.zeros(4, 1)}
    assert_same(twin(make_batch(more)).obs, processor(make_batch(more)).obs)
    assert_same(dict(twin.state_dict()), dict(processor.state_dict()))


@pytest.mark.parametrize("key", ["state.joints", "type", "values"])
def test_any_key_of_a_dict_will_do(key: str) -> None:
    obs = torch.randn(50, 3) * 4
    processed = make(Dict({key: FLAT}))(make_batch({key: obs}))
    torch.testing.assert_close(processed.obs[key].std(), torch.ones(()), rtol=0.05, atol=0)


def test_each_part_of_a_dict_has_statistics_of_its_own() -> None:
    space = Dict({"near": FLAT, "far": FLAT})
    obs = {"near": torch.randn(8, 3), "far": torch.randn(8, 3) * 9 + 100}
    processed = make(space)(make_batch(obs))
    for key in space:
        torch.testing.assert_close(processed.obs[key], make()(make_batch(obs[key])).obs)


def test_what_is_not_float_is_left_alone() -> None:
    space = Dict({"pixels": PIXELS, "flat": FLAT, "count": Discrete(3)})
    processor = make(space)
    obs = {
        "pixels": torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8),
        "flat": torch.randn(8, 3),
        "count": torch.randint(3, (8,)),
    }
    processed = processor(make_batch(obs)).obs
    assert processed["pixels"] is obs["pixels"]
    assert processed["count"] is obs["count"]
    assert isinstance(processor.observation_space, Dict)
    assert processor.observation_space["pixels"] is PIXELS
    assert processor.observation_space["count"] == Discrete(3)


@pytest.mark.parametrize("far", [-1e9, 1e9])
def test_results_are_clipped_to_the_space_that_is_declared(far: float) -> None:
    processor = make(clip=2.5)
    processor(make_batch(torch.randn(8, 3)))
    processed = processor.process_obs(torch.full((1, 3), far))
    assert isinstance(processed, Tensor)
    assert (processed == np.sign(far) * 2.5).all()
    assert processor.observation_space == Box(-2.5, 2.5, (3,), np.float32)
    assert processor.action_space is UNIT


def test_float64_observations_come_out_as_the_declared_float32() -> None:
    processor = make(Box(-np.inf, np.inf, (3,), np.float64))
    processed = processor(make_batch(torch.randn(8, 3, dtype=torch.float64)))
    assert processed.obs.dtype == torch.float32
    assert processor.observation_space.dtype == np.float32


def test_an_observation_that_never_changes_becomes_zero() -> None:
    obs = torch.full((8, 3), 3.3)
    assert not make(epsilon=1e-8)(make_batch(obs)).obs.any()


def test_the_keys_of_a_dict_keep_their_order() -> None:
    space = Dict(OrderedDict(velocity=FLAT, position=FLAT))
    processed = make(space).observation_space
    assert isinstance(processed, Dict)
    assert list(processed) == ["velocity", "position"]


def test_statistics_move_with_the_module() -> None:
    processor = make().to("meta")
    assert all(value.device.type == "meta" for value in processor.moments["obs"].buffers())


@pytest.mark.parametrize("space", [PIXELS, Discrete(3), Dict({"inner": Dict({"a": FLAT})})])
def test_a_space_without_floats_is_refused(space: Space) -> None:
    with pytest.raises(ValueError, match="there is no float observation to normalise in"):
        make(space)


def test_statistics_of_steps_come_from_what_is_observed_alone() -> None:
    normalise = make(source="steps")
    steps = torch.randn(30, 2, 3) * 3 + 1
    for step in steps:
        normalise.observe(step)
        normalise(make_batch(torch.randn(4, 3) + 100))
    (moments,) = normalise.moments.values()
    every = steps.flatten(0, 1).double()
    torch.testing.assert_close(moments.mean, every.mean(dim=0))
    torch.testing.assert_close(moments.variance, every.var(dim=0, correction=0))
    assert moments.count == 60


def test_statistics_of_batches_do_not_come_from_what_is_observed() -> None:
    normalise = make()
    normalise.observe(torch.randn(4, 3))
    (moments,) = normalise.moments.values()
    assert moments.count == 0
    assert not normalise.observes


def test_without_a_bound_nothing_is_cut_off() -> None:
    normalise = make(clip=float("inf"))
    processed = normalise.process_obs(torch.full((1, 3), 1e6))
    assert isinstance(processed, Tensor)
    assert processed.min() > 1e5
    assert normalise.observation_space == FLAT
