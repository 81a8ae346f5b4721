"""Stacks rebuilt from single frames, against a naive buffer that keeps whole stacks."""

import os
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.batches import Step
from research.datasets.replay.buffer import ReplayBuffer
from research.errors import UserError
from tests.datasets.replay.test_buffer import (
    CONTINUE,
    GOES_ON,
    OVER,
    TERMINATE,
    TRUNCATE,
    NaiveBuffer,
    Streams,
    assert_same,
    make_buffer,
    reload,
)

HEIGHT, WIDTH = 2, 3


def make_stacked(frame_stack: int, *, num_channels: int = 1, **options: Any) -> ReplayBuffer:
    obs_space = spaces.Box(0, 255, (frame_stack * num_channels, HEIGHT, WIDTH), np.uint8)
    return make_buffer(obs_space=obs_space, frame_stack=frame_stack, **options)


class StackedStreams(Streams):
    """Observations are stacks of frames; each frame is one number, and remembered as such."""

    def __init__(self, buffer: ReplayBuffer, naive: NaiveBuffer, *, num_channels: int = 1) -> None:
        super().__init__(buffer, naive)
        self.num_channels = num_channels
        self.stacks = [deque[int](maxlen=naive.frame_stack) for _ in range(self.num_envs)]

    def observe(self, numbers: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        stacks = []
        for env, number in enumerate(numbers.tolist()):
            if first[env]:
                self.stacks[env].extend([number] * self.naive.frame_stack)
            elif self.stacks[env] and not first.any():
                self.stacks[env].append(number)
            stacks.append(tuple(self.stacks[env]))
        filled = np.array([stack or (0,) * self.naive.frame_stack for stack in stacks])
        frames = as_frames(filled, self.num_channels)
        return frames.reshape(self.num_envs, -1, HEIGHT, WIDTH), stacks


class DictStreams(StackedStreams):
    """A Dict of stacks, of the same in one channel, and of a vector before, between and after."""

    def observe(self, numbers: np.ndarray, first: np.ndarray) -> tuple[Any, list[Any]]:
        stacks, remembered = super().observe(numbers, first)
        grey = stacks.reshape(self.num_envs, -1, self.num_channels, HEIGHT, WIDTH)[:, :, 0]
        vector = np.array([[stack[-1] if stack else 0] for stack in remembered], np.float32)
        parts = {"arm": vector, "camera": stacks, "force": -vector, "grey": grey, "time": vector}
        return parts, remembered


def make_dict(frame_stack: int, *, num_channels: int = 1, **options: Any) -> ReplayBuffer:
    vector = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    stacks, grey = (
        spaces.Box(0, 255, (frame_stack * channels, HEIGHT, WIDTH), np.uint8)
        for channels in (num_channels, 1)
    )
    parts = {"arm": vector, "camera": stacks, "force": vector, "grey": grey, "time": vector}
    return make_buffer(obs_space=spaces.Dict(parts), frame_stack=frame_stack, **options)


def as_frames(numbers: np.ndarray, num_channels: int) -> np.ndarray:
    """Frames (..., C, H, W); every pixel depends on the number (...) and on where it is."""
    pixels = np.arange(num_channels * HEIGHT * WIDTH).reshape(num_channels, HEIGHT, WIDTH)
    return ((numbers[..., None, None, None] >> 8 * (pixels % 2)) + pixels).astype(np.uint8)


def as_numbers(stacks: Tensor, num_channels: int) -> list[tuple[int, ...]]:
    """The numbers of the frames in stacks (B, S * C, H, W)."""
    frames = stacks.numpy().reshape(len(stacks), -1, num_channels, HEIGHT, WIDTH)
    low, high = frames[:, :, 0, 0, 0].astype(np.int64), frames[:, :, 0, 0, 1].astype(np.int64)
    numbers = low + 256 * (high - 1)
    assert (frames == as_frames(numbers, num_channels)).all()
    return [tuple(stack) for stack in numbers.tolist()]


def observed(obs: Tensor | dict[str, Tensor], num_channels: int) -> list[tuple[int, ...]]:
    """The numbers of the frames in observations, whose parts must be of the same numbers."""
    if isinstance(obs, Tensor):
        return as_numbers(obs, num_channels)
    assert list(obs) == ["arm", "camera", "force", "grey", "time"]
    numbers = as_numbers(obs["camera"], num_channels)
    newest = [[stack[-1]] for stack in numbers]
    assert obs["arm"].tolist() == (-obs["force"]).tolist() == obs["time"].tolist() == newest
    grey = obs["camera"].unflatten(1, (-1, num_channels))[:, :, 0]
    assert torch.equal(obs["grey"], grey)
    return numbers


def sampled(
    buffer: ReplayBuffer, num_channels: int
) -> set[tuple[tuple[int, ...], int, float, float, tuple[int, ...]]]:
    """The distinct transitions of one batch."""
    batch = buffer.sample()
    obs, next_obs = (observed(part, num_channels) for part in (batch.obs, batch.next_obs))
    numbers = (column.tolist() for column in (batch.action[:, 0], batch.reward, batch.discount))
    return set(zip(obs, *numbers, next_obs, strict=True))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@settings(max_examples=100)
@given(data=st.data())
def test_exactly_the_naive_buffers_transitions_are_sampled(data: st.DataObject) -> None:
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    frame_stack, num_channels = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    ring_rows = n_step + frame_stack + data.draw(st.integers(0, 15))
    capacity = ring_rows * num_envs + data.draw(st.integers(0, num_envs - 1))
    event = st.sampled_from([CONTINUE] * 10 + [TERMINATE, TRUNCATE])
    step = st.lists(event, min_size=num_envs, max_size=num_envs)
    happenings = st.one_of(step, step, step, step, st.sampled_from(["save", "load", "end"]))
    options = {"num_channels": num_channels, "num_envs": num_envs, "capacity": capacity}
    options |= {"n_step": n_step, "batch_size": 1000}
    naive = NaiveBuffer(num_envs, capacity, n_step, frame_stack)
    is_dict = data.draw(st.booleans())
    make, feed = (make_dict, DictStreams) if is_dict else (make_stacked, StackedStreams)
    streams = feed(make(frame_stack, **options), naive, num_channels=num_channels)
    reset_themselves = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder:
        for happening in data.draw(st.lists(happenings, min_size=ring_rows, max_size=60)):
            if happening == "end":
                streams.end()
            elif isinstance(happening, str):
                state = reload(streams.buffer.save(Path(folder)))
                if happening == "load":
                    streams.buffer = make(frame_stack, **options)
                    streams.buffer.load(state, Path(folder))
            else:
                (streams.step_or_start if reset_themselves else streams.step)(happening)
    expected = naive.transitions()
    assert len(streams.buffer) == len(expected)
    if expected:
        assert sampled(streams.buffer, num_channels) == expected


@pytest.mark.parametrize(
    ("n_step", "expected"),
    [
        (1, {((0, 0, 0), (0, 0, 1)), ((0, 0, 1), (0, 1, 2)), ((0, 1, 2), (1, 2, 3))}),
        (2, {((0, 0, 0), (0, 1, 2)), ((0, 0, 1), (1, 2, 3))}),
    ],
)
def test_a_first_frame_stands_for_those_before_it(n_step: int, expected: set[Any]) -> None:
    buffer = make_stacked(3, n_step=n_step, batch_size=300)
    streams = StackedStreams(buffer, NaiveBuffer(1, 100, n_step, 3))
    for _ in range(3):
        streams.step([CONTINUE])
    assert {(obs, next_obs) for obs, _, _, _, next_obs in sampled(buffer, 1)} == expected


def test_a_transition_goes_with_the_oldest_frame_of_its_stack() -> None:
    buffer = make_stacked(3, capacity=6, batch_size=300)
    streams = StackedStreams(buffer, NaiveBuffer(1, 6, 1, 3))
    for event in [CONTINUE, TRUNCATE, CONTINUE, CONTINUE, CONTINUE]:  # frames 0 1 2, 3 4 5 6
        streams.step([event])
    starts = {obs for obs, _, _, _, _ in sampled(buffer, 1)}
    assert starts == {(3, 3, 3), (3, 3, 4), (3, 4, 5)}  # (0, 0, 1) went with frame 0


@pytest.mark.parametrize("n_step", [1, 3])
def test_stacks_come_as_the_environment_gives_them(n_step: int) -> None:
    buffer = make_stacked(4, num_channels=3, n_step=n_step, batch_size=7)
    streams = StackedStreams(buffer, NaiveBuffer(1, 100, n_step, 4), num_channels=3)
    for _ in range(5):
        streams.step([CONTINUE])
    batch = buffer.sample()
    for stacks in (batch.obs, batch.next_obs):
        assert stacks.shape == (7, 12, HEIGHT, WIDTH)
        assert stacks.dtype == torch.uint8


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_batch_does_not_change_when_the_buffer_goes_on(n_step: int) -> None:
    buffer = make_stacked(2, capacity=10, n_step=n_step)
    streams = StackedStreams(buffer, NaiveBuffer(1, 10, n_step, 2))
    for _ in range(10):
        streams.step([CONTINUE])
    batch = buffer.sample()
    copies = [part.clone() for part in batch]  # type: ignore[union-attr]
    for _ in range(20):
        streams.step([CONTINUE])
        buffer.sample()
    assert_same(batch, copies)


@pytest.mark.parametrize("is_dict", [False, True])
def test_saving_writes_every_frame_once(tmp_path: Path, is_dict: bool) -> None:
    make, feed = (make_dict, DictStreams) if is_dict else (make_stacked, StackedStreams)
    buffer = make(4, num_channels=3)
    streams = feed(buffer, NaiveBuffer(1, 100, 1, 4), num_channels=3)
    for step in range(40):
        streams.step([TRUNCATE if step % 10 == 9 else CONTINUE])
        buffer.save(tmp_path)
    row_bytes, header_bytes = (3 + is_dict) * HEIGHT * WIDTH + (3 + 3 * is_dict) * 4, 2 * 8
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written == 44 * row_bytes + 40 * header_bytes


def test_a_state_with_frames_from_behind_a_start_is_refused(tmp_path: Path) -> None:
    buffer = make_stacked(3)
    StackedStreams(buffer, NaiveBuffer(1, 100, 1, 3)).step([CONTINUE])
    state = buffer.save(tmp_path)
    state["rings"]["num_earlier"] -= 1
    with pytest.raises(ValueError, match="no episode has -1 earlier rows"):
        make_stacked(3).load(state, tmp_path)


def test_a_state_of_another_stack_is_refused(tmp_path: Path) -> None:
    state = make_stacked(2, num_channels=3).save(tmp_path)
    with pytest.raises(ValueError, match=r"'frame_stack': 2.*'frame_stack': 4"):
        make_stacked(4, num_channels=3).load(state, tmp_path)


def test_a_million_steps_of_three_colour_frames_take_at_most_22_gb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed: list[int] = []

    def refuse(num_bytes: int, *_: object) -> None:
        needed.append(num_bytes)
        raise MemoryError

    monkeypatch.setattr(f"{ReplayBuffer.__module__}.require_memory", refuse)
    obs_space = spaces.Box(0, 255, (3 * 3, 84, 84), np.uint8)
    with pytest.raises(MemoryError):
        make_buffer(obs_space=obs_space, frame_stack=3, n_step=3, capacity=1_000_000)
    assert 1_000_000 * 3 * 84 * 84 < needed[0] <= 22e9


@pytest.mark.parametrize("n_step", [1, 3])
def test_memory_is_what_was_forecast(n_step: int) -> None:
    buffer = make_stacked(4, n_step=n_step, num_envs=2)
    tensors = [*buffer._storage.groups.values(), buffer._rings.starts._members]
    tensors += [buffer._rings._num_steps, buffer._rings._num_earlier]
    returns = buffer._reader.returns  # type: ignore[attr-defined]
    tensors += [returns.values] if returns else []
    places = buffer._rings.starts._places
    assert buffer.memory_bytes == sum(tensor.nbytes for tensor in tensors) + places.nbytes


@pytest.mark.parametrize("is_dict", [False, True])
def test_a_first_stack_of_different_frames_is_refused(is_dict: bool) -> None:
    make, feed = (make_dict, DictStreams) if is_dict else (make_stacked, StackedStreams)
    buffer = make(3, num_envs=2)
    obs, _ = feed(buffer, NaiveBuffer(2, 100, 1, 3)).observe(np.arange(2), np.array([True, True]))
    (obs["grey"] if isinstance(obs, dict) else obs)[1, 0, 1, 2] += 1
    buffer.start_episodes(obs, np.array([True, False]))
    with pytest.raises(ValueError, match="must begin with a stack of equal frames"):
        buffer.start_episodes(obs, np.array([False, True]))


def test_an_observation_of_another_size_is_not_taken_for_a_stack() -> None:
    buffer = make_stacked(3)
    buffer.start_episodes(np.zeros((1, 3, HEIGHT, WIDTH), np.uint8), OVER)
    frame = np.zeros((1, 1, HEIGHT, WIDTH), np.uint8)
    with pytest.raises(UserError, match=r"stacked frames of shape \(1, .* says \(3, "):
        buffer.add(Step(np.zeros((1, 1)), np.zeros(1), GOES_ON, GOES_ON, frame))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (4, 2, 2), np.uint8),
        spaces.Box(0, 255, (3, 2), np.uint8),
        spaces.Box(0, 1, (3, 2, 2), np.float32),
        spaces.Dict({"pixels": spaces.Box(0, 255, (3, 2), np.uint8)}),
        spaces.Dict({"pixels": spaces.Box(0, 255, (4, 2, 2), np.uint8)}),
    ],
    ids=["channels", "shape", "type", "dict", "channels in a dict"],
)
def test_a_space_without_stacks_is_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"^3 stacked frames must be a Box of uint8 \(3 \* C"):
        make_buffer(obs_space=space, frame_stack=3)


@pytest.mark.parametrize(
    ("frame_stack", "capacity", "message"),
    [
        (0, 100, "frame_stack must be at least 1, got 0"),
        (4, 13, "capacity must be at least 14, 7 rows for each environment"),
    ],
)
def test_numbers_that_cannot_be_are_refused(frame_stack: int, capacity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_stacked(frame_stack, num_envs=2, n_step=3, capacity=capacity)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_gpu_holds_and_samples_the_same_as_the_host(tmp_path: Path, n_step: int) -> None:
    host, gpu = (make_stacked(3, n_step=n_step, device=device) for device in ("cpu", "cuda"))
    for buffer in (host, gpu):
        streams = StackedStreams(buffer, NaiveBuffer(1, 100, n_step, 3))
        for step in range(150):
            streams.step([TRUNCATE if step % 10 == 9 else CONTINUE])
    gpu.load(reload(gpu.save(tmp_path)), tmp_path)
    batch = gpu.sample()
    assert {part.device.type for part in batch} == {"cuda"}  # type: ignore[union-attr]
    assert_same(host.sample(), type(batch)(*(part.cpu() for part in batch)))  # type: ignore
