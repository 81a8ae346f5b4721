"""Experience of running environments, sampled as n-step transitions or what a reader makes."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from research.batches import ArrayTree, PackedBatch, Step, add_weight
from research.datasets.replay.frames import FrameStacks, may_be_stacks
from research.datasets.replay.journal import Block, Journal
from research.datasets.replay.prioritised_rows import PrioritisedRows, PrioritisedRowsFactory
from research.datasets.replay.reader import EpisodeRows, ReaderFactory
from research.datasets.replay.rings import EpisodeRings, RingSizes
from research.datasets.replay.row_set import RowSet
from research.datasets.replay.storage import Leaf, RowStorage, compute_row_bytes, leaf_of, send
from research.datasets.replay.sum_tree import SumTree
from research.datasets.replay.transitions import Transitions
from research.errors import DamagedFile, UserError
from research.machine.device import data_device
from research.machine.disk import require_disk
from research.machine.memory import available_on, require_memory
from research.ranges import Fraction, PositiveInt


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
    """The newest steps of E environments; a batch is drawn from all their samples.

    It is drawn uniformly, or by ``priorities``; batches are then ``WeightedTransition``s.

    What a sample is, by default a transition of up to ``n_step`` steps, is up to the reader.

    Every observation is stored once: a row holds an observation with the action, the reward and
    the termination that led to it, so an episode of T steps takes T + 1 rows. Every environment
    has a ring of its own, since their episodes end at different times.

    Where ``env.metadata["frame_stack"]`` is S above 1, observations are the S newest frames of an
    episode, uint8 (S * C, H, W), the oldest first, and its first observation is S times the same
    frame; so is every part of a Dict that is uint8 and has three axes. Then a row holds one frame
    of each. A sample is forgotten with the oldest frame of the stack that it starts from.

    float64 is stored as float32, every other type as it is.

    Args:
        env: vector environment; its spaces define what a row holds.
        seed: of the buffer's own generator.
        capacity: rows over all environments, ``capacity // E`` for each. When a ring is full, its
            oldest row is overwritten, and the sample that starts there forgotten.
        batch_size: B.
        discount: gamma per environment step.
        n_step: largest number of rewards that a transition sums.
        storage: ``ram``, the memory of ``device``; or ``disk``, for more rows than fit in memory:
            files in the folder for temporary files ($TMPDIR), deleted when the process ends.
        device: where rows are kept and batches returned; it does not affect which are drawn.
            ``auto`` is the first GPU if all rows take at most half of the memory that is free
            there when the buffer is made, else the CPU; it is for a run that has the GPU to itself.
        reader: makes what reads batches from rows; given ``n_step`` and ``discount``.
        priorities: makes the set of the rows where samples may start, from which they are drawn by
            their priorities; None to draw uniformly.

    Attributes:
        observation_space: of one environment.
        action_space: of one environment.
        memory_bytes: host memory that the full buffer takes.
        is_prioritised: whether it has priorities.

    Raises:
        ValueError: for a capacity out of range, an unsupported space, rows that do not fit, or
            priorities of other samples than transitions.

    """

    batches_per_epoch: int | None = None

    def __init__(
        self,
        env: Environments,
        seed: int,
        *,
        capacity: PositiveInt,
        batch_size: PositiveInt,
        discount: Fraction,
        n_step: PositiveInt,
        storage: Literal["ram", "disk"],
        device: str,
        reader: ReaderFactory = Transitions,
        priorities: PrioritisedRowsFactory | None = None,
    ) -> None:
        self.capacity = capacity
        self.batch_size = batch_size
        self.on_disk = storage == "disk"
        self._may_move = device == "auto"
        self.device = data_device("cpu" if self._may_move and self.on_disk else device)
        if self.on_disk and self.device.type == "cuda":
            raise ValueError("storage=disk keeps rows on the host, which needs device=cpu")
        frame_stack = env.metadata.get("frame_stack", 1)
        read = self._reader = reader(n_step, discount)
        self._make_starts = priorities or RowSet
        self.is_prioritised = priorities is not None
        if self.is_prioritised and not isinstance(read, Transitions):
            raise ValueError(
                f"priorities are those of transitions, but the reader is a {type(read).__name__}; "
                "set dataset.priorities=null"
            )
        check_sizes(capacity, env.num_envs, read.max_steps, frame_stack)
        ring_rows = capacity // env.num_envs
        self._sizes = RingSizes(
            env.num_envs, ring_rows, read.min_steps, read.max_steps, frame_stack
        )
        obs_space = self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self._obs_keys = list(obs_space.spaces) if isinstance(obs_space, spaces.Dict) else None
        self._stacks = make_stacks(obs_space, frame_stack, read.max_steps)
        self._obs = name_obs_leaves(obs_space)
        self._obs |= {name: stacks.leaf for name, stacks in self._stacks.items()}
        self._action = leaf_of(env.single_action_space, "actions")
        self._extras: dict[str, Leaf] = {}
        self._info: dict[str, Leaf] = {}
        self.memory_bytes = self._require_memory()
        self._rank, self._num_ranks = 0, 1
        self._generator = torch.Generator().manual_seed(seed)
        self._state_before_draw = self._generator.get_state()
        self._thread = ThreadPoolExecutor(1, "sample")
        self._prepared: Future[PackedBatch[Any]] | None = None
        self._journal: Journal | None = None

    def __len__(self) -> int:
        """Number of samples that ``sample`` chooses from."""
        return len(self._rings.starts)

    def hold(
        self, extras: Mapping[str, tuple[int, ...]], info: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Store values besides those of every environment; called once, before the first step.

        Batches of transitions are then ``ExtendedTransition``s.

        Args:
            extras: shape of each value, float32, that every ``Step.extras`` brings from now on.
            info: the same for ``Step.next_info``, and ``info`` of ``start_episodes``.

        Raises:
            ValueError: there are steps already, or the rows do not fit.

        """
        if "_rows" in vars(self):
            if any(self._rings.num_written):
                raise ValueError("hold must be called before the first step")
            del self._rows
        self._extras, self._info = (
            {name: Leaf(tuple(shape), torch.float32) for name, shape in shapes.items()}
            for shapes in (extras, info)
        )
        self.memory_bytes = self._require_memory()

    def share(self, rank: int, num_ranks: int) -> None:
        """Hand out a rank's share of every batch; all ranks must store the same steps.

        Raises:
            ValueError: a batch has fewer samples than there are ranks, or is drawn by priorities,
                of which each rank would know its own alone.

        """
        if num_ranks > 1 and self.is_prioritised:
            raise ValueError(
                f"priorities cannot be shared by {num_ranks} ranks; set trainer.devices=1, or "
                "dataset=replay"
            )
        if self.batch_size < num_ranks:
            raise ValueError(
                f"batch_size={self.batch_size} is too small for {num_ranks} ranks; raise "
                "dataset.batch_size"
            )
        self._rank, self._num_ranks = rank, num_ranks

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
            UserError: ``obs`` does not fit the observation space, or ``info`` what is held.

        """
        if self._stacks:
            for name, values in self._parts(obs):
                if name in self._stacks:
                    self._stacks[name].check_first(values[mask])
        self._discard_prepared()
        self._stage_obs(obs)
        if info or self._info:
            self._stage_held("info", info or {}, self._info)
        for envs, rows in self._rings.start(mask):
            self._storage.write(envs, rows)

    def add(self, step: Step) -> None:
        """Store one step of all environments, or of the active ones.

        Raises:
            ValueError: one of them has no running episode.
            UserError: an array does not fit its space, or a value what is held.

        """
        self._discard_prepared()
        storage, rings = self._rows.storage, self._rows.rings
        storage.stage("action", step.action)
        storage.stage("reward", step.reward)
        storage.stage("continues", np.logical_not(step.terminated))
        self._stage_obs(step.next_obs)
        if step.extras or self._extras:
            self._stage_held("extras", step.extras, self._extras)
        if step.next_info or self._info:
            self._stage_held("info", step.next_info, self._info)
        written = rings.step(np.logical_or(step.terminated, step.truncated), step.active)
        for envs, rows in written:
            storage.write(envs, rows)
        self._reader.follow(step)

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Truncate the running episodes where ``mask`` (E,) is true at their newest observations.

        For environments that cannot resume their episodes, as after loading a state in a new
        process; each must start an episode before its next step.
        """
        self._discard_prepared()
        self._rings.end_running(mask)
        self._reader.follow(None)

    def sample(self) -> Any:  # what the reader makes
        """B samples with replacement, each equally likely unless there are priorities.

        Observations of stacked frames may share memory with each other.

        Raises:
            UserError: there is no sample yet.

        """
        batch = self.sample_packed()
        return batch.unpack(batch.memory)

    def sample_packed(self) -> PackedBatch[Any]:
        """The batch that ``sample`` would return, in memory copied to a device as a whole."""
        if self._prepared is None:
            batch = self._reader.read(self._draw(), pinned=False)
            return self._weigh(batch) if self.is_prioritised else batch
        batch, self._prepared = self._prepared.result(), None
        return batch

    def prepare(self, *, pinned: bool) -> None:
        """Begin to gather, in a thread, the batch that is sampled next.

        If anything is added before that, the batch is drawn again, as if it had not been prepared.

        Args:
            pinned: whether to gather into pinned memory, which a GPU reads directly.

        Raises:
            UserError: there is no sample yet.

        """
        assert not self.is_prioritised, "the errors of the batch before may not be known"
        if self._prepared is None:
            self._state_before_draw = self._generator.get_state()
            self._prepared = self._thread.submit(self._reader.read, self._draw(), pinned=pinned)

    def anneal(self, share: float) -> None:
        """Tell the priorities, before a batch, that ``share`` of the run is over, in [0, 1]."""
        self._priorities.anneal(share)

    def prioritise(self, errors: Tensor) -> None:
        """Set the priorities of the samples of the last batch by their errors (B,).

        It does not wait for the device of ``errors``. A sample that was overwritten since has none.
        """
        self._priorities.prioritise(errors)

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
            **({"priorities": self._priorities.state_dict()} if self.is_prioritised else {}),
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
        if self.is_prioritised:
            self._priorities.load_state_dict(state["priorities"])
        journal = self._make_journal(folder)
        journal.load_state_dict(state["journal"])
        if journal.stops != self._rings.num_written:
            raise DamagedFile(f"{folder}: rows of the replay buffer are missing")
        for block, fill in journal.blocks():
            counts = [stop - first for first, stop in zip(*block, strict=True)]
            if not 0 <= min(counts) <= max(counts) <= self._sizes.ring_rows or min(block.first) < 0:
                raise DamagedFile(f"{folder}: a block has {max(counts)} rows")
            self._storage.fill_rows(self._rings.spans(*block), fill)
        for source, target in self._rings.repeated():
            self._storage.repeat(source, target, self._sizes.num_repeated)
        self._reader.restore()
        self._generator.set_state(state["generator"])
        self._journal = journal

    @cached_property
    def _rows(self) -> EpisodeRows:
        """The rows, allocated when they are first needed."""
        rings = EpisodeRings(self._sizes, self._make_starts(self._sizes.num_rows))
        storage = RowStorage(
            self._leaves,
            num_rows=self._sizes.num_rows,
            num_staged=self._sizes.num_envs,
            device=self.device,
            on_disk=self.on_disk,
            apart=list(self._stacks),
        )
        rows = EpisodeRows(
            storage,
            rings,
            self._stacks,
            obs=list(self._obs),
            obs_keys=self._obs_keys,
            extras=list(self._extras),
            info=list(self._info),
        )
        self._reader.open(rows)
        return rows

    @property
    def _rings(self) -> EpisodeRings:
        return self._rows.rings

    @property
    def _priorities(self) -> PrioritisedRows:
        starts = self._rings.starts
        assert isinstance(starts, PrioritisedRows), "this buffer draws uniformly"
        return starts

    @property
    def _storage(self) -> RowStorage:
        return self._rows.storage

    @property
    def _leaves(self) -> dict[str, Leaf]:
        """What a row holds: an observation lies next to what led to the observation after it."""
        return {
            "action": self._action,
            **{f"extras.{name}": leaf for name, leaf in self._extras.items()},
            "reward": Leaf((), torch.float32),
            "continues": Leaf((), torch.float32),
            **self._obs,
            **{f"info.{name}": leaf for name, leaf in self._info.items()},
        }

    def _require_memory(self) -> int:
        """Check that the rows fit; returns the bytes of host memory that they will take."""
        num_rows = self._sizes.num_rows
        row_bytes = num_rows * compute_row_bytes(self._leaves.values())
        per_row = self._reader.bytes_per_row + SumTree.bytes_per_value * self.is_prioritised
        index_bytes = self._sizes.bookkeeping_bytes + num_rows * per_row
        what, way_out = f"a replay buffer of {self.capacity:,} rows", "lower dataset.capacity"
        if self._may_move and row_bytes > available_on(self.device) / 2:
            self.device = torch.device("cpu")
        on_host = self.device.type == "cpu" and not self.on_disk
        if self.on_disk:
            require_disk(row_bytes, what)
        elif not on_host:
            require_memory(row_bytes, what, self.device, way_out)
        memory_bytes = row_bytes * on_host + index_bytes
        require_memory(memory_bytes, what, torch.device("cpu"), way_out)
        return memory_bytes

    def _draw(self) -> Tensor:
        """The rows where the transitions of a batch start, (B,)."""
        if not len(self._rings.starts):
            raise UserError(
                f"nothing to sample: the replay buffer holds no complete sample of "
                f"{self._sizes.max_steps} steps; collect more steps before the first update"
            )
        starts = self._rings.starts.draw(self.batch_size, self._generator)
        return starts.tensor_split(self._num_ranks)[self._rank] if self._num_ranks > 1 else starts

    def _weigh(self, batch: PackedBatch[Any]) -> PackedBatch[Any]:
        """The batch with the importance weights of the rows that were drawn for it."""
        weight = self._priorities.weights()
        if self.device.type != "cpu":
            weight = send(weight, self._storage.device)
        return PackedBatch(
            [*batch.memory, weight],
            lambda memory: add_weight(batch.unpack(memory[:-1]), memory[-1]),
        )

    def _discard_prepared(self) -> None:
        """Undo ``prepare``; to be called before anything changes."""
        if self._prepared is not None:
            self._prepared.result()
            self._prepared = None
            self._generator.set_state(self._state_before_draw)

    def _make_journal(self, folder: Path) -> Journal:
        rows_bytes = sum(rows.nbytes for rows in self._storage.groups.values())
        return Journal(
            folder,
            num_rings=self._sizes.num_envs,
            segment_bytes=max(2**24, rows_bytes // 16),
        )

    def _stage_obs(self, obs: ArrayTree) -> None:
        for name, values in self._parts(obs):
            stacks = self._stacks.get(name)
            self._storage.stage(name, stacks.newest(values) if stacks else values)

    def _parts(self, obs: ArrayTree) -> list[tuple[str, np.ndarray]]:
        """The arrays of observations by the names of their leaves."""
        if not isinstance(obs, dict):
            return [("obs", obs)]
        if self._obs_keys is None:
            raise UserError(NO_DICT)
        return [(name, obs[key]) for name, key in zip(self._obs, self._obs_keys, strict=True)]

    def _stage_held(
        self, kind: str, given: Mapping[str, np.ndarray], held: Mapping[str, Leaf]
    ) -> None:
        """Stage the values of all environments that ``hold`` was told of."""
        if given.keys() != held.keys():
            raise UserError(
                f"the {kind} of a step must be {', '.join(held) or 'none'}, as declared before the "
                f"first step; got {', '.join(given) or 'none'}"
            )
        for name, leaf in held.items():
            shape = (self._sizes.num_envs, *leaf.shape)
            if np.shape(given[name]) != shape:
                raise UserError(
                    f"{kind}.{name} must have shape {shape}, as declared before the first step; "
                    f"got {np.shape(given[name])}"
                )
            self._storage.stage(f"{kind}.{name}", given[name])

    def _layout(self) -> dict[str, Any]:
        widths = {name: rows.shape[1] for name, rows in self._storage.groups.items()}
        held = {"extras": self._extras, "info": self._info}
        return {
            "num_envs": self._sizes.num_envs,
            "rows_per_env": self._sizes.ring_rows,
            "n_step": self._sizes.max_steps,
            **({"min_steps": self._sizes.min_steps} if self._sizes.min_steps > 1 else {}),
            **({"frame_stack": self._sizes.frame_stack} if self._stacks else {}),
            **({"prioritised": True} if self.is_prioritised else {}),
            **{
                kind: {n: list(leaf.shape) for n, leaf in values.items()}
                for kind, values in held.items()
                if values
            },
            **widths,
        }


def check_sizes(capacity: int, num_envs: int, max_steps: int, frame_stack: int) -> None:
    """Refuse an environment that no buffer suits, and a capacity that does not suit it."""
    if num_envs < 1:
        raise ValueError("a replay buffer needs an environment that fills it, env has none")
    if frame_stack < 1:
        raise ValueError(f"the environments' frame_stack must be at least 1, got {frame_stack}")
    ring_rows = max_steps + frame_stack
    if not ring_rows * num_envs <= capacity < 2**30:
        raise ValueError(
            f"capacity must be at least {ring_rows * num_envs}, {ring_rows} rows for each "
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


def make_stacks(space: Space[Any], frame_stack: int, n_step: int) -> dict[str, FrameStacks]:
    """The stacks of every leaf that holds one frame of each; none if ``frame_stack`` is 1."""
    if frame_stack == 1:
        return {}
    parts = {"obs": space}
    if isinstance(space, spaces.Dict):
        images = {key: part for key, part in space.spaces.items() if may_be_stacks(part)}
        # without an image FrameStacks refuses the whole Dict
        parts = {f"obs.{key}": part for key, part in images.items()} or parts
    return {
        name: FrameStacks(part, frame_stack=frame_stack, n_step=n_step)
        for name, part in parts.items()
    }
