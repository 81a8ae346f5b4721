"""The replay buffer against a naive one, and its randomness, state and errors."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research.batches import ExtendedTransition, Step, map_tensors, to_device
from research.datasets.replay.buffer import ReplayBuffer
from research.errors import UserError
from research.machine import memory

GAMMA = 0.5  # its powers, and sums of small integers times them, are exact in float32
CONTINUE, TERMINATE, TRUNCATE, PAUSE = range(4)
GOES_ON = np.zeros(1, np.bool_)
OVER = np.ones(1, np.bool_)


class Spaces(NamedTuple):
    """Stands for a vector environment."""

    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]
    num_envs: int
    metadata: dict[str, Any]


def make_buffer(
    *,
    num_envs: int = 1,
    capacity: int = 100,
    n_step: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    storage: Any = "ram",
    device: str = "cpu",
    obs_space: gymnasium.Space[Any] = spaces.Box(-1, 1, (2,), np.float64),  # noqa: B008
    action_space: gymnasium.Space[Any] = spaces.Box(-1, 1, (1,), np.float32),  # noqa: B008
    frame_stack: int | None = None,
) -> ReplayBuffer:
    metadata = {} if frame_stack is None else {"frame_stack": frame_stack}
    return ReplayBuffer(
        Spaces(obs_space, action_space, num_envs, metadata),
        seed,
        capacity=capacity,
        batch_size=batch_size,
        discount=GAMMA,
        n_step=n_step,
        storage=storage,
        device=device,
    )


class Row(NamedTuple):
    """What the naive buffer remembers of one observation."""

    obs: Any
    action: int
    reward: int
    terminated: bool


class NaiveBuffer:
    """Lists of the episodes of every environment; transitions by plain loops."""

    def __init__(self, num_envs: int, capacity: int, n_step: int, frame_stack: int = 1) -> None:
        self.ring_rows = capacity // num_envs
        self.n_step = n_step
        self.frame_stack = frame_stack
        self.episodes: list[list[list[Row]]] = [[] for _ in range(num_envs)]
        self.is_running = [False] * num_envs

    def transitions(self) -> set[tuple[Any, int, float, float, Any]]:
        """Every (obs, action, reward, discount, next_obs) that may be sampled."""
        found = set()
        for episodes, running in zip(self.episodes, self.is_running, strict=True):
            rows_behind = sum(map(len, episodes))
            for episode in episodes:
                open_end = running and episode is episodes[-1]
                for start in range(len(episode)):
                    if rows_behind + min(start, self.frame_stack - 1) <= self.ring_rows:
                        found |= self.transition(episode, start, open_end)
                    rows_behind -= 1
        return found

    def transition(
        self, episode: list[Row], start: int, open_end: bool
    ) -> set[tuple[Any, int, float, float, Any]]:
        """The one that starts there, if there is one."""
        path = episode[start + 1 : start + 1 + self.n_step]
        if not path or (open_end and len(path) < self.n_step):
            return set()
        reward = sum(GAMMA**j * row.reward for j, row in enumerate(path))
        discount = 0.0 if path[-1].terminated else GAMMA ** len(path)
        return {(episode[start].obs, path[0].action, reward, discount, path[-1].obs)}


class Streams:
    """Feeds a buffer and a naive one; every observation and the action to it are one number."""

    def __init__(self, buffer: ReplayBuffer, naive: NaiveBuffer) -> None:
        self.buffer = buffer
        self.naive = naive
        self.num_envs = len(naive.episodes)
        self.count = 0

    def numbers(self) -> np.ndarray:
        """A new number for every environment."""
        self.count += self.num_envs
        return np.arange(self.count - self.num_envs, self.count)

    def observe(self, numbers: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        """What the buffer gets for them, and what the naive one remembers."""
        return as_obs(numbers), numbers.tolist()

    def start(self) -> None:
        mask = ~np.array(self.naive.is_running)
        obs, remembered = self.observe(self.numbers(), mask)
        self.buffer.start_episodes(obs, mask, *self.infos(obs))
        for env in np.flatnonzero(mask):
            self.naive.episodes[env].append([Row(remembered[env], 0, 0, False)])
            self.naive.is_running[env] = True

    def step(self, events: list[int]) -> None:
        if not all(self.naive.is_running):
            self.start()
        self.go_on(events)

    def step_or_start(self, events: list[int]) -> None:
        """Environments without an episode begin one, while the others take a step, or pause."""
        active = self.naive.is_running & (np.array(events) != PAUSE)
        self.go_on(events, active)
        if not all(self.naive.is_running):
            self.start()

    def go_on(self, events: list[int], active: np.ndarray | None = None) -> None:
        numbers = self.numbers()
        rewards = numbers % 7 - 3
        ends = np.array(events)
        terminated, truncated = ends == TERMINATE, ends == TRUNCATE
        terminated |= ends == PAUSE  # what a paused one brings is ignored
        action = numbers[:, None].astype(np.float32)
        obs, remembered = self.observe(numbers, np.zeros(self.num_envs, np.bool_))
        step = Step(action, rewards, terminated, truncated, obs, active=active)
        self.buffer.add(self.extended(step))
        for env in range(self.num_envs) if active is None else np.flatnonzero(active):
            row = (remembered[env], int(numbers[env]), int(rewards[env]), bool(terminated[env]))
            self.naive.episodes[env][-1].append(Row(*row))
            self.naive.is_running[env] = events[env] not in (TERMINATE, TRUNCATE)

    def infos(self, obs: Any) -> list[dict[str, np.ndarray]]:
        """What ``start_episodes`` gets besides."""
        return []

    def extended(self, step: Step) -> Step:
        """The step with what else is stored."""
        return step

    def end(self) -> None:
        self.buffer.end_open_episodes(np.ones(self.num_envs, np.bool_))
        self.naive.is_running = [False] * self.num_envs


class ExtendedStreams(Streams):
    """The action, and the infos of an observation, are stored a second time."""

    def infos(self, obs: Any) -> list[dict[str, np.ndarray]]:
        return [{"twice": 2 * obs}]

    def extended(self, step: Step) -> Step:
        extras = {"half": step.action[:, 0] / 2, "square": step.action[:, :, None] ** 2}
        return step._replace(extras=extras, next_info={"twice": 2 * step.next_obs})  # type: ignore


def as_obs(numbers: np.ndarray) -> np.ndarray:
    """Observations (E, 2) that stand for numbers (E,)."""
    return np.stack([numbers, -numbers], axis=1).astype(np.float64)


def sampled(buffer: ReplayBuffer) -> set[tuple[int, int, float, float, int]]:
    """The distinct transitions of one batch."""
    batch = buffer.sample()
    assert isinstance(batch.obs, torch.Tensor)
    assert isinstance(batch.next_obs, torch.Tensor)
    assert torch.equal(batch.obs[:, 0], -batch.obs[:, 1])
    assert torch.equal(batch.next_obs[:, 0], -batch.next_obs[:, 1])
    columns = (
        batch.obs[:, 0], batch.action[:, 0], batch.reward, batch.discount, batch.next_obs[:, 0]
    )  # fmt: skip
    return set(zip(*(column.tolist() for column in columns), strict=True))


def fill(buffer: ReplayBuffer, num_steps: int, episode_steps: int = 10, num_envs: int = 1) -> None:
    """Episodes of one length, truncated, whose observations are random."""
    rng = np.random.default_rng(0)
    everywhere = np.ones(num_envs, np.bool_)
    for step in range(num_steps):
        if step % episode_steps == 0:
            buffer.start_episodes(rng.random((num_envs, 2)), everywhere)
        ended = np.full(num_envs, (step + 1) % episode_steps == 0)
        action = rng.random((num_envs, 1))
        buffer.add(
            Step(action, rng.random(num_envs), ended & False, ended, rng.random((num_envs, 2)))
        )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_exactly_the_naive_buffers_transitions_are_sampled(data: st.DataObject) -> None:
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    capacity = data.draw(st.integers((n_step + 1) * num_envs, 40))
    event = st.sampled_from([CONTINUE] * 4 + [TERMINATE, TRUNCATE])
    events = data.draw(st.lists(st.lists(event, min_size=num_envs, max_size=num_envs), max_size=50))
    buffer = make_buffer(num_envs=num_envs, capacity=capacity, n_step=n_step, batch_size=2000)
    naive = NaiveBuffer(num_envs, capacity, n_step)
    streams = Streams(buffer, naive)
    end_after = data.draw(st.integers(0, 50))
    for step, step_events in enumerate(events):
        streams.step(step_events)
        if step == end_after:
            streams.end()
    expected = naive.transitions()
    assert len(buffer) == len(expected)
    if expected:
        assert sampled(buffer) == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_environments_that_reset_themselves_leave_exactly_the_naive_buffers_transitions(
    data: st.DataObject,
) -> None:
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    capacity = data.draw(st.integers((n_step + 1) * num_envs, 40))
    event = st.sampled_from([CONTINUE] * 4 + [TERMINATE, TRUNCATE, PAUSE])
    events = data.draw(st.lists(st.lists(event, min_size=num_envs, max_size=num_envs), max_size=50))
    buffer = make_buffer(num_envs=num_envs, capacity=capacity, n_step=n_step, batch_size=2000)
    naive = NaiveBuffer(num_envs, capacity, n_step)
    streams = Streams(buffer, naive)
    for step_events in events:
        streams.step_or_start(step_events)
    expected = naive.transitions()
    assert len(buffer) == len(expected)
    if expected:
        assert sampled(buffer) == expected


HELD: dict[str, tuple[int, ...]] = {"half": (), "square": (1, 1)}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_held_values_come_with_the_rows_that_they_were_stored_with(data: st.DataObject) -> None:
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    capacity = data.draw(st.integers((n_step + 1) * num_envs, 40))
    options: dict[str, Any] = {"num_envs": num_envs, "capacity": capacity, "n_step": n_step}
    event = st.sampled_from([CONTINUE] * 4 + [TERMINATE, TRUNCATE, PAUSE])
    events = data.draw(st.lists(st.lists(event, min_size=num_envs, max_size=num_envs), max_size=50))
    buffers = [make_buffer(**options, batch_size=500) for _ in range(2)]
    for buffer in buffers:
        buffer.hold(HELD, {"twice": (2,)})
    naive = NaiveBuffer(num_envs, capacity, n_step)
    streams = ExtendedStreams(buffers[0], naive)
    for step_events in events:
        streams.step_or_start(step_events)
    with tempfile.TemporaryDirectory() as folder:
        buffers[1].load(reload(buffers[0].save(Path(folder))), Path(folder))
    assert len(buffers[0]) == len(buffers[1]) == len(naive.transitions())
    for buffer in buffers[: 2 * len(buffers[0])]:
        batch = buffer.sample()
        assert isinstance(batch, ExtendedTransition)
        assert torch.equal(batch.info["twice"], 2 * batch.obs)
        assert torch.equal(batch.next_info["twice"], 2 * batch.next_obs)
        assert torch.equal(batch.extras["half"], batch.action[:, 0] / 2)
        assert torch.equal(batch.extras["square"], batch.action[:, :, None] ** 2)
    if naive.transitions():
        assert sampled(buffers[0]) == naive.transitions()
        assert sampled(buffers[1]) == naive.transitions()


def test_held_values_do_not_change_which_transitions_are_drawn() -> None:
    plain, held = make_buffer(), make_buffer()
    held.hold(HELD, {"twice": (2,)})
    for streams in (
        Streams(plain, NaiveBuffer(1, 100, 1)),
        ExtendedStreams(held, NaiveBuffer(1, 100, 1)),
    ):
        for step in range(30):
            streams.step([TRUNCATE if step % 10 == 9 else CONTINUE])
    assert_same(plain.sample(), held.sample()[:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extras": {}}, "the extras of a step must be half, square, .*; got none"),
        (
            {"next_info": {"twicee": np.zeros((1, 2))}},
            "info of a step must be twice, .*; got twicee",
        ),
        ({"next_info": {"twice": np.zeros((1, 3))}}, r"info.twice must have shape \(1, 2\), .*3\)"),
    ],
)
def test_a_step_without_what_was_declared_is_refused(change: dict[str, Any], message: str) -> None:
    buffer = make_buffer()
    buffer.hold(HELD, {"twice": (2,)})
    streams = ExtendedStreams(buffer, NaiveBuffer(1, 100, 1))
    streams.start()
    obs = np.zeros((1, 2))
    step = streams.extended(Step(np.zeros((1, 1)), np.zeros(1), GOES_ON, GOES_ON, obs))
    with pytest.raises(UserError, match=message):
        buffer.add(step._replace(**change))
    buffer.add(step)


def test_values_that_were_not_declared_are_refused() -> None:
    buffer = make_buffer()
    with pytest.raises(UserError, match=r"^the info of a step must be none, .*; got speed$"):
        buffer.start_episodes(np.zeros((1, 2)), OVER, {"speed": np.zeros(1)})


def test_values_are_declared_before_the_first_step() -> None:
    buffer = make_buffer()
    fill(buffer, 3)
    with pytest.raises(ValueError, match="hold must be called before the first step"):
        buffer.hold(HELD, {})
    assert len(buffer) == 3


def test_a_state_with_other_values_is_refused(tmp_path: Path) -> None:
    buffer = make_buffer()
    buffer.hold({"half": ()}, {})
    with pytest.raises(ValueError, match=r"'extras': {'half': \[\]}.* is now"):
        make_buffer().load(buffer.save(tmp_path), tmp_path)


def test_held_values_count_as_memory() -> None:
    buffer = make_buffer(capacity=1000)
    before = buffer.memory_bytes
    buffer.hold({"square": (2, 3)}, {"twice": ()})
    assert buffer.memory_bytes - before == 1001 * 7 * 4


@pytest.mark.parametrize("n_step", [1, 3])
def test_all_transitions_are_equally_likely(n_step: int) -> None:
    buffer = make_buffer(num_envs=2, capacity=120, n_step=n_step, batch_size=1000)
    naive = NaiveBuffer(2, 120, n_step)
    streams = Streams(buffer, naive)
    for step in range(150):  # short and long episodes; the second environment has never ended one
        streams.step([TRUNCATE if step % 20 in (0, 1, 2, 5) else CONTINUE, CONTINUE])
    expected = naive.transitions()
    starts = torch.cat([buffer.sample().obs[:, 0] for _ in range(200)])  # type: ignore
    counts = starts.unique(return_counts=True)[1].double()
    assert len(counts) == len(expected)
    mean = len(starts) / len(expected)
    chi_square = ((counts - mean) ** 2 / mean).sum().item()
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_wrapped_ring_does_not_join_its_newest_row_to_its_oldest() -> None:
    buffer = make_buffer(capacity=5, batch_size=500)
    streams = Streams(buffer, NaiveBuffer(1, 5, 1))
    for _ in range(7):
        streams.step([CONTINUE])
    assert {(obs, next_obs) for obs, _, _, _, next_obs in sampled(buffer)} == {
        (3, 4), (4, 5), (5, 6), (6, 7)
    }  # fmt: skip


def test_a_reward_behind_the_end_of_an_episode_is_never_summed() -> None:
    buffer = make_buffer(capacity=50, n_step=3, batch_size=500)
    obs, action = np.zeros((1, 2)), np.zeros((1, 1))
    buffer.start_episodes(obs, OVER)
    buffer.add(Step(action, np.array([1.0]), GOES_ON, OVER, obs))
    buffer.start_episodes(obs, OVER)
    buffer.add(Step(action, np.array([np.nan]), GOES_ON, GOES_ON, obs))
    assert (buffer.sample().reward == 1.0).all()


def test_a_batch_does_not_change_when_the_buffer_goes_on() -> None:
    buffer = make_buffer(capacity=20)
    fill(buffer, 20)
    batch = buffer.sample()
    copies = [part.clone() for part in batch]  # type: ignore[union-attr]
    buffer.sample()
    fill(buffer, 40)
    assert all(torch.equal(part, copy) for part, copy in zip(batch, copies, strict=True))  # type: ignore


def test_the_length_counts_transitions_and_not_rows() -> None:
    buffer = make_buffer(n_step=3)
    fill(buffer, 12, episode_steps=10)  # ten from an ended episode, none yet from the running one
    assert len(buffer) == 10


def test_capacity_is_shared_by_the_environments() -> None:
    buffer = make_buffer(num_envs=3, capacity=32)
    fill(buffer, 50, episode_steps=100, num_envs=3)
    assert len(buffer) == 3 * (32 // 3 - 1)


def test_dict_observations_keep_their_keys_shapes_and_types() -> None:
    obs_space = spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, (3, 4, 4), np.uint8),
            "state": spaces.Box(-1, 1, (2,), np.float64),
        }
    )
    buffer = make_buffer(obs_space=obs_space, action_space=spaces.Discrete(9), batch_size=50)

    def obs(number: int) -> dict[str, np.ndarray]:
        pixels = np.full((1, 3, 4, 4), number, np.uint8)
        return {"pixels": pixels, "state": np.full((1, 2), number / 4)}

    buffer.start_episodes(obs(250), OVER)
    for number in (251, 252):
        buffer.add(Step(np.array([number - 245]), np.ones(1), GOES_ON, GOES_ON, obs(number)))
    batch = buffer.sample()
    assert isinstance(batch.obs, dict)
    assert isinstance(batch.next_obs, dict)
    assert list(batch.obs) == ["pixels", "state"]
    assert batch.obs["pixels"].shape == (50, 3, 4, 4)
    assert batch.obs["pixels"].dtype == torch.uint8
    assert batch.obs["state"].dtype == torch.float32
    assert batch.action.shape == (50,)
    assert batch.action.dtype == torch.int64
    before, after = batch.obs["pixels"][:, 0, 0, 0], batch.next_obs["pixels"][:, 2, 3, 3]
    assert set(before.tolist()) == {250, 251}
    assert torch.equal(before + 1, after)
    assert torch.equal(batch.next_obs["state"][:, 1], after / 4)
    assert torch.equal(batch.action, after.long() - 245)


def test_shapes_are_as_promised() -> None:
    for n_step in (1, 2):
        buffer = make_buffer(n_step=n_step)
        fill(buffer, 20)
        batch = buffer.sample()
        shapes = [tuple(part.shape) for part in batch]  # type: ignore[union-attr]
        assert shapes == [(64, 2), (64, 1), (64,), (64,), (64, 2)]
        assert {part.dtype for part in batch} == {torch.float32}  # type: ignore[union-attr]


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_loaded_state_samples_on_as_the_saved_buffer(tmp_path: Path, n_step: int) -> None:
    saved = make_buffer(num_envs=2, capacity=60, n_step=n_step)
    fill(saved, 47, num_envs=2)
    saved.sample()
    loaded = make_buffer(num_envs=2, capacity=60, n_step=n_step, seed=5)
    fill(loaded, 13, num_envs=2)
    loaded.load(reload(saved.save(tmp_path)), tmp_path)
    rng = np.random.default_rng(1)
    for _ in range(30):
        assert_same(saved.sample(), loaded.sample())
        obs, nowhere = rng.random((2, 2)), np.zeros(2, np.bool_)
        for buffer in (saved, loaded):
            buffer.add(Step(obs[:, :1], obs[0], nowhere, nowhere, obs))
    assert len(saved) == len(loaded)


def test_saving_writes_only_what_is_new(tmp_path: Path) -> None:
    buffer = make_buffer(capacity=100_000)
    sizes = []
    for steps in (1000, 10, 0):
        fill(buffer, steps)
        file = io.BytesIO()
        torch.save({**buffer.save(tmp_path), "rings": None}, file)
        assert file.tell() < 20_000
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    row_bytes, header_bytes = 5 * 4, 2 * 8
    assert sizes[0] == 1100 * row_bytes + header_bytes  # a hundred episodes of eleven rows
    assert sizes[1] - sizes[0] == 11 * row_bytes + header_bytes
    assert sizes[2] == sizes[1]


def test_a_state_of_another_size_is_refused(tmp_path: Path) -> None:
    state = make_buffer(capacity=100).save(tmp_path)
    with pytest.raises(ValueError, match=r"'rows_per_env': 100.*'rows_per_env': 50"):
        make_buffer(capacity=50).load(state, tmp_path)


def test_running_episodes_can_be_truncated_after_loading(tmp_path: Path) -> None:
    buffer = make_buffer(n_step=3, batch_size=500)
    streams = Streams(buffer, NaiveBuffer(1, 100, 3))
    for _ in range(2):
        streams.step([CONTINUE])
    loaded = make_buffer(n_step=3, batch_size=500)
    loaded.load(reload(buffer.save(tmp_path)), tmp_path)
    assert len(loaded) == 0
    loaded.end_open_episodes(np.array([True]))
    # Rewards are -2 and -1: see Streams.step.
    assert sampled(loaded) == {(0, 1, -2 - 0.5, 0.25, 2), (1, 2, -1, 0.5, 2)}
    streams.buffer = loaded
    with pytest.raises(ValueError, match=r"environments \[0\] must start"):
        streams.step([CONTINUE])


def test_an_episode_that_had_ended_when_saved_cannot_go_on_after_loading(tmp_path: Path) -> None:
    saved, loaded = make_buffer(), make_buffer()
    fill(saved, 10, episode_steps=10)
    fill(loaded, 5)
    loaded.load(reload(saved.save(tmp_path)), tmp_path)
    with pytest.raises(ValueError, match=r"environments \[0\] must start"):
        loaded.add(Step(np.zeros((1, 1)), np.zeros(1), GOES_ON, GOES_ON, np.zeros((1, 2))))


def test_sampling_neither_uses_nor_changes_the_global_generator() -> None:
    first, second = make_buffer(), make_buffer()
    for buffer in (first, second):
        fill(buffer, 30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    batches = [first.sample() for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for batch in batches:
        assert_same(batch, second.sample())


def test_different_seeds_give_different_batches() -> None:
    first, second = make_buffer(seed=0), make_buffer(seed=1)
    for buffer in (first, second):
        fill(buffer, 90)
    assert not torch.equal(first.sample().reward, second.sample().reward)


def test_an_empty_buffer_says_so_in_one_line() -> None:
    buffer = make_buffer(n_step=3)
    fill(buffer, 2)
    with pytest.raises(UserError, match=r"^nothing to sample: .* of 3 steps; [^\n]*$"):
        buffer.sample()


def test_an_episode_that_runs_cannot_be_started_again() -> None:
    buffer = make_buffer()
    fill(buffer, 5)
    with pytest.raises(ValueError, match=r"environments \[0\] are still running"):
        buffer.start_episodes(np.zeros((1, 2)), OVER)


def test_an_ended_episode_cannot_go_on() -> None:
    buffer = make_buffer(num_envs=2)
    mask = np.array([False, True])
    buffer.start_episodes(np.zeros((2, 2)), ~mask)
    with pytest.raises(ValueError, match=r"environments \[1\] must start an episode"):
        buffer.add(Step(np.zeros((2, 1)), np.zeros(2), ~mask, ~mask, np.zeros((2, 2))))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_batches_on_disk_and_prepared_ones_are_the_same(data: st.DataObject) -> None:
    num_envs, n_step = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    options: dict[str, Any] = {"num_envs": num_envs, "capacity": 40, "n_step": n_step}
    plain, other = make_buffer(**options), make_buffer(**options, storage="disk")
    fed = [Streams(buffer, NaiveBuffer(num_envs, 40, n_step)) for buffer in (plain, other)]
    event = st.sampled_from([CONTINUE] * 4 + [TERMINATE, TRUNCATE])
    step = st.lists(event, min_size=num_envs, max_size=num_envs)
    calls = st.sampled_from(["prepare", "sample", "sample", "end", "reload"])
    with tempfile.TemporaryDirectory() as folder:
        for happening in data.draw(st.lists(st.one_of(step, calls), min_size=30, max_size=60)):
            if isinstance(happening, list):
                for streams in fed:
                    streams.step(happening)
            elif happening == "end":
                for streams in fed:
                    streams.end()
            elif happening == "reload":
                state = reload(other.save(Path(folder)))
                other = fed[1].buffer = make_buffer(**options, storage="disk", seed=1)
                other.load(state, Path(folder))
            elif len(plain):
                other.prepare(pinned=False)
                if happening == "sample":
                    assert_same(plain.sample(), other.sample())


def test_a_batch_is_prepared_once() -> None:
    buffer, other = make_buffer(), make_buffer()
    for each in (buffer, other):
        fill(each, 30)
    buffer.prepare(pinned=False)
    buffer.prepare(pinned=False)
    for _ in range(2):
        assert_same(buffer.sample(), other.sample())


def test_rows_on_disk_count_as_no_memory_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_ram, on_disk = (make_buffer(capacity=10**6, storage=name) for name in ("ram", "disk"))
    fill(on_disk, 1)
    assert in_ram.memory_bytes - on_disk.memory_bytes == (10**6 + 1) * 5 * 4
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "storage", "kind"),
    [(2 * 101 * 20, "ram", "cuda"), (2 * 101 * 20 - 1, "ram", "cpu"), (10**9, "disk", "cpu")],
)
def test_rows_are_on_a_gpu_that_has_room_to_spare(
    monkeypatch: pytest.MonkeyPatch, free: int, storage: str, kind: str
) -> None:
    """A row has an observation of two numbers, an action, a reward and an end, 4 bytes each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**9))
    buffer = make_buffer(capacity=100, storage=storage, device="auto")
    assert buffer.device.type == kind
    assert (buffer.memory_bytes >= 101 * 20) == (kind == "cpu" and storage == "ram")


