"""Batches of n-step transitions, gathered from rows of steps."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from research.batches import ExtendedTransition, PackedBatch, Step, Transition, Tree
from research.datasets.replay.reader import EpisodeRows
from research.datasets.replay.returns import NStepReturns
from research.datasets.replay.storage import Window, send


class Transitions:
    """A ``Reader`` of n-step transitions.

    A transition that starts k steps before the end of its episode, k below n, sums k rewards and
    looks k steps ahead, to the episode's real final observation. If the rows have extras or infos,
    a batch is an ``ExtendedTransition``.

    Args:
        n_step: n, the largest number of rewards that a transition sums.
        discount: gamma per environment step.

    """

    min_steps = 1

    def __init__(self, n_step: int, discount: float, /) -> None:  # the buffer's keys, not its own
        self.max_steps = n_step
        self.discount = discount
        self.bytes_per_row = NStepReturns.bytes_per_row * (n_step > 1)
        self.returns: NStepReturns | None = None

    def open(self, rows: EpisodeRows) -> None:
        storage = rows.storage
        self.rows = rows
        self.on_host = storage.device.type == "cpu"
        # the frames of stacks are gathered apart
        obs = [name for name in rows.obs if name not in rows.stacks]
        self.num_obs = len(obs)
        self.stacks = [
            (place, rows.stacks[n]) for place, n in enumerate(rows.obs) if n in rows.stacks
        ]
        self.extras = [f"extras.{name}" for name in rows.extras]
        self.observed = [*obs, *(f"info.{name}" for name in rows.info)]
        first = [(name, 0) for name in self.observed]
        if self.max_steps == 1:
            led_to = ["action", *self.extras, "reward", "continues", *self.observed]
            self.step = Window(storage, [*first, *((name, 1) for name in led_to)])
            # A tensor: multiplying by a number takes twice as long.
            self.gamma = torch.tensor(self.discount, device=storage.device)
        else:
            self.first = Window(storage, [*first, ("action", 1), *((e, 1) for e in self.extras)])
            self.last = Window(storage, first)
            sizes = {"n_step": self.max_steps, "discount": self.discount}
            rings = rows.rings.sizes
            self.returns = NStepReturns(rings.num_rows, rings.num_envs, **sizes)

    def follow(self, step: Step | None) -> None:
        if self.returns is None:
            return
        completed = self.rows.rings.completed
        if step is not None:
            self.returns.add(step.reward, step.active)
            self.returns.complete(completed, step.terminated)
        else:
            self.returns.complete(completed, np.zeros(self.rows.rings.sizes.num_envs, np.bool_))

    def restore(self) -> None:
        if self.returns is None:
            return
        storage, rings = self.rows.storage, self.rows.rings
        reward, continues = (storage.column(name).cpu() for name in ("reward", "continues"))
        starts = rings.starts.members()
        self.returns.restore(starts, rings.num_steps(starts), reward, continues)
        newest, are_running = rings.newest_rows()
        for rewards in np.where(are_running, reward.numpy()[newest], 0.0):
            self.returns.add(rewards)

    def read(self, starts: Tensor, *, pinned: bool) -> PackedBatch[Transition | ExtendedTransition]:
        batch = self.one_step(starts) if self.returns is None else self.n_steps(starts)
        if pinned and self.on_host:
            return PackedBatch([tensor.pin_memory() for tensor in batch.memory], batch.unpack)
        return batch

    def one_step(self, starts: Tensor) -> PackedBatch[Transition | ExtendedTransition]:
        """Transitions of one step each."""
        memory = self.step.gather(self.on_device(starts))
        if self.stacks:
            memory += self.gather_frames(starts, None)
        return PackedBatch(memory, self.unpack_one_step)

    def unpack_one_step(self, memory: Sequence[Tensor]) -> Transition | ExtendedTransition:
        """The transitions in what ``one_step`` gathered."""
        parts = self.step.cut(memory)
        reward_at = len(self.observed) + 1 + len(self.extras)
        first_and_action, (reward, continues) = parts[:reward_at], parts[reward_at : reward_at + 2]
        discount = continues * self.gamma
        return self.join(first_and_action, reward, discount, parts[reward_at + 2 :], memory)

    def n_steps(self, starts: Tensor) -> PackedBatch[Transition | ExtendedTransition]:
        """Transitions of up to n steps each."""
        assert self.returns is not None, "transitions of one step have no returns"
        num_steps = self.rows.rings.num_steps(starts)
        memory = [
            *self.first.gather(self.on_device(starts)),
            *self.last.gather(self.on_device(starts + num_steps)),
            self.on_device(self.returns.read(starts)),
        ]
        if self.stacks:
            memory += self.gather_frames(starts, num_steps)
        return PackedBatch(memory, self.unpack_n_steps)

    def unpack_n_steps(self, memory: Sequence[Tensor]) -> Transition | ExtendedTransition:
        """The transitions in what ``n_steps`` gathered."""
        num_first, num_windows = len(self.first), len(self.first) + len(self.last)
        reward, discount = memory[num_windows].unbind(1)
        first_and_action = self.first.cut(memory[:num_first])
        last = self.last.cut(memory[num_first:num_windows])
        return self.join(first_and_action, reward, discount, last, memory)

    def join(
        self,
        first_and_action: Sequence[Tensor],
        reward: Tensor,
        discount: Tensor,
        last: Sequence[Tensor],
        memory: Sequence[Tensor],
    ) -> Transition | ExtendedTransition:
        """The transitions with these leaves; the frames of stacks end ``memory``."""
        rows, num_obs, num_observed = self.rows, self.num_obs, len(self.observed)
        obs, next_obs = list(first_and_action[:num_obs]), list(last[:num_obs])
        frames = memory[len(memory) - len(self.stacks) :]
        for (place, stacks), gathered in zip(self.stacks, frames, strict=True):
            for leaves, stack in zip((obs, next_obs), stacks.cut(gathered), strict=True):
                leaves.insert(place, stack)
        action = first_and_action[num_observed]
        five = (self.tree(obs), action, reward, discount, self.tree(next_obs))
        if not rows.extras and not rows.info:
            return Transition(*five)
        extras = dict(zip(rows.extras, first_and_action[num_observed + 1 :], strict=True))
        info = dict(zip(rows.info, first_and_action[num_obs:num_observed], strict=True))
        next_info = dict(zip(rows.info, last[num_obs:], strict=True))
        return ExtendedTransition(*five, extras, info, next_info)

    def gather_frames(self, starts: Tensor, num_steps: Tensor | None) -> list[Tensor]:
        """The frames of the first and last stacks, of each leaf that has stacks."""
        groups = self.rows.storage.groups
        num_earlier = self.rows.rings.num_earlier(starts)
        return [
            stacks.gather(groups[self.rows.obs[place]], starts, num_earlier, num_steps)
            for place, stacks in self.stacks
        ]

    def on_device(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device of the rows."""
        # On the host, ``to`` would copy nothing, but take as long as some of the copies.
        return tensor if self.on_host else send(tensor, self.rows.storage.device)

    def tree(self, parts: Sequence[Tensor]) -> Tree:
        """An observation from its leaves."""
        keys = self.rows.obs_keys
        return parts[0] if keys is None else dict(zip(keys, parts, strict=True))
