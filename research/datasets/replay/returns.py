"""Rewards of n-step transitions, summed once instead of at every sampling."""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from research.datasets.replay.rings import Completed


class NStepReturns:
    """Discounted sum of rewards and final discount of every transition, by the row of its start.

    Args:
        num_rows: of all rings.
        num_envs: E.
        n_step: n, at least 2.
        discount: gamma per environment step.

    """

    bytes_per_row = 8

    def __init__(self, num_rows: int, num_envs: int, *, n_step: int, discount: float) -> None:
        self.powers = [discount**k for k in range(n_step + 1)]
        self.values = torch.empty(num_rows, 2)
        self._array = self.values.numpy()
        self._recent = [deque[float](maxlen=n_step) for _ in range(num_envs)]

    def add(self, rewards: Sequence[float]) -> None:
        """Add the newest reward of every environment."""
        for recent, reward in zip(self._recent, rewards, strict=True):
            recent.append(reward)

    def complete(self, completed: Iterable[Completed], terminated: np.ndarray) -> None:
        """Set the sums and discounts of ``completed`` transitions; ``terminated`` is (E,)."""
        for env, row, num_steps in completed:
            recent, total = self._recent[env], 0.0
            first = len(recent) - num_steps
            for k in range(num_steps):
                total += self.powers[k] * recent[first + k]
            self._array[row] = total, 0.0 if terminated[env] else self.powers[num_steps]

    def read(self, starts: Tensor) -> Tensor:
        """Sum and discount (B, 2) of the transitions that start at these rows (B,)."""
        return self.values.index_select(0, starts)

    def restore(
        self, starts: Tensor, num_steps: Tensor, rewards: Tensor, continues: Tensor
    ) -> None:
        """Set the sums and discounts of all transitions, bit for bit as ``complete`` set them.

        Args:
            starts: (B,), the rows where they start.
            num_steps: (B,).
            rewards: (num_rows,).
            continues: (num_rows,), 0 in a row whose observation is terminal, else 1.

        """
        starts = starts.long()
        total = torch.zeros(len(starts), dtype=torch.float64)
        for k, power in enumerate(self.powers[:-1]):
            # Rows after the episode's end may hold anything, even NaN.
            earned = power * rewards[(starts + k + 1).clamp(max=len(rewards) - 1)].double()
            total += torch.where(k < num_steps, earned, 0.0)
        powers = torch.tensor(self.powers, dtype=torch.float64)[num_steps.long()]
        self.values[starts, 0] = total.float()
        self.values[starts, 1] = (powers * continues[starts + num_steps]).float()

    def restore_recent(self, recent: Iterable[Sequence[float]]) -> None:
        """Set the newest rewards of every environment's open episode, oldest first."""
        for queue, rewards in zip(self._recent, recent, strict=True):
            queue.clear()
            queue.extend(rewards)
