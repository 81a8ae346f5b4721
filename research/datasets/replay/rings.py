"""Which row holds which step of which episode, and where transitions may start."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from research.datasets.replay.row_set import RowSet

NOT_RUNNING = -1


class Completed(NamedTuple):
    """A transition whose last row was written: its environment, its start, its number of steps."""

    env: int
    row: int
    num_steps: int


class EpisodeRings:
    """One ring of rows per environment, each holding the newest rows of its episodes in order.

    An episode of T steps takes T + 1 rows. A transition needs the rows of its episode from S - 1
    before its start to n after it, and is forgotten when one of them is overwritten.
    The ring of environment e starts at row ``e * (R + W)``; its first W = n + S - 1 rows are
    repeated after its last, so that no such window has to wrap.

    Args:
        num_envs: E, the number of rings.
        ring_rows: R, rows per ring, at least n + S.
        n_step: n, the largest number of steps that a transition spans.
        frame_stack: S, the number of rows that an observation is made of.

    Attributes:
        completed: transitions that the last ``step`` or ``end_running`` completed; empty if n is 1.

    """

    def __init__(self, num_envs: int, *, ring_rows: int, n_step: int, frame_stack: int) -> None:
        self.num_envs = num_envs
        self.ring_rows = ring_rows
        self.n_step = n_step
        self.frame_stack = frame_stack
        self.num_repeated = n_step + frame_stack - 1
        self.num_rows = count_rows(
            num_envs, ring_rows=ring_rows, n_step=n_step, frame_stack=frame_stack
        )
        self.starts = RowSet(self.num_rows)
        # int32 like the members of the set; empty where all values would be equal.
        self._num_steps = torch.empty(self.num_rows if n_step > 1 else 0, dtype=torch.int32)
        self._num_steps_array = self._num_steps.numpy()
        self._num_earlier = torch.empty(self.num_rows if frame_stack > 1 else 0, dtype=torch.int32)
        self._num_earlier_array = self._num_earlier.numpy()
        self._num_written = [0] * num_envs
        self._episode_steps = [NOT_RUNNING] * num_envs
        self.completed: list[Completed] = []

    def start(self, envs: Sequence[int]) -> tuple[list[int], list[int]]:
        """Begin episodes; returns environments, and the rows to write their first observations to.

        Raises:
            ValueError: one of them has a running episode.

        """
        running = [env for env in envs if self._episode_steps[env] != NOT_RUNNING]
        if running:
            raise ValueError(f"the episodes of environments {running} are still running")
        for env in envs:
            self._episode_steps[env] = 0
        return self._advance(envs)

    def step(self, ended: Sequence[bool]) -> tuple[list[int], list[int]]:
        """Continue all episodes; returns environments, and the rows to write their steps to.

        Args:
            ended: (E,), which episodes end with this step.

        Raises:
            ValueError: an environment has no running episode.

        """
        if NOT_RUNNING in self._episode_steps:
            idle = [env for env, steps in enumerate(self._episode_steps) if steps == NOT_RUNNING]
            raise ValueError(f"environments {idle} must start an episode before their next step")
        written = self._advance(range(self.num_envs))
        self.completed.clear()
        for env, over in enumerate(ended):
            steps = self._episode_steps[env] + 1
            self._complete(env, steps, 1 if over else self.n_step, self.n_step)
            self._episode_steps[env] = NOT_RUNNING if over else steps
        return written

    def end_running(self, envs: Iterable[int]) -> None:
        """End the running episodes of these environments, each at its newest row."""
        self.completed.clear()
        for env in envs:
            steps = self._episode_steps[env]
            self._complete(env, steps, 1, self.n_step - 1)
            self._episode_steps[env] = NOT_RUNNING

    def num_steps(self, starts: Tensor) -> Tensor:
        """How many steps the transitions span that start at these rows; only for n above 1."""
        return self._num_steps.index_select(0, starts)

    def newest_rows(self, env: int) -> range:
        """The rows of the running episode's last steps, at most n; its first row is not a step's.

        Where the ring wraps, the range continues in the repeated rows.
        """
        count = max(0, min(self._episode_steps[env], self.n_step))
        stop = self._start_row(env, (self._num_written[env] - count - 1) % self.ring_rows) + 1
        return range(stop, stop + count)

    def num_earlier(self, starts: Tensor) -> Tensor:
        """How many rows of its episode precede each start, at most S - 1; only for S above 1."""
        return self._num_earlier.index_select(0, starts)

    @property
    def num_written(self) -> list[int]:
        """(E,), how many rows were written to each ring in total; they are numbered from 0."""
        return list(self._num_written)

    @property
    def oldest(self) -> list[int]:
        """(E,), the number of the oldest row that each ring still holds."""
        return [max(0, written - self.ring_rows) for written in self._num_written]

    def spans(self, first: Sequence[int], stop: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Ranges of the rows that have these numbers (E,): start and stop of each, ring by ring."""
        for env, (begin, end) in enumerate(zip(first, stop, strict=True)):
            base = env * (self.ring_rows + self.num_repeated)
            while begin < end:
                place = begin % self.ring_rows
                count = min(end - begin, self.ring_rows - place)
                yield base + place, base + place + count
                begin += count

    def repeated(self) -> Iterator[tuple[int, int]]:
        """The first row of each ring, and the row where its repeated rows start."""
        for env in range(self.num_envs):
            base = env * (self.ring_rows + self.num_repeated)
            yield base, base + self.ring_rows

    def state_dict(self) -> dict[str, Any]:
        """Tensors and lists of numbers; the tensors share memory with the rings."""
        starts = self.starts.members()
        return {
            "num_written": list(self._num_written),
            "episode_steps": list(self._episode_steps),
            "starts": starts,
            "num_steps": self.num_steps(starts) if self.n_step > 1 else self._num_steps,
            "num_earlier": self.num_earlier(starts) if self.frame_stack > 1 else self._num_earlier,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict`` of rings of the same sizes.

        Raises:
            ValueError: ``state`` cannot be that of such rings.

        """
        written, steps, starts = state["num_written"], state["episode_steps"], state["starts"]
        numbers = [*written, *steps]
        if len(written) != self.num_envs or len(steps) != self.num_envs:
            raise ValueError(f"there are {len(written)} rings, not {self.num_envs}")
        if not all(isinstance(n, int) and n >= NOT_RUNNING for n in numbers) or min(written) < 0:
            raise ValueError(f"rings cannot have written {written} rows, {steps} in open episodes")
        self._num_written, self._episode_steps = list(written), list(steps)
        self.starts.replace(starts)
        if self.n_step > 1:
            num_steps = state["num_steps"]
            if len(num_steps) and not 1 <= num_steps.min() <= num_steps.max() <= self.n_step:
                raise ValueError(f"transitions cannot span {num_steps.max()} steps")
            self._num_steps[starts.long()] = num_steps
        if self.frame_stack > 1:
            num_earlier = state["num_earlier"]
            if len(num_earlier) and num_earlier.min() < 0:
                raise ValueError(f"no episode has {num_earlier.min()} earlier rows")
            self._num_earlier[starts.long()] = num_earlier

    def _advance(self, envs: Iterable[int]) -> tuple[list[int], list[int]]:
        sources, rows = [], []
        for env in envs:
            place = self._num_written[env] % self.ring_rows
            row = env * (self.ring_rows + self.num_repeated) + place
            self.starts.discard(self._start_row(env, place))
            if self.frame_stack > 1:
                self._discard_behind(env, place)
            sources.append(env)
            rows.append(row)
            if place < self.num_repeated:
                sources.append(env)
                rows.append(row + self.ring_rows)
            self._num_written[env] += 1
        return sources, rows

    def _discard_behind(self, env: int, place: int) -> None:
        """Remove the starts whose stacks need the row at ``place``."""
        for distance in range(1, self.frame_stack):
            row = self._start_row(env, (place + distance) % self.ring_rows)
            if self._num_earlier_array[row] >= distance:
                self.starts.discard(row)

    def _complete(self, env: int, steps: int, least: int, most: int) -> None:
        """Add the transitions to the newest row from ``least`` to ``most`` rows before it.

        ``steps`` rows of the episode come before the newest; no transition starts earlier.
        """
        newest = self._num_written[env] - 1
        for distance in range(least, min(steps, most) + 1):
            row = self._start_row(env, (newest - distance) % self.ring_rows)
            self.starts.add(row)
            if self.n_step > 1:
                self._num_steps_array[row] = distance
                self.completed.append(Completed(env, row, distance))
            if self.frame_stack > 1:
                self._num_earlier_array[row] = min(steps - distance, self.frame_stack - 1)

    def _start_row(self, env: int, place: int) -> int:
        """The row at ``place``, or its repetition if fewer than S - 1 rows come before it."""
        if place < self.frame_stack - 1:
            place += self.ring_rows
        return env * (self.ring_rows + self.num_repeated) + place


def count_rows(num_envs: int, *, ring_rows: int, n_step: int, frame_stack: int) -> int:
    """Rows of all rings, the repeated ones included."""
    return num_envs * (ring_rows + n_step + frame_stack - 1)


def compute_bookkeeping_bytes(num_rows: int, *, n_step: int, frame_stack: int) -> int:
    """Host memory, in bytes, that the rings take besides the rows."""
    return num_rows * (RowSet.bytes_per_row + 4 * (n_step > 1) + 4 * (frame_stack > 1))
