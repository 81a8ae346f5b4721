"""From rows of steps to batches of n-step transitions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from research.batches import Transition, Tree, copy_shared
from research.datasets.replay.frames import FrameStacks
from research.datasets.replay.returns import NStepReturns
from research.datasets.replay.rings import EpisodeRings
from research.datasets.replay.storage import RowStorage, Window


class TransitionReader:
    """Gathers the transitions that start at given rows.

    Args:
        storage: rows with ``action``, ``reward``, ``continues`` and observations.
        rings: which rows belong together, and n.
        stacks: makes observations of frames; None if a row holds whole observations.
        returns: what transitions of several steps earned; None for n of 1.
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
        names = [] if stacks else obs_names  # stacks need rows that no window has
        obs = [(name, 0) for name in names]
        if returns is None:
            led_to = ["action", "reward", "continues", *names]
            self.step = Window(storage, [*obs, *((name, 1) for name in led_to)])
            # A tensor, which multiplies in half the time of a number.
            self.gamma = torch.tensor(discount, device=storage.device)
        else:
            self.first = Window(storage, [*obs, ("action", 1)])
            self.last = Window(storage, obs)

    def read(self, starts: Tensor, *, pinned: bool) -> Transition:
        """The transitions (B, ...) from these rows (B,) on.

        Args:
            starts: on the host.
            pinned: whether the batch is to be where a GPU can read it by itself.

        """
        batch = self.one_step(starts) if self.returns is None else self.n_steps(starts)
        return copy_shared(Tensor.pin_memory, batch) if pinned else batch

    def read_stacks(self, starts: Tensor, num_steps: Tensor | None) -> Sequence[Tensor]:
        """First and last stacks of frames; nothing if observations are no stacks."""
        if self.stacks is None:
            return ()
        frames, num_earlier = self.storage.groups["obs"], self.rings.num_earlier(starts)
        return self.stacks.read(frames, starts, num_earlier, num_steps)

    def one_step(self, starts: Tensor) -> Transition:
        """Transitions of one step each."""
        stacks = self.read_stacks(starts, None)
        parts = self.step.read(self.on_device(starts))
        num_obs = (len(parts) - 3) // 2
        action, reward, continues = parts[num_obs : num_obs + 3]
        return Transition(
            self.tree(parts[:num_obs] or stacks[:1]),
            action,
            reward,
            continues.mul_(self.gamma),
            self.tree(parts[num_obs + 3 :] or stacks[1:]),
        )

    def n_steps(self, starts: Tensor) -> Transition:
        """Transitions of up to n steps each."""
        assert self.returns is not None, "transitions of one step have no returns"
        num_steps = self.rings.num_steps(starts)
        stacks = self.read_stacks(starts, num_steps)
        *obs, action = self.first.read(self.on_device(starts))
        next_obs = self.last.read(self.on_device(starts + num_steps))
        reward, discount = self.on_device(self.returns.read(starts)).unbind(1)
        next_obs = self.tree(next_obs or stacks[1:])
        return Transition(self.tree(obs or stacks[:1]), action, reward, discount, next_obs)

    def on_device(self, tensor: Tensor) -> Tensor:
        """``tensor`` where the rows are."""
        # To be told that it is there takes as long as some of the copies.
        return tensor if self.on_host else tensor.to(self.storage.device)

    def tree(self, parts: Sequence[Tensor]) -> Tree:
        """An observation of its leaves."""
        return parts[0] if self.obs_keys is None else dict(zip(self.obs_keys, parts, strict=True))
