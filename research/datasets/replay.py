"""Experience of running environments, sampled as n-step transitions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from research.batches import Transition, Tree
from research.datasets.frames import FrameStacks
from research.datasets.journal import Block, Journal
from research.datasets.memory import require_memory
from research.datasets.rings import EpisodeRings, compute_bookkeeping_bytes, count_rows
from research.datasets.storage import Leaf, RowStorage, Window, compute_row_bytes, leaf_of
from research.errors import DamagedFile, UserError

ArrayTree: TypeAlias = np.ndarray | dict[str, np.ndarray]
"""One array, or a dict of them for a Dict space."""


class Environments(Protocol):
    """What a replay buffer asks of a vector environment."""

    @property
    def single_observation_space(self) -> Space[Any]: ...

    @property
    def single_action_space(self) -> Space[Any]: ...

    @property
    def num_envs(self) -> int: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class ReplayBuffer:
    """The newest steps of E environments; a batch is drawn uniformly from all their transitions.

    There is one array of observations: a row holds an observation with the action, the reward and
    the termination that led to it, so an episode of T steps takes T + 1 rows. Every environment
    writes a ring of its own, since their episodes end at different times.

    A transition that starts k steps before the end of its episode, k below ``n_step``, sums k
    rewards and looks k steps ahead, to the episode's real final observation. One that starts nearer
    than ``n_step`` to the newest row of a running episode waits until its window is complete.

    Where ``env.metadata["frame_stack"]`` is S above 1, observations are the S newest frames of an
    episode, uint8 (S * C, H, W), the oldest first, and its first observation is S times the same
    frame. Then a row holds one frame. A transition is forgotten with the oldest frame of the stack
    that it starts from.

    float64 is stored as float32, every other type as it is.

    Args:
        env: its spaces say what a row holds.
        seed: of the buffer's own generator.
        capacity: rows over all environments, ``capacity // E`` for each. When a ring is full, its
            oldest row is overwritten, and the transition that starts there forgotten.
        batch_size: B.
        discount: gamma per environment step, in [0, 1].
        n_step: most rewards that a transition sums.
        device: where rows are kept and batches returned; what is drawn does not depend on it.

    Attributes:
        memory_bytes: taken when it is full.

    Raises:
        ValueError: for a number outside its range, a space whose elements are no arrays, or rows
            that do not fit in memory.

    """

    batches_per_epoch = None

    def __init__(
        self,
        env: Environments,
        seed: int,
        *,
        capacity: int,
        batch_size: int,
        discount: float,
        n_step: int,
        device: str,
    ) -> None:
        frame_stack = env.metadata.get("frame_stack", 1)
        check_numbers(env.num_envs, capacity, batch_size, discount, n_step, frame_stack)
        self.batch_size = batch_size
        self.discount = discount
        self.n_step = n_step
        self.device = parse_device(device)
        obs_space = env.single_observation_space
        self._obs_keys = list(obs_space.spaces) if isinstance(obs_space, spaces.Dict) else None
        self._stacks = None
        if frame_stack > 1:
            self._stacks = FrameStacks(obs_space, frame_stack=frame_stack, n_step=n_step)
        obs_leaves = {"obs": self._stacks.leaf} if self._stacks else name_obs_leaves(obs_space)
        self._obs_names = list(obs_leaves)
        # The order makes neighbours of an observation, what was done there, and where it led.
        leaves = {
            "action": leaf_of(env.single_action_space, "actions"),
            "reward": Leaf((), torch.float32),
            "continues": Leaf((), torch.float32),
            **obs_leaves,
        }
        ring_rows = capacity // env.num_envs
        spans = {"n_step": n_step, "frame_stack": frame_stack}
        num_rows = count_rows(env.num_envs, ring_rows=ring_rows, **spans)
        row_bytes = num_rows * compute_row_bytes(leaves.values())
        index_bytes = compute_bookkeeping_bytes(num_rows, **spans)
        self.memory_bytes = row_bytes + index_bytes
        what = f"a replay buffer of {capacity:,} rows"
        if self.device.type == "cuda":
            require_memory(row_bytes, what, self.device)
            require_memory(index_bytes, f"the index of {what}", torch.device("cpu"))
        else:
            require_memory(self.memory_bytes, what, self.device)
        self._rings = EpisodeRings(env.num_envs, ring_rows=ring_rows, **spans)
        self._storage = RowStorage(
            leaves,
            num_rows=num_rows,
            num_staged=env.num_envs,
            device=self.device,
            apart=[*["reward"] * (n_step > 1), *["obs"] * (frame_stack > 1)],
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._journal: Journal | None = None
        self._make_windows()

    def __len__(self) -> int:
        """Number of transitions that ``sample`` chooses from."""
        return len(self._rings.starts)

    def start_episodes(self, obs: ArrayTree, mask: np.ndarray) -> None:
        """Begin an episode in every environment where ``mask`` (E,) is true.

        Args:
            obs: (E, O), or a dict of such; what it holds for other environments is ignored.
            mask: the environments that were reset.

        Raises:
            ValueError: one of them has a running episode, or frames that differ in its stack.

        """
        if self._stacks:
            assert isinstance(obs, np.ndarray), "observations are a dict, their space is not"
            self._stacks.check_first(obs[mask])
        self._stage_obs(obs)
        sources, rows = self._rings.start(np.flatnonzero(mask).tolist())
        self._storage.write(sources, rows)

    def add(
        self,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_obs: ArrayTree,
    ) -> None:
        """Store one step of all environments.

        Args:
            action: (E, A).
            reward: (E,).
            terminated: (E,), the episode ended, and nothing that follows has any value.
            truncated: (E,), the episode was cut off, though it could have gone on.
            next_obs: (E, O), or a dict of such; an ended episode's final observation.

        Raises:
            ValueError: an environment has no running episode.

        """
        self._storage.stage("action", action)
        self._storage.stage("reward", reward)
        self._storage.stage("continues", np.logical_not(terminated))
        self._stage_obs(next_obs)
        sources, rows = self._rings.step(np.logical_or(terminated, truncated).tolist())
        self._storage.write(sources, rows)

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Truncate the running episodes where ``mask`` (E,) is true at their newest observations.

        For environments that cannot go on where they were, as after loading a state in a new
        process; each must start an episode before the next ``add``.
        """
        self._rings.end_running(np.flatnonzero(mask).tolist())

    def sample(self) -> Transition:
        """B transitions, each equally likely, with replacement.

        Observations of stacked frames may share memory with each other.

        Raises:
            UserError: there is none yet.

        """
        if not len(self._rings.starts):
            raise UserError(
                f"nothing to sample: the replay buffer holds no complete transition of n_step="
                f"{self.n_step}; collect more steps before the first update"
            )
        starts = self._rings.starts.draw(self.batch_size, self._generator)
        if self.n_step == 1:
            return self._one_step(starts.to(self.device), self._read_stacks(starts, None))
        num_steps = self._rings.num_steps(starts)
        stacks = self._read_stacks(starts, num_steps)
        return self._n_steps(starts.to(self.device), num_steps.to(self.device), stacks)

    def save(self, folder: Path) -> dict[str, Any]:
        """All that later samples depend on, in tensors and plain values.

        The rows go to ``folder``, only those that came since the last time; the state refers to
        them. Its tensors share memory with the buffer: save them before the next ``add``.

        Raises:
            OSError: the rows cannot be written; every earlier state still has its own.

        """
        if self._journal is None or self._journal.folder != folder:
            self._journal = self._make_journal(folder)
        oldest, stop = self._rings.oldest, self._rings.num_written
        if stop != self._journal.stops:
            first = [max(pair) for pair in zip(oldest, self._journal.stops, strict=True)]
            parts = self._storage.read_rows(self._rings.spans(first, stop))
            self._journal.append(Block(tuple(first), tuple(stop)), parts)
        self._journal.forget(oldest)
        return {
            "layout": self._layout(),
            "rings": self._rings.state_dict(),
            "journal": self._journal.state_dict(),
            "files": [segment.name for segment in self._journal.segments],
            "generator": self._generator.get_state(),
        }

    def load(self, state: dict[str, Any], folder: Path) -> None:
        """Continue exactly where ``save`` was called; running episodes are running again.

        Raises:
            ValueError: the state is of a buffer of other sizes.
            DamagedFile: the rows are not what was saved.

        """
        if state["layout"] != self._layout():
            raise ValueError(
                f"the replay buffer was saved as {state['layout']}, but is now {self._layout()}"
            )
        self._rings.load_state_dict(state["rings"])
        journal = self._make_journal(folder)
        journal.load_state_dict(state["journal"])
        if journal.stops != self._rings.num_written:
            raise DamagedFile(f"{folder}: rows of the replay buffer are missing")
        for block, fill in journal.blocks():
            counts = [stop - first for first, stop in zip(*block, strict=True)]
            if not 0 <= min(counts) <= max(counts) <= self._rings.ring_rows or min(block.first) < 0:
                raise DamagedFile(f"{folder}: a block has {max(counts)} rows")
            self._storage.fill_rows(self._rings.spans(*block), fill)
        for source, target in self._rings.repeated():
            self._storage.repeat(source, target, self._rings.num_repeated)
        self._generator.set_state(state["generator"])
        self._journal = journal

    def _make_journal(self, folder: Path) -> Journal:
        rows_bytes = sum(rows.nbytes for rows in self._storage.groups.values())
        return Journal(
            folder,
            num_rings=self._rings.num_envs,
            segment_bytes=max(2**24, rows_bytes // 16),
        )

    def _make_windows(self) -> None:
        """Lay out what is gathered, and tables by the number k of steps, 0 to n."""
        n, device = self.n_step, self.device
        self._discounts = torch.tensor([self.discount**k for k in range(n + 1)], device=device)
        names = [] if self._stacks else self._obs_names  # stacks need rows that no window has
        obs = [(name, 0) for name in names]
        if n == 1:
            led_to = ["action", "reward", "continues", *names]
            self._step = Window(self._storage, [*obs, *((name, 1) for name in led_to)])
            # A tensor, which multiplies in half the time of a number.
            self._gamma = self._discounts[1]
            return
        self._first = Window(self._storage, [*obs, ("action", 1)])
        self._last = Window(self._storage, [("continues", 0), *obs])
        self._powers = self._discounts[:n]
        self._rewards = self._storage.groups["reward"].view(-1)[1:].unfold(0, n, 1)
        counts = torch.arange(n + 1, device=device)
        self._is_behind = counts[:n] >= counts[:, None]

    def _read_stacks(self, starts: Tensor, num_steps: Tensor | None) -> Sequence[Tensor]:
        """First and last stacks of frames; nothing if observations are no stacks."""
        if self._stacks is None:
            return ()
        frames, num_earlier = self._storage.groups["obs"], self._rings.num_earlier(starts)
        return self._stacks.read(frames, starts, num_earlier, num_steps)

    def _one_step(self, starts: Tensor, stacks: Sequence[Tensor]) -> Transition:
        parts = self._step.read(starts)
        num_obs = (len(parts) - 3) // 2
        action, reward, continues = parts[num_obs : num_obs + 3]
        return Transition(
            self._tree(parts[:num_obs] or stacks[:1]),
            action,
            reward,
            continues.mul_(self._gamma),
            self._tree(parts[num_obs + 3 :] or stacks[1:]),
        )

    def _n_steps(self, starts: Tensor, num_steps: Tensor, stacks: Sequence[Tensor]) -> Transition:
        *obs, action = self._first.read(starts)
        continues, *next_obs = self._last.read(starts + num_steps)
        # Filled, not multiplied by zero: behind the episode's end lies anything, NaN included.
        rewards = self._rewards.index_select(0, starts)
        rewards.masked_fill_(self._is_behind.index_select(0, num_steps), 0.0)
        return Transition(
            self._tree(obs or stacks[:1]),
            action,
            rewards.mv(self._powers),
            continues.mul_(self._discounts.index_select(0, num_steps)),
            self._tree(next_obs or stacks[1:]),
        )

    def _tree(self, parts: Sequence[Tensor]) -> Tree:
        return parts[0] if self._obs_keys is None else dict(zip(self._obs_keys, parts, strict=True))

    def _stage_obs(self, obs: ArrayTree) -> None:
        if isinstance(obs, dict):
            assert self._obs_keys is not None, "observations are a dict, their space is not"
            for name, key in zip(self._obs_names, self._obs_keys, strict=True):
                self._storage.stage(name, obs[key])
        else:
            self._storage.stage("obs", self._stacks.newest(obs) if self._stacks else obs)

    def _layout(self) -> dict[str, Any]:
        widths = {name: rows.shape[1] for name, rows in self._storage.groups.items()}
        return {
            "num_envs": self._rings.num_envs,
            "rows_per_env": self._rings.ring_rows,
            "n_step": self.n_step,
            **({"frame_stack": self._rings.frame_stack} if self._stacks else {}),
            **widths,
        }


def check_numbers(
    num_envs: int, capacity: int, batch_size: int, discount: float, n_step: int, frame_stack: int
) -> None:
    """Refuse a number outside its range with a ValueError."""
    if num_envs < 1:
        raise ValueError("a replay buffer needs an environment that fills it, env has none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}")
    if n_step < 1:
        raise ValueError(f"n_step must be at least 1, got {n_step}")
    if frame_stack < 1:
        raise ValueError(f"the environments' frame_stack must be at least 1, got {frame_stack}")
    least = (n_step + frame_stack) * num_envs
    if not least <= capacity < 2**30:
        raise ValueError(
            f"capacity must be at least {least}, n_step + {frame_stack} rows for each "
            f"environment, and below {2**30}, got {capacity}"
        )


def name_obs_leaves(space: Space[Any]) -> dict[str, Leaf]:
    """The leaves of observations: ``obs``, or ``obs.<key>`` for every key of a Dict space."""
    if isinstance(space, spaces.Dict):
        return {
            f"obs.{key}": leaf_of(part, f"observations '{key}'")
            for key, part in space.spaces.items()
        }
    return {"obs": leaf_of(space, "observations")}


def parse_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: it is neither the CPU nor a GPU of this machine.

    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name}, but {torch.cuda.device_count()} GPUs are visible; try device=cpu"
        )
    return device
