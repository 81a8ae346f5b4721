"""Rewards of n-step transitions, summed once instead of at every sampling."""

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
        self.powers = np.array([discount**k for k in range(n_step + 1)])
        self.values = torch.empty(num_rows, 2)
        self._totals, self._discounts = self.values.numpy().T
        # The k newest rewards of every environment, discounted and summed, k from 0 to n.
        self._sums = np.zeros((n_step + 1, num_envs))
        # For all these in one line, where NumPy is faster than with two dimensions.
        self._before, self._after = self._sums[:-1].reshape(-1), self._sums[1:].reshape(-1)
        self._weights = self.powers[:-1].repeat(num_envs)
        self._envs = np.tile(np.arange(num_envs), n_step)

    def add(self, rewards: np.ndarray, active: np.ndarray | None = None) -> None:
        """Add the newest reward (E,) of every environment, or of those in ``active`` (E,)."""
        sums = rewards.astype(np.float32).astype(np.float64)[self._envs]
        sums *= self._weights
        sums += self._before
        if active is not None:
            sums = np.where(active[self._envs], sums, self._after)
        self._after[:] = sums

    def complete(self, completed: Completed, terminated: np.ndarray) -> None:
        """Set the sums and discounts of ``completed`` transitions; ``terminated`` is (E,)."""
        envs, rows, num_steps = completed
        discounts = self.powers[num_steps]
        discounts[terminated[envs]] = 0.0
        self._totals[rows] = self._sums[num_steps, envs].astype(np.float32)
        self._discounts[rows] = discounts.astype(np.float32)

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
        starts, powers = starts.long(), torch.from_numpy(self.powers)
        total = torch.zeros(len(starts), dtype=torch.float64)
        for k, power in enumerate(powers[:-1].tolist()):
            # Rows after the episode's end may hold anything, even NaN.
            earned = power * rewards[(starts + k + 1).clamp(max=len(rewards) - 1)].double()
            total += torch.where(k < num_steps, earned, 0.0)
        self.values[starts, 0] = total.float()
        self.values[starts, 1] = (powers[num_steps.long()] * continues[starts + num_steps]).float()
