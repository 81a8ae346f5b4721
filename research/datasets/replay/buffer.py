"""Experience of running environments, sampled as n-step transitions."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from research.batches import ArrayTree, PackedBatch, Step, Transition
from research.datasets.replay.frames import FrameStacks
from research.datasets.replay.journal import Block, Journal
from research.datasets.replay.returns import NStepReturns
from research.datasets.replay.rings import EpisodeRings, compute_bookkeeping_bytes, count_rows
from research.datasets.replay.storage import Leaf, RowStorage, compute_row_bytes, leaf_of
from research.datasets.replay.transitions import TransitionReader
from research.errors import DamagedFile, UserError
from research.machine.device import data_device
from research.machine.disk import require_disk
from research.machine.memory import require_memory


class Environments(Protocol):
    """The attributes of a vector environment that a replay buffer reads."""

    @property
    def single_observation_space(self) -> Space[Any]: ...

    @property
    def single_action_space(self) -> Space[Any]: ...

    @property
    def num_envs(self) -> int: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


NO_DICT = "the environment's observations are a dict, but its observation_space is no Dict"


class ReplayBuffer:
    """The newest steps of E environments; a batch is drawn uniformly from all their transitions.

    Every observation is stored once: a row holds an observation with the action, the reward and
    the termination that led to it, so an episode of T steps takes T + 1 rows. Every environment
    has a ring of its own, since their episodes end at different times.

    A transition that starts k steps before the end of its episode, k below ``n_step``, sums k
    rewards and looks k steps ahead, to the episode's real final observation. In a running
    episode, a transition can be drawn once ``n_step`` rows follow the row where it starts.

    Where ``env.metadata["frame_stack"]`` is S above 1, observations are the S newest frames of an
    episode, uint8 (S * C, H, W), the oldest first, and its first observation is S times the same
    frame. Then a row holds one frame. A transition is forgotten with the oldest frame of the stack
    that it starts from.

    float64 is stored as float32, every other type as it is.

    Args:
        env: vector environment; its spaces define what a row holds.
        seed: of the buffer's own generator.
        capacity: rows over all environments, ``capacity // E`` for each. When a ring is full, its
            oldest row is overwritten, and the transition that starts there forgotten.
        batch_size: B.
        discount: gamma per environment step, in [0, 1].
        n_step: largest number of rewards that a transition sums.
        storage: ``ram``, the memory of ``device``; or ``disk``, for more rows than fit in memory:
            files in the folder for temporary files ($TMPDIR), deleted when the process ends.
        device: where rows are kept and batches returned; it does not affect which are drawn.

    Attributes:
        observation_space: of one environment.
        action_space: of one environment.
        memory_bytes: host memory that the full buffer takes.

    Raises:
        ValueError: for a number outside its range, an unsupported ``storage`` or space, or rows
            that do not fit.

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
        storage: str,
        device: str,
    ) -> None:
        frame_stack = env.metadata.get("frame_stack", 1)
        check_numbers(env.num_envs, capacity, batch_size, discount, n_step, frame_stack)
        self.batch_size = batch_size
        self.discount = discount
        self.n_step = n_step
        self.device = data_device(device)
        obs_space = self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self._obs_keys = list(obs_space.spaces) if isinstance(obs_space, spaces.Dict) else None
        self._stacks = None
        if frame_stack > 1:
            self._stacks = FrameStacks(obs_space, frame_stack=frame_stack, n_step=n_step)
        obs_leaves = {"obs": self._stacks.leaf} if self._stacks else name_obs_leaves(obs_space)
        self._obs_names = list(obs_leaves)
        # So an observation lies next to the action, reward and observation of the next row.
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
        index_bytes += num_rows * NStepReturns.bytes_per_row * (n_step > 1)
        what, way_out = f"a replay buffer of {capacity:,} rows", "lower dataset.capacity"
        if storage not in ("ram", "disk") or (storage == "disk" and self.device.type == "cuda"):
            raise ValueError(f"storage must be ram, or disk with device=cpu, got {storage}")
        on_host = self.device.type == "cpu" and storage == "ram"
        self.memory_bytes = row_bytes * on_host + index_bytes
        if storage == "disk":
            require_disk(row_bytes, what)
        elif not on_host:
            require_memory(row_bytes, what, self.device, way_out)
        require_memory(self.memory_bytes, what, torch.device("cpu"), way_out)
        self._rings = EpisodeRings(env.num_envs, ring_rows=ring_rows, **spans)
        self._storage = RowStorage(
            leaves,
            num_rows=num_rows,
            num_staged=env.num_envs,
            device=self.device,
            on_disk=storage == "disk",
            apart=["obs"] if frame_stack > 1 else [],
        )
        self._returns = None
        if n_step > 1:
            self._returns = NStepReturns(num_rows, env.num_envs, n_step=n_step, discount=discount)
        self._reader = TransitionReader(
            self._storage,
            self._rings,
            self._stacks,
            self._returns,
            obs_names=self._obs_names,
            obs_keys=self._obs_keys,
            discount=discount,
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._state_before_draw = self._generator.get_state()
        self._thread = ThreadPoolExecutor(1, "sample")
        self._prepared: Future[PackedBatch[Transition]] | None = None
        self._journal: Journal | None = None

    def __len__(self) -> int:
        """Number of transitions that ``sample`` chooses from."""
        return len(self._rings.starts)

    def start_episodes(
        self, obs: ArrayTree, mask: np.ndarray, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Begin an episode in every environment where ``mask`` (E,) is true.

        Args:
            obs: (E, O), or a dict of such; the entries of other environments are ignored.
            mask: the environments that were reset.
            info: chosen infos (E, ...) that came with ``obs``, by name.

        Raises:
            ValueError: one of them has a running episode, or a stack of frames that differ.
            UserError: ``obs`` does not fit the observation space.

        """
        if self._stacks:
            if not isinstance(obs, np.ndarray):
                raise UserError(NO_DICT)
            self._stacks.check_first(obs[mask])
        self._discard_prepared()
        self._stage_obs(obs)
        sources, rows = self._rings.start(np.flatnonzero(mask).tolist())
        self._storage.write(sources, rows)

    def add(self, step: Step) -> None:
        """Store one step of all environments.

        Raises:
            ValueError: an environment has no running episode.
            UserError: an array does not fit its space.

        """
        self._discard_prepared()
        self._storage.stage("action", step.action)
        self._storage.stage("reward", step.reward)
        self._storage.stage("continues", np.logical_not(step.terminated))
        self._stage_obs(step.next_obs)
        sources, rows = self._rings.step(np.logical_or(step.terminated, step.truncated).tolist())
        self._storage.write(sources, rows)
        if self._returns:
            self._returns.add(step.reward.astype(np.float32).tolist())
            self._returns.complete(self._rings.completed, step.terminated)

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Truncate the running episodes where ``mask`` (E,) is true at their newest observations.

        For environments that cannot resume their episodes, as after loading a state in a new
        process; each must start an episode before the next ``add``.
        """
        self._discard_prepared()
        self._rings.end_running(np.flatnonzero(mask).tolist())
        if self._returns:
            self._returns.complete(self._rings.completed, np.zeros_like(mask))

    def sample(self) -> Transition:
        """B transitions, each equally likely, with replacement.

        Observations of stacked frames may share memory with each other.

        Raises:
            UserError: there is no transition yet.

        """
        batch = self.sample_packed()
        return batch.unpack(batch.memory)

    def sample_packed(self) -> PackedBatch[Transition]:
        """The batch that ``sample`` would return, in memory copied to a device as a whole."""
        if self._prepared is None:
            return self._reader.read(self._draw(), pinned=False)
        batch, self._prepared = self._prepared.result(), None
        return batch

    def prepare(self, *, pinned: bool) -> None:
        """Begin to gather, in a thread, the batch that is sampled next.

        If anything is added before that, the batch is drawn again, as if it had not been prepared.

        Args:
            pinned: whether to gather into pinned memory, which a GPU reads directly.

        Raises:
            UserError: there is no transition yet.

        """
        if self._prepared is None:
            self._state_before_draw = self._generator.get_state()
            self._prepared = self._thread.submit(self._reader.read, self._draw(), pinned=pinned)

    def save(self, folder: Path) -> dict[str, Any]:
        """Tensors and plain values from which the same samples follow.

        Only the rows added since the last call are written to ``folder``; the state refers to them.
        Its tensors share memory with the buffer: save them before the next ``add``.

        Raises:
            OSError: the rows cannot be written; the rows of earlier states are intact.

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
            "generator": (
                self._state_before_draw if self._prepared else self._generator.get_state()
            ),
        }

    def load(self, state: dict[str, Any], folder: Path) -> None:
        """Continue exactly from where ``save`` was called; running episodes continue.

        Raises:
            ValueError: the state is of a buffer of other sizes.
            DamagedFile: a file is not what was saved.

        """
        if state["layout"] != self._layout():
            raise ValueError(
                f"the replay buffer was saved as {state['layout']}, but is now {self._layout()}"
            )
        self._discard_prepared()
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
        if self._returns:
            self._restore(self._returns)
        self._generator.set_state(state["generator"])
        self._journal = journal

    def _draw(self) -> Tensor:
        """The rows where the transitions of a batch start, (B,)."""
        if not len(self._rings.starts):
            raise UserError(
                f"nothing to sample: the replay buffer holds no complete transition of n_step="
                f"{self.n_step}; collect more steps before the first update"
            )
        return self._rings.starts.draw(self.batch_size, self._generator)

    def _discard_prepared(self) -> None:
        """Undo ``prepare``; to be called before anything changes."""
        if self._prepared is not None:
            self._prepared.result()
            self._prepared = None
            self._generator.set_state(self._state_before_draw)

    def _restore(self, returns: NStepReturns) -> None:
        """Compute the returns of the rows that were loaded."""
        reward, continues = (self._storage.column(name).cpu() for name in ("reward", "continues"))
        starts = self._rings.starts.members()
        returns.restore(starts, self._rings.num_steps(starts), reward, continues)
        newest = [self._rings.newest_rows(env) for env in range(self._rings.num_envs)]
        returns.restore_recent([reward[rows.start : rows.stop].tolist() for rows in newest])

    def _make_journal(self, folder: Path) -> Journal:
        rows_bytes = sum(rows.nbytes for rows in self._storage.groups.values())
        return Journal(
            folder,
            num_rings=self._rings.num_envs,
            segment_bytes=max(2**24, rows_bytes // 16),
        )

    def _stage_obs(self, obs: ArrayTree) -> None:
        if isinstance(obs, dict):
            if self._obs_keys is None:
                raise UserError(NO_DICT)
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
