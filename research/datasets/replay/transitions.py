"""Batches of n-step transitions, gathered from rows of steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from research.batches import PackedBatch, Transition, Tree
from research.datasets.replay.frames import FrameStacks
from research.datasets.replay.returns import NStepReturns
from research.datasets.replay.rings import EpisodeRings
from research.datasets.replay.storage import RowStorage, Window


class TransitionReader:
    """Gathers the transitions that start at given rows.

    Args:
        storage: rows with ``action``, ``reward``, ``continues`` and observations.
        rings: which rows belong together, and n.
        stacks: makes observations from frames; None if a row holds whole observations.
        returns: sums of rewards, and discounts, of n-step transitions; None if n is 1.
        obs_names: the leaves of an observation.
        obs_keys: their keys in a Dict space; None for any other.
        discount: gamma per environment step.

    """

    def __init__(
        self,
        storage: RowStorage,
        rings: EpisodeRings,
        stacks: FrameStacks | None,
        returns: NStepReturns | None,
        *,
        obs_names: Sequence[str],
        obs_keys: Sequence[str] | None,
        discount: float,
    ) -> None:
        self.storage = storage
        self.rings = rings
        self.stacks = stacks
        self.on_host = storage.device.type == "cpu"
        self.returns = returns
        self.obs_keys = obs_keys
        names = [] if stacks else obs_names  # the frames of stacks are gathered apart
        self.num_obs = len(names)
        obs = [(name, 0) for name in names]
        if returns is None:
            led_to = ["action", "reward", "continues", *names]
            self.step = Window(storage, [*obs, *((name, 1) for name in led_to)])
            # A tensor: multiplying by a number takes twice as long.
            self.gamma = torch.tensor(discount, device=storage.device)
        else:
            self.first = Window(storage, [*obs, ("action", 1)])
            self.last = Window(storage, obs)

    def read(self, starts: Tensor, *, pinned: bool) -> PackedBatch[Transition]:
        """The transitions (B, ...) that start at these rows (B,).

        Args:
            starts: on the host.
            pinned: whether to put the batch in pinned memory, which a GPU reads directly.

        """
        batch = self.one_step(starts) if self.returns is None else self.n_steps(starts)
        if pinned:
            return PackedBatch([tensor.pin_memory() for tensor in batch.memory], batch.unpack)
        return batch

    def one_step(self, starts: Tensor) -> PackedBatch[Transition]:
        """Transitions of one step each."""
        memory = self.step.gather(self.on_device(starts))
        if self.stacks is not None:
            memory.append(self.gather_frames(self.stacks, starts, None))
        return PackedBatch(memory, self.unpack_one_step)

    def unpack_one_step(self, memory: Sequence[Tensor]) -> Transition:
        """The transitions in what ``one_step`` gathered."""
        parts = self.step.cut(memory)
        action, reward, continues = parts[self.num_obs : self.num_obs + 3]
        if self.stacks is not None:
            obs, next_obs = self.stacks.cut(memory[-1])
        else:
            obs, next_obs = self.tree(parts[: self.num_obs]), self.tree(parts[-self.num_obs :])
        return Transition(obs, action, reward, continues * self.gamma, next_obs)

    def n_steps(self, starts: Tensor) -> PackedBatch[Transition]:
        """Transitions of up to n steps each."""
        assert self.returns is not None, "transitions of one step have no returns"
        num_steps = self.rings.num_steps(starts)
        memory = [
            *self.first.gather(self.on_device(starts)),
            *self.last.gather(self.on_device(starts + num_steps)),
            self.on_device(self.returns.read(starts)),
        ]
        if self.stacks is not None:
            memory.append(self.gather_frames(self.stacks, starts, num_steps))
        return PackedBatch(memory, self.unpack_n_steps)

    def unpack_n_steps(self, memory: Sequence[Tensor]) -> Transition:
        """The transitions in what ``n_steps`` gathered."""
        num_first, num_windows = len(self.first), len(self.first) + len(self.last)
        *obs, action = self.first.cut(memory[:num_first])
        reward, discount = memory[num_windows].unbind(1)
        if self.stacks is not None:
            first, last = self.stacks.cut(memory[-1])
        else:
            first, last = self.tree(obs), self.tree(self.last.cut(memory[num_first:num_windows]))
        return Transition(first, action, reward, discount, last)

    def gather_frames(
        self, stacks: FrameStacks, starts: Tensor, num_steps: Tensor | None
    ) -> Tensor:
        """The frames of the first and last stacks."""
        num_earlier = self.rings.num_earlier(starts)
        return stacks.gather(self.storage.groups["obs"], starts, num_earlier, num_steps)

    def on_device(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device of the rows."""
        # On the host, ``to`` would copy nothing, but take as long as some of the copies.
        return tensor if self.on_host else tensor.to(self.storage.device)

    def tree(self, parts: Sequence[Tensor]) -> Tree:
        """An observation from its leaves."""
        return parts[0] if self.obs_keys is None else dict(zip(self.obs_keys, parts, strict=True))
