"""A replay buffer with priorities against a naive one; its batches, state and refusals."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from research.batches import Transition, WeightedTransition
from research.datasets.replay.buffer import ReplayBuffer
from research.datasets.replay.prioritised_rows import PrioritisedRows
from research.datasets.replay.reader import ReaderFactory
from research.datasets.replay.row_set import RowSet
from research.datasets.replay.transitions import Transitions
from tests.datasets.replay.test_buffer import (
    CONTINUE,
    GAMMA,
    PAUSE,
    TERMINATE,
    TRUNCATE,
    NaiveBuffer,
    Spaces,
    Streams,
    fill,
    make_buffer,
    reload,
)

ALPHA, EPSILON = 0.7, 0.1
PRIORITIES = partial(PrioritisedRows, alpha=ALPHA, beta=0.5, epsilon=EPSILON)


def make(
    *,
    num_envs: int = 1,
    capacity: int = 100,
    n_step: int = 1,
    batch_size: int = 4,
    seed: int = 0,
    obs_space: gymnasium.Space[Any] = spaces.Box(-1, 1, (2,), np.float64),  # noqa: B008
    frame_stack: int = 1,
    reader: ReaderFactory = Transitions,
) -> ReplayBuffer:
    metadata = {"frame_stack": frame_stack}
    return ReplayBuffer(
        Spaces(obs_space, spaces.Box(-1, 1, (1,), np.float32), num_envs, metadata),
        seed,
        capacity=capacity,
        batch_size=batch_size,
        discount=GAMMA,
        n_step=n_step,
        storage="ram",
        device="cpu",
        reader=reader,
        priorities=PRIORITIES,
    )


def errors_of(numbers: list[float]) -> list[float]:
    """The error that is made on the observation with each number."""
    return [number * 7 % 5 - 2 for number in numbers]


def learn(buffer: ReplayBuffer) -> list[float]:
    """Draw a batch and tell its errors; the numbers of its observations."""
    numbers = buffer.sample().obs[:, 0].tolist()
    buffer.prioritise(torch.tensor(errors_of(numbers)))
    return numbers


def stored(buffer: ReplayBuffer) -> dict[float, float]:
    """The priority of every transition, by the number of its first observation."""
    priorities = buffer._priorities.state_dict()["priorities"].tolist()
    batch = buffer._reader.read(buffer._rings.starts.members().clone(), pinned=False)
    numbers = batch.unpack(batch.memory).obs[:, 0].tolist()
    assert np.count_nonzero(buffer._priorities._tree.values) == len(numbers), "others have none"
    return dict(zip(numbers, priorities, strict=True))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_transition_has_the_naive_buffers_priority(data: st.DataObject) -> None:
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    capacity = data.draw(st.integers((n_step + 1) * num_envs, 40))
    event = st.sampled_from([CONTINUE] * 4 + [TERMINATE, TRUNCATE, PAUSE])
    events = data.draw(st.lists(st.lists(event, min_size=num_envs, max_size=num_envs), max_size=40))
    buffer = make(num_envs=num_envs, capacity=capacity, n_step=n_step)
    naive = NaiveBuffer(num_envs, capacity, n_step)
    streams, expected, largest = Streams(buffer, naive), {}, 1.0
    for step_events in events:
        streams.step_or_start(step_events)
        now = {number for number, *_ in naive.transitions()}
        expected = {number: expected.get(number, largest) for number in now}
        if now and data.draw(st.booleans()):
            numbers = learn(buffer)
            assert set(numbers) <= now
            for number, error in zip(numbers, errors_of(numbers), strict=True):
                expected[number] = (abs(error) + EPSILON) ** ALPHA
                largest = max(largest, expected[number])
        assert stored(buffer) == pytest.approx(expected)


@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_are_those_of_a_uniform_buffer_with_weights(n_step: int) -> None:
    buffer, uniform = make(n_step=n_step, batch_size=64), make_buffer(n_step=n_step)
    for each in (buffer, uniform):
        fill(each, 50)
    everything = uniform._reader.read(uniform._rings.starts.members().clone(), pinned=False)
    expected = everything.unpack(everything.memory)
    batch = buffer.sample()
    assert isinstance(batch, WeightedTransition)
    rows = (batch.obs[:, None] == expected.obs).all(-1).double().argmax(1)
    for name in Transition._fields:
        assert torch.equal(getattr(batch, name), getattr(expected, name)[rows]), name
    assert torch.equal(batch.weight, torch.ones(64))
    buffer.prioritise(torch.randn(64))
    weight = buffer.sample().weight
    assert (weight.shape, weight.dtype, weight.max()) == ((64,), torch.float32, 1.0)
    assert weight.min() < 0.9


def test_values_that_are_stored_besides_come_with_the_weights() -> None:
    buffer = make()
    buffer.hold({"half": ()}, {"twice": (2,)})
    streams = Streams(buffer, NaiveBuffer(1, 100, 1))
    streams.infos = lambda obs: [{"twice": 2 * obs}]
    streams.extended = lambda step: step._replace(
        extras={"half": step.action[:, 0] / 2},
        next_info={"twice": 2 * step.next_obs},  # type: ignore[operator]
    )
    for _ in range(9):
        streams.step([CONTINUE])
    batch = buffer.sample()
    assert torch.equal(batch.extras["half"], batch.action[:, 0] / 2)
    assert torch.equal(batch.info["twice"], 2 * batch.obs)
    assert torch.equal(batch.next_info["twice"], 2 * batch.next_obs)
    assert batch.weight.shape == (4,)


def test_stacks_of_frames_come_with_weights() -> None:
    buffer = make(obs_space=spaces.Box(0, 255, (2, 2, 2), np.uint8), frame_stack=2)
    streams = Streams(buffer, NaiveBuffer(1, 100, 1, 2))
    last = np.zeros((1, 2, 2, 2), np.uint8)

    def observe(numbers: np.ndarray, first: np.ndarray) -> tuple[Any, list[Any]]:
        frame = np.full((1, 1, 2, 2), numbers[0], np.uint8)
        last[:] = np.concatenate([frame if first[0] else last[:, 1:], frame], axis=1)
        return last.copy(), numbers.tolist()

    streams.observe = observe
    for _ in range(30):
        streams.step([CONTINUE])
    batch = buffer.sample()
    assert torch.equal(batch.next_obs[:, 0], batch.obs[:, 1])
    assert batch.weight.shape == (4,)


@pytest.mark.parametrize(("num_envs", "n_step"), [(1, 1), (3, 3)])
def test_a_restored_buffer_goes_on_to_the_bit(tmp_path: Path, num_envs: int, n_step: int) -> None:
    buffer = make(num_envs=num_envs, n_step=n_step, capacity=60)
    streams = Streams(buffer, NaiveBuffer(num_envs, 60, n_step))

    def go_on(buffer: ReplayBuffer, count: int) -> list[Any]:
        streams.buffer = buffer
        batches = []
        for step in range(count):
            streams.step(
                [TRUNCATE if (step + env) % 9 == 8 else CONTINUE for env in range(num_envs)]
            )
            if len(buffer):
                buffer.anneal(step / count)
                batches.append(buffer.sample())
                buffer.prioritise(batches[-1].obs[:, 0] % 5)
        return batches

    go_on(buffer, 70)  # the rings wrap round
    state = reload(buffer.save(tmp_path))
    twin = make(num_envs=num_envs, n_step=n_step, capacity=60, seed=9)
    twin.load(state, tmp_path)
    count, running = streams.count, list(streams.naive.is_running)
    batches = go_on(buffer, 30)
    streams.count, streams.naive.is_running = count, running
    for one, other in zip(batches, go_on(twin, 30), strict=True):
        for name in ("obs", "action", "reward", "discount", "next_obs", "weight"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_state_without_priorities_is_refused(tmp_path: Path) -> None:
    uniform = make_buffer()
    fill(uniform, 5)
    with pytest.raises(ValueError, match=r"was saved as .* is now .*'prioritised': True"):
        make().load(uniform.save(tmp_path), tmp_path)


def test_priorities_count_as_memory() -> None:
    assert make(capacity=1000).memory_bytes - make_buffer(capacity=1000).memory_bytes == 1001 * 9
    assert PrioritisedRows.bytes_per_row - RowSet.bytes_per_row == 9


def test_several_ranks_are_refused() -> None:
    make().share(0, 1)
    with pytest.raises(ValueError, match=r"cannot be shared by 2 ranks; set trainer.devices=1, or"):
        make().share(0, 2)


def test_priorities_of_other_samples_than_transitions_are_refused() -> None:
    class Sequences:
        min_steps, max_steps, bytes_per_row = 1, 4, 0

    with pytest.raises(ValueError, match=r"the reader is a Sequences; set dataset.priorities=null"):
        make(reader=lambda n_step, discount: Sequences())  # type: ignore[arg-type, return-value]
