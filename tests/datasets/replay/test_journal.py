"""Rows on disk: every state that was saved finds its own, whatever came later or went wrong."""

import os
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.batches import Step
from research.datasets.replay import journal
from research.datasets.replay.buffer import ReplayBuffer
from research.datasets.replay.journal import Block, Journal
from research.errors import DamagedFile
from tests.datasets.replay.test_buffer import assert_same, fill, make_buffer, reload

CONTINUE, TERMINATE, TRUNCATE, SAMPLE = "continue", "terminate", "truncate", "sample"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Attempts:
    """A buffer in processes that end at any time, and what it has lived through."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.events: list[Any] = []
        self.saved: list[tuple[dict[str, Any], int]] = []
        self.buffer = self.make()

    def make(self) -> ReplayBuffer:
        buffer = make_buffer(batch_size=500, **self.options)
        journal = buffer._make_journal(self.folder)
        journal.segment_bytes = 300
        buffer._make_journal = lambda folder: journal
        return buffer

    def live(self, event: Any) -> None:
        self.events.append(event)
        apply(self.buffer, self.events, len(self.events) - 1)

    def save(self) -> None:
        self.saved.append((reload(self.buffer.save(self.folder)), len(self.events)))
        self.saved = self.saved[-2:]
        needed = {name for state, _ in self.saved for name in state["files"]}
        for path in self.folder.iterdir():
            if path.name not in needed:
                path.unlink()

    def begin_anew(self, *, before: bool) -> None:
        """Go on from the last state, or from the one before, in another process."""
        if before and len(self.saved) == 2:
            self.saved.pop()
        self.buffer = self.make()
        self.events = self.events[: self.saved[-1][1]] if self.saved else []
        if self.saved:
            self.buffer.load(self.saved[-1][0], self.folder)


def apply(buffer: ReplayBuffer, events: list[Any], index: int) -> None:
    """Let a buffer live through event ``index``, whose numbers follow from ``index``."""
    if events[index] == SAMPLE:
        if len(buffer):
            buffer.sample()
        return
    ends = np.array(events[index])
    rng = np.random.default_rng(index)
    idle = np.array(buffer._rings._episode_steps) < 0
    if idle.any():
        buffer.start_episodes(rng.random((len(ends), 2)), idle)
    action, reward, obs = (
        rng.random((len(ends), 1)),
        rng.random(len(ends)),
        rng.random((len(ends), 2)),
    )
    buffer.add(Step(action, reward, ends == TERMINATE, ends == TRUNCATE, obs))


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Writing works ``after`` times, and then only in part."""
    left = after

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            write_really(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write_really(descriptor, data)

    write_really = os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        yield


@settings(max_examples=150)
@given(data=st.data())
def test_every_kept_state_samples_on_as_if_nothing_had_happened(data: st.DataObject) -> None:
    num_envs, n_step = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    capacity = data.draw(st.integers((n_step + 1) * num_envs, 30))
    options: Any = {"num_envs": num_envs, "capacity": capacity, "n_step": n_step}
    end = st.sampled_from([CONTINUE] * 4 + [TERMINATE, TRUNCATE])
    step = st.lists(end, min_size=num_envs, max_size=num_envs)
    happenings = st.one_of(step, step, step, st.sampled_from([SAMPLE, "save", "full", "die"]))
    with tempfile.TemporaryDirectory() as folder:
        attempts = Attempts(Path(folder), **options)
        for event in data.draw(st.lists(happenings, max_size=60)):
            if event == "save":
                attempts.save()
            elif event == "full":
                with full_disk(data.draw(st.integers(0, 4))), suppress(OSError):
                    attempts.save()
            elif event == "die":
                attempts.begin_anew(before=data.draw(st.booleans()))
            else:
                attempts.live(event)
        attempts.save()
        for state, num_events in attempts.saved:
            loaded, twin = (
                make_buffer(batch_size=500, **options),
                make_buffer(batch_size=500, **options),
            )
            loaded.load(state, Path(folder))
            for index in range(num_events):
                apply(twin, attempts.events, index)
            assert len(loaded) == len(twin)
            if len(twin):
                assert_same(loaded.sample(), twin.sample())


def test_the_space_on_disk_is_bounded(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, capacity=50)
    for _ in range(60):
        for _ in range(10):
            attempts.live([CONTINUE])
        attempts.save()
    row_bytes = 4 * (2 + 1 + 1 + 1)
    held = 50 + 10 + 2 * 300 // row_bytes  # the ring, the checkpoint before, the files' ends
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.5 * held * row_bytes


def test_saving_takes_no_memory_for_the_rows(tmp_path: Path) -> None:
    buffer = make_buffer(capacity=100_000)
    fill(buffer, 50_000)
    tracemalloc.start()
    buffer.save(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 1_000_000
    assert peak < 100_000


def saved(folder: Path) -> tuple[dict[str, Any], Path]:
    """A state of three blocks, and its only file."""
    buffer = make_buffer(capacity=40)
    for _ in range(3):
        fill(buffer, 10)
        state = buffer.save(folder)
    (path,) = folder.iterdir()
    return state, path


@settings(max_examples=60)
@given(data=st.data())
def test_a_file_that_was_cut_or_altered_anywhere_is_named(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state, path = saved(Path(folder))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            del content[place:]
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=r"00000000\.rows|a block has"):
            make_buffer(capacity=40).load(state, Path(folder))


def lose(path: Path, state: dict[str, Any]) -> None:
    path.unlink()


def name_another_file(path: Path, state: dict[str, Any]) -> None:
    state["journal"][0]["name"] = "../../etc/passwd"


def add_a_key(path: Path, state: dict[str, Any]) -> None:
    state["journal"][0]["command"] = "rm"


def lose_the_list(path: Path, state: dict[str, Any]) -> None:
    state["journal"] = []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose, r"00000000\.rows is missing"),
        (name_another_file, r"'\.\./\.\./etc/passwd' is no file of it"),
        (add_a_key, "the list of its files is damaged"),
        (lose_the_list, "rows of the replay buffer are missing"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, damage: Callable[..., None], reason: str
) -> None:
    state, path = saved(tmp_path)
    damage(path, state)
    with pytest.raises(DamagedFile, match=reason):
        make_buffer(capacity=40).load(state, tmp_path)


@pytest.mark.parametrize(
    "starts", [[0, 0], [-1, 3], [2**20]], ids=["twice", "negative", "behind the end"]
)
def test_transitions_that_cannot_be_are_refused(tmp_path: Path, starts: list[int]) -> None:
    state, _ = saved(tmp_path)
    state["rings"]["starts"] = state["rings"]["starts"].new_tensor(starts)
    with pytest.raises(ValueError, match=r"row|member"):
        make_buffer(capacity=40).load(state, tmp_path)


def test_large_rows_go_through_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHUNK_BYTES", 7)
    written = Journal(tmp_path, num_rings=1, segment_bytes=10**6)
    rows = np.arange(100, dtype=np.float32).reshape(50, 2)
    written.append(Block((0,), (50,)), [rows.data, memoryview(b"")])
    read = Journal(tmp_path, num_rings=1, segment_bytes=10**6)
    read.load_state_dict(written.state_dict())
    ((block, fill_rows),) = [
        (block, take(fill_rows, rows.shape)) for block, fill_rows in read.blocks()
    ]
    assert block == Block((0,), (50,))
    assert (fill_rows == rows).all()


def take(fill_rows: Callable[[memoryview], None], shape: tuple[int, ...]) -> np.ndarray:
    rows = np.empty(shape, np.float32)
    fill_rows(rows.data)
    return rows


def test_rows_are_on_the_disk_before_a_state_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, int] = {}

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced[path.name] = path.stat().st_size

    monkeypatch.setattr(os, "fsync", fsync)
    state, path = saved(tmp_path)
    assert synced[path.name] == path.stat().st_size == state["journal"][0]["num_bytes"]
    assert tmp_path.name in synced  # and so is the name of the file


def test_the_format_is_what_the_class_says(tmp_path: Path) -> None:
    """Numbers of the first and one past the last row of each ring, then the rows."""
    written = Journal(tmp_path, num_rings=2, segment_bytes=10**6)
    written.append(Block((3, 5), (4, 5)), [memoryview(b"row 3")])
    assert (tmp_path / "00000000.rows").read_bytes() == struct.pack("<4q", 3, 5, 4, 5) + b"row 3"