def test_rows_that_grow_beyond_the_room_are_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 101 * 20, 10**9))
    buffer = make_buffer(capacity=100, device="auto")
    buffer.hold({"value": ()}, {})
    assert buffer.device.type == "cpu"


def test_what_a_gpu_holds_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", None)  # which refuses a GPU's
    monkeypatch.setattr("research.datasets.replay.transitions.send", lambda rows, _: rows)
    buffer, other = make_buffer(), make_buffer()
    for each in (buffer, other):
        fill(each, 50)
    buffer._reader.on_host = False  # type: ignore[attr-defined]
    buffer.prepare(pinned=True)
    assert_same(buffer.sample(), other.sample())


def test_rows_are_on_the_host_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_buffer(device="auto").device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_prepared_batch_is_pinned_and_the_same_on_a_gpu(n_step: int, device: str) -> None:
    buffer, other = make_buffer(n_step=n_step, device=device), make_buffer(n_step=n_step)
    for each in (buffer, other):
        fill(each, 50)
    buffer.prepare(pinned=True)
    batch = buffer.sample_packed()
    assert all(tensor.is_pinned() or tensor.is_cuda for tensor in batch.memory)
    moved = to_device(batch, torch.device("cuda:0"))
    assert {part.device.type for part in moved} == {"cuda"}
    assert_same(other.sample(), map_tensors(Tensor.cpu, moved))


