"""A reader of another kind: a batch of sequences, written against the protocol alone."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.batches import PackedBatch, Step
from research.datasets.replay.buffer import ReplayBuffer
from research.datasets.replay.reader import EpisodeRows
from research.datasets.replay.storage import Window
from research.errors import UserError
from tests.datasets.replay.test_buffer import (
    CONTINUE,
    PAUSE,
    TERMINATE,
    TRUNCATE,
    NaiveBuffer,
    Row,
    Spaces,
    Streams,
    reload,
)


class SequenceBatch(NamedTuple):
    """L steps of an episode in order, B times.

    Attributes:
        obs: (B, L + 1, O).
        action: (B, L, A).
        reward: (B, L).
        discount: (B, L).

    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor


class Sequences:
    """A ``Reader`` of sequences of L steps; an episode of fewer has none."""

    bytes_per_row = 0

    def __init__(self, n_step: int, discount: float, *, length: int) -> None:
        self.discount = discount
        self.min_steps = self.max_steps = length

    def open(self, rows: EpisodeRows) -> None:
        steps = range(1, self.max_steps + 1)
        names = ("obs", "action", "reward", "continues")
        wanted = [("obs", 0), *((name, step) for name in names for step in steps)]
        self.window = Window(rows.storage, wanted)

    def follow(self, step: Step | None) -> None:
        """Nothing is computed ahead."""

    def restore(self) -> None:
        """Nor is anything restored."""

    def read(self, starts: Tensor, *, pinned: bool) -> PackedBatch[SequenceBatch]:
        return PackedBatch(self.window.gather(starts), self.unpack)

    def unpack(self, memory: Sequence[Tensor]) -> SequenceBatch:
        obs, *parts = self.window.cut(memory)
        count = self.max_steps
        next_obs, action, reward, continues = (
            torch.stack(parts[first : first + count], 1) for first in range(0, 4 * count, count)
        )
        obs = torch.cat([obs[:, None], next_obs], 1)
        return SequenceBatch(obs, action, reward, self.discount * continues)


def make_buffer(*, num_envs: int, capacity: int, length: int) -> ReplayBuffer:
    box = spaces.Box(-1, 1, (2,), np.float64)
    return ReplayBuffer(
        Spaces(box, spaces.Box(-1, 1, (1,), np.float32), num_envs, {}),
        0,
        capacity=capacity,
        batch_size=1000,
        discount=0.5,
        n_step=1,
        storage="ram",
        device="cpu",
        reader=partial(Sequences, length=length),
    )


def naive_sequences(naive: NaiveBuffer, length: int) -> set[tuple[Row, ...]]:
    """The L + 1 rows of all sequences whose rows are still there; no action led to the first."""
    found = set()
    for episodes in naive.episodes:
        rows_behind = sum(map(len, episodes))
        for episode in episodes:
            for start in range(len(episode)):
                path = episode[start : start + length + 1]
                if len(path) == length + 1 and rows_behind <= naive.ring_rows:
                    found.add((Row(path[0].obs, 0, 0, False), *path[1:]))
                rows_behind -= 1
    return found


def sampled(buffer: ReplayBuffer) -> set[tuple[Row, ...]]:
    """The distinct sequences of one batch, as rows."""
    batch = buffer.sample()
    assert torch.equal(batch.obs[..., 0], -batch.obs[..., 1])
    ends = batch.discount == 0
    columns = (batch.obs[:, 1:, 0], batch.action[..., 0], batch.reward, ends)
    steps = zip(*(column.tolist() for column in columns), strict=True)
    first = [Row(number, 0, 0, False) for number in batch.obs[:, 0, 0].tolist()]
    return {
        (row, *(Row(*each) for each in zip(*sequence, strict=True)))
        for row, sequence in zip(first, steps, strict=True)
    }


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_exactly_the_sequences_inside_episodes_are_sampled(data: st.DataObject) -> None:
    sizes = {"num_envs": data.draw(st.integers(1, 3)), "length": data.draw(st.integers(1, 4))}
    sizes["capacity"] = data.draw(st.integers((sizes["length"] + 1) * sizes["num_envs"], 40))
    event = st.sampled_from([CONTINUE] * 6 + [TERMINATE, TRUNCATE, PAUSE])
    step = st.lists(event, min_size=sizes["num_envs"], max_size=sizes["num_envs"])
    naive = NaiveBuffer(sizes["num_envs"], sizes["capacity"], 1)
    streams = Streams(make_buffer(**sizes), naive)
    happenings = st.one_of(step, step, step, st.sampled_from(["end", "reload"]))
    with tempfile.TemporaryDirectory() as folder:
        for happening in data.draw(st.lists(happenings, max_size=50)):
            if happening == "end":
                streams.end()
            elif isinstance(happening, str):
                state = reload(streams.buffer.save(Path(folder)))
                streams.buffer = make_buffer(**sizes)
                streams.buffer.load(state, Path(folder))
            else:
                streams.step_or_start(happening)
    expected = naive_sequences(naive, sizes["length"])
    assert len(streams.buffer) == len(expected)
    if expected:
        assert sampled(streams.buffer) == expected


def test_a_state_of_another_kind_of_sample_is_refused(tmp_path: Path) -> None:
    state = make_buffer(num_envs=1, capacity=20, length=2).save(tmp_path)
    with pytest.raises(ValueError, match=r"'min_steps': 2.*'min_steps': 3"):
        make_buffer(num_envs=1, capacity=20, length=3).load(state, tmp_path)


def test_a_buffer_without_a_whole_sequence_says_so() -> None:
    streams = Streams(make_buffer(num_envs=1, capacity=20, length=3), NaiveBuffer(1, 20, 1))
    streams.step([CONTINUE])
    streams.step([TERMINATE])
    with pytest.raises(UserError, match=r"^nothing to sample: .* 3 steps"):
        streams.buffer.sample()
