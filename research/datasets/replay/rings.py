"""Which row holds which step of which episode, and where samples may start."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from research.datasets.replay.row_set import RowSet

NOT_RUNNING = -1
NEVER = 2**62


Written: TypeAlias = tuple[np.ndarray | slice, np.ndarray]
"""K environments, and the rows (K,) that get what came from them."""


class Completed(NamedTuple):
    """Samples whose last row was written: of each its environment, start and number of steps."""

    envs: np.ndarray
    rows: np.ndarray
    num_steps: np.ndarray


class RingSizes(NamedTuple):
    """The sizes of the rings of rows.

    Attributes:
        num_envs: E, the number of rings.
        ring_rows: R, rows per ring, at least n + S.
        min_steps: m, the fewest steps that a sample spans.
        max_steps: n, the most.
        frame_stack: S, the number of rows that an observation is made of.

    """

    num_envs: int
    ring_rows: int
    min_steps: int
    max_steps: int
    frame_stack: int

    @property
    def num_repeated(self) -> int:
        """W, rows at the start of a ring that are repeated at its end."""
        return self.max_steps + self.frame_stack - 1

    @property
    def num_rows(self) -> int:
        """Rows of all rings, the repeated ones included."""
        return self.num_envs * (self.ring_rows + self.num_repeated)

    @property
    def bookkeeping_bytes(self) -> int:
        """Host memory that the rings take besides the rows."""
        varies, stacked = self.min_steps < self.max_steps, self.frame_stack > 1
        return self.num_rows * (RowSet.bytes_per_row + 4 * varies + 4 * stacked)


class EpisodeRings:
    """One ring of rows per environment, each holding the newest rows of its episodes in order.

    An episode of T steps takes T + 1 rows. A sample needs the rows of its episode from S - 1 before
    its start to n after it, and is forgotten when one of them is overwritten. At the end of an
    episode fewer than n rows suffice, if they are at least m.
    The ring of environment e starts at row ``e * (R + W)``; its first W = n + S - 1 rows are
    repeated after its last, so that no such window has to wrap.

    Args:
        sizes: of the rings.
        starts: an empty set of ``sizes.num_rows`` rows, which gets those where samples may start.

    """

    def __init__(self, sizes: RingSizes, starts: RowSet) -> None:
        num_envs, ring_rows, min_steps, max_steps, frame_stack = sizes
        self.sizes = sizes
        self.starts = starts
        # int32 like the members of the set; empty where all values would be equal.
        varies = min_steps < max_steps
        self._num_steps = torch.empty(sizes.num_rows * varies, dtype=torch.int32)
        self._num_steps_array = self._num_steps.numpy()
        self._num_earlier = torch.zeros(sizes.num_rows * (frame_stack > 1), dtype=torch.int32)
        self._num_earlier_array = self._num_earlier.numpy()
        self._num_idle = num_envs
        self._calm_steps = 0  # the next of these bring no ring to its end, nor are rows to repeat
        self._nowhere = self._completed = np.zeros(0, np.int64)
        self._envs = np.arange(num_envs)
        self._bases = self._envs * (ring_rows + sizes.num_repeated)
        self._near = self._bases + sizes.num_repeated
        # For each ring: the row written last; the starts from 0 to S - 1 rows after it, which may
        # need the row that it overwrote; those from m to n rows before it, which it may complete;
        # how many rows of the episode come before these; and how many rows were written in total.
        # All grow by 1 with every row, so they lie in one array: with few environments, a step
        # takes as long as the number of NumPy calls says.
        back = np.arange(min_steps, max_steps + 1)
        self._back = np.tile(back, num_envs)
        self._ahead = np.tile(np.arange(frame_stack, dtype=np.int32), num_envs)
        parts = [(self._envs, size) for size in (1, frame_stack, len(back), len(back), 1)]
        self._owners = np.concatenate([envs.repeat(size) for envs, size in parts])
        self._counters = np.zeros(len(self._owners), np.int64)
        self._ones = np.ones_like(self._counters)
        cuts = np.cumsum([num_envs * size for _, size in parts[:-1]])
        views = np.split(self._counters, cuts)
        self._rows, self._lost, self._starts, self._ages, self._num_written = views
        self._lost_envs, self._start_envs = (np.split(self._owners, cuts)[part] for part in (1, 2))
        limits = np.full_like(self._counters, NEVER)
        limits[: cuts[2]] = (self._bases + ring_rows + frame_stack - 1)[self._owners[: cuts[2]]]
        limits[:num_envs] -= frame_stack - 1
        self._limits = limits
        self._ages_by_env = self._ages.reshape(num_envs, -1)
        self._ages_by_env[:] = NOT_RUNNING - back
        self._most_earlier = np.full_like(self._ages, frame_stack - 1)
        self._enough = np.where(self._back == max_steps, 0, NEVER)
        self._point()

    def start(self, mask: np.ndarray) -> list[Written]:
        """Begin episodes where ``mask`` (E,) is true; their first observations are to be written.

        Raises:
            ValueError: one of them has a running episode.

        """
        running = mask & (self._episode_steps != NOT_RUNNING)
        if running.any():
            envs = running.nonzero()[0].tolist()
            raise ValueError(f"the episodes of environments {envs} are still running")
        written = self._advance(mask)
        self._set_steps(mask, 0)
        self._num_idle -= np.count_nonzero(mask)
        return written

    def step(self, ended: np.ndarray, active: np.ndarray | None) -> list[Written]:
        """Continue episodes; returns the rows to write their steps to.

        Args:
            ended: (E,), which episodes end with this step.
            active: (E,), which environments took the step; None for all.

        Raises:
            ValueError: one of them has no running episode.

        """
        if self._num_idle:
            idle = self._episode_steps == NOT_RUNNING
            envs = (idle if active is None else idle & active).nonzero()[0].tolist()
            if envs:
                raise ValueError(
                    f"environments {envs} must start an episode before their next step"
                )
        written = self._advance(active)
        completes = self._ages >= self._enough
        if active is not None:
            ended = ended & active
            completes &= active[self._start_envs]
        over = ended.nonzero()[0]
        if len(over):
            completes.reshape(self._ages_by_env.shape)[over] = self._ages_by_env[over] >= 0
        self._complete(completes)
        if len(over):
            self._set_steps(over, NOT_RUNNING)
            self._num_idle += len(over)
        return written

    def end_running(self, mask: np.ndarray) -> None:
        """End running episodes where ``mask`` (E,) is true, each at its newest row."""
        over = mask & (self._episode_steps != NOT_RUNNING)
        completes = (self._ages >= 0) & (self._enough > 0) & over[self._start_envs]
        self._complete(completes)
        self._set_steps(over, NOT_RUNNING)
        self._num_idle += np.count_nonzero(over)

    @property
    def completed(self) -> Completed:
        """The samples that the last ``step`` or ``end_running`` completed."""
        index = self._completed
        return Completed(self._start_envs[index], self._starts[index], self._back[index])

    def num_steps(self, starts: Tensor) -> Tensor:
        """How many steps the samples span that start at these rows; only for m below n."""
        return self._num_steps.index_select(0, starts)

    def num_earlier(self, starts: Tensor) -> Tensor:
        """How many rows of its episode precede each start, at most S - 1; only for S above 1."""
        return self._num_earlier.index_select(0, starts)

    def newest_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n, E) of every ring's newest n steps, oldest first; which are of a running episode.

        The second array (n, E) says so.
        """
        back = np.arange(self.sizes.max_steps - 1, -1, -1)[:, None]
        rows = self._bases + (self._num_written - 1 - back) % self.sizes.ring_rows
        return rows, back < self._episode_steps

    @property
    def num_written(self) -> list[int]:
        """(E,), how many rows were written to each ring in total; they are numbered from 0."""
        return self._num_written.tolist()

    @property
    def oldest(self) -> list[int]:
        """(E,), the number of the oldest row that each ring still holds."""
        return (self._num_written - self.sizes.ring_rows).clip(0).tolist()

    def spans(self, first: Sequence[int], stop: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Ranges of the rows that have these numbers (E,): start and stop of each, ring by ring."""
        for base, begin, end in zip(self._bases.tolist(), first, stop, strict=True):
            while begin < end:
                place = begin % self.sizes.ring_rows
                count = min(end - begin, self.sizes.ring_rows - place)
                yield base + place, base + place + count
                begin += count

    def repeated(self) -> Iterator[tuple[int, int]]:
        """The first row of each ring, and the row where its repeated rows start."""
        for base in self._bases.tolist():
            yield base, base + self.sizes.ring_rows

    def state_dict(self) -> dict[str, Any]:
        """Tensors and lists of numbers; the tensors share memory with the rings."""
        starts = self.starts.members()
        return {
            "num_written": self._num_written.tolist(),
            "episode_steps": self._episode_steps.tolist(),
            "starts": starts,
            "num_steps": self.num_steps(starts) if len(self._num_steps) else self._num_steps,
            "num_earlier": (
                self.num_earlier(starts) if len(self._num_earlier) else self._num_earlier
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict`` of rings of the same sizes.

        Raises:
            ValueError: ``state`` cannot be that of such rings.

        """
        written, steps, starts = state["num_written"], state["episode_steps"], state["starts"]
        numbers = [*written, *steps]
        if len(written) != self.sizes.num_envs or len(steps) != self.sizes.num_envs:
            raise ValueError(f"there are {len(written)} rings, not {self.sizes.num_envs}")
        if not all(isinstance(n, int) and n >= NOT_RUNNING for n in numbers) or min(written) < 0:
            raise ValueError(f"rings cannot have written {written} rows, {steps} in open episodes")
        self._num_written[:] = written
        self._set_steps(slice(None), np.array(steps)[:, None])
        self._num_idle = steps.count(NOT_RUNNING)
        self._point()
        self.starts.replace(starts)
        if len(self._num_steps):
            num_steps = state["num_steps"]
            least, most = self.sizes.min_steps, self.sizes.max_steps
            if len(num_steps) and not least <= num_steps.min() <= num_steps.max() <= most:
                raise ValueError(
                    f"samples cannot span {num_steps.min()} to {num_steps.max()} steps"
                )
            self._num_steps[starts.long()] = num_steps
        if self.sizes.frame_stack > 1:
            num_earlier = state["num_earlier"]
            if len(num_earlier) and num_earlier.min() < 0:
                raise ValueError(f"no episode has {num_earlier.min()} earlier rows")
            self._num_earlier[starts.long()] = num_earlier

    @property
    def _episode_steps(self) -> np.ndarray:
        """(E,), how many steps the running episodes have; -1 where there is none."""
        return self._ages_by_env[:, 0] + self.sizes.min_steps

    def _set_steps(self, envs: np.ndarray | slice, steps: np.ndarray | int) -> None:
        """Set ``_episode_steps`` of these environments."""
        self._ages_by_env[envs] = steps - self._back[: self._ages_by_env.shape[1]]

    def _point(self) -> None:
        """Set the rows among the counters to where ``_num_written`` says.

        A start is at the repetition of its row if fewer than S - 1 rows come before it.
        """
        size, before = self.sizes.ring_rows, self.sizes.frame_stack - 1
        newest, first = self._num_written - 1, self._bases + before
        self._calm_steps = 0
        self._rows[:] = self._bases + newest % size
        for starts, distance, envs in (
            (self._lost, self._ahead, self._lost_envs),
            (self._starts, -self._back, self._start_envs),
        ):
            starts[:] = first[envs] + (newest[envs] + distance - before) % size

    def _advance(self, active: np.ndarray | None) -> list[Written]:
        """Go on by a row, in all rings or in those where ``active`` (E,) is true."""
        self._counters += self._ones if active is None else active[self._owners]
        envs = slice(None) if active is None else active.nonzero()[0]
        near = self._wrap(envs)
        rows = self._rows[envs]
        if self.sizes.frame_stack == 1:
            self.starts.discard(rows)
        else:
            lost = self._num_earlier_array[self._lost] == self._ahead
            if active is not None:
                lost &= active[self._lost_envs]
            self.starts.discard(self._lost[lost])
        if not len(near):
            return [(envs, rows)]
        return [(envs, rows), (near, self._rows[near] + self.sizes.ring_rows)]

    def _wrap(self, envs: np.ndarray | slice) -> np.ndarray:
        """Let counters that left their ring begin it again.

        Returns:
            those of the environments whose newest rows are to be repeated.

        """
        if self._calm_steps:
            self._calm_steps -= 1
            return self._nowhere
        self._counters[self._counters >= self._limits] -= self.sizes.ring_rows
        near = self._envs[envs][self._rows[envs] < self._near[envs]]
        if not (self._rows < self._near).any():
            self._calm_steps = int((self._limits - self._counters).min()) - 1
        return near

    def _complete(self, completes: np.ndarray) -> None:
        """Add the starts among the counters where ``completes`` is true."""
        index = self._completed = completes.nonzero()[0]
        rows = self._starts[index]
        self.starts.add(rows)
        if len(self._num_steps):
            self._num_steps_array[rows] = self._back[index].astype(np.int32)
        if self.sizes.frame_stack > 1:
            num_earlier = np.minimum(self._ages, self._most_earlier)[index]
            self._num_earlier_array[rows] = num_earlier.astype(np.int32)