@pytest.mark.parametrize(("n_step", "num_copies"), [(1, 1), (3, 3)])
def test_a_packed_batch_has_few_parts_and_unpacks_to_the_same(n_step: int, num_copies: int) -> None:
    buffer, other = make_buffer(n_step=n_step), make_buffer(n_step=n_step)
    for each in (buffer, other):
        fill(each, 50)
    batch = buffer.sample_packed()
    assert len(batch.memory) == num_copies
    expected = other.sample()
    for _ in range(2):  # to unpack changes nothing
        assert_same(expected, batch.unpack([tensor.clone() for tensor in batch.memory]))
    assert_same(expected, to_device(batch, torch.device("cpu")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_buffer(capacity=7, num_envs=2, n_step=3), "capacity must be at least 8"),
        (lambda: make_buffer(capacity=2**30), "below 1073741824, got 1073741824"),
        (lambda: make_buffer(device="tpu"), "device=tpu is no device; allowed: auto, cpu"),
        (lambda: make_buffer(device="cuda:99"), "device=cuda:99, but .* try device=cpu"),
        (lambda: make_buffer(obs_space=spaces.Text(3)), "the observations must be arrays"),
    ],
)
def test_what_a_user_got_wrong_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    monkeypatch.setattr(f"{ReplayBuffer.__module__}.RowStorage", None)
    monkeypatch.setattr(f"{ReplayBuffer.__module__}.EpisodeRings", None)
    # 1e8 rows of five float32 and two int32, and one that is repeated.
    message = "a replay buffer of 100,000,000 rows needs 2.8 GB .* 1 GB .*; lower dataset.capacity"
    with pytest.raises(ValueError, match=message):
        make_buffer(capacity=100_000_000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_gpu_holds_and_samples_the_same_as_the_host(tmp_path: Path, n_step: int) -> None:
    host, gpu = (
        make_buffer(num_envs=2, capacity=60, n_step=n_step, device=device)
        for device in ("cpu", "cuda")
    )
    for buffer in (host, gpu):
        fill(buffer, 47, num_envs=2)
    gpu.load(reload(gpu.save(tmp_path)), tmp_path)
    batch = gpu.sample()
    assert {part.device.type for part in batch} == {"cuda"}  # type: ignore[union-attr]
    assert_same(host.sample(), type(batch)(*(part.cpu() for part in batch)))  # type: ignore


@pytest.mark.parametrize("frame_stack", [None, 1])
def test_an_environment_with_other_observations_than_its_space_is_told(
    frame_stack: int | None,
) -> None:
    space = spaces.Box(0, 255, (1, 2, 2), np.uint8)
    obs = {"frames": np.zeros((1, 1, 2, 2), np.uint8)}
    buffer = make_buffer(obs_space=space, frame_stack=frame_stack)
    with pytest.raises(UserError, match="observations are a dict, but its observation_space is no"):
        buffer.start_episodes(obs, np.ones(1, np.bool_))
    with pytest.raises(UserError, match=r"gave .* of shape \(1, 1, 2, 3\), but|frames of shape"):
        buffer.start_episodes(np.zeros((1, 1, 2, 3), np.uint8), np.ones(1, np.bool_))


def reload(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a way through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(batch: Any, other: Any) -> None:
    """Two batches without dicts are equal to the last bit."""
    assert all(torch.equal(part, twin) for part, twin in zip(batch, other, strict=True))
