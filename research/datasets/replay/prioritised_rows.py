"""Prioritised experience replay: Schaul et al., 2016, https://arxiv.org/abs/1511.05952."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from research.datasets.replay.row_set import RowSet
from research.datasets.replay.sum_tree import SumTree
from research.errors import UserError
from research.ranges import Fraction, PositiveFloat

MOST_CHANGES = 1024
"""Changes that wait; they are made when there are more."""


class PrioritisedRows(RowSet):
    """A set of row numbers of which each is drawn in proportion to its priority.

    The priority of a row is (size of its error + epsilon) to the power of alpha, the proportional
    variant of the paper. A new row has the largest priority that any has had so far, at first 1.
    A batch of B is drawn as in appendix B.2.1: one row from each of B equal shares of the total.

    Changes are made when the next rows are drawn: until then nothing waits for errors that a GPU
    still computes.

    Deviations:
        Importance weights are divided by the largest of the batch, not of all rows, so that each
        is (smallest priority of the batch / its own) to the power of beta.

    Args:
        num_rows: the row numbers lie below.
        alpha: how much the errors count, in [0, 1]; 0 draws uniformly.
        beta: how much of the bias the weights correct at the start of the run, in [0, 1]; it grows
            linearly to 1 at its end.
        epsilon: added to the size of every error.

    """

    bytes_per_row = RowSet.bytes_per_row + SumTree.bytes_per_value

    def __init__(
        self, num_rows: int, /, *, alpha: Fraction, beta: Fraction, epsilon: PositiveFloat
    ) -> None:
        super().__init__(num_rows)
        self.alpha = alpha
        self.beta = beta
        self.epsilon = epsilon
        self._tree = SumTree(num_rows)
        self._largest = 1.0
        self._share = 0.0
        self._batch: np.ndarray | None = None  # the rows drawn last, -1 for those discarded since
        # Rows, and what their priorities become: None stands for the largest so far, a tensor for
        # errors.
        self._changes: list[tuple[np.ndarray, Tensor | float | None]] = []

    def add(self, rows: np.ndarray) -> None:
        super().add(rows)
        self._change(rows, None)

    def discard(self, rows: np.ndarray) -> None:
        super().discard(rows)
        if self._batch is not None:
            self._batch[np.isin(self._batch, rows)] = -1
        self._change(rows, 0.0)

    def replace(self, members: Tensor) -> None:
        """Hold exactly ``members``, in this order, all with the largest priority so far."""
        super().replace(members)
        self._tree = SumTree(len(self._places))
        self._changes, self._batch = [], None
        self._change(members.numpy().astype(np.int64), None)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` members, int32, with replacement, in proportion to their priorities.

        Raises:
            UserError: an error that ``prioritise`` was given is not finite.

        """
        self._make_changes()
        shares = torch.rand(count, generator=generator, dtype=torch.float64).numpy()
        shares += np.arange(count)
        self._batch = self._tree.find(shares * (self._tree.total / count))
        return torch.from_numpy(self._batch.astype(np.int32))

    def anneal(self, share: float) -> None:
        """Tell that ``share`` of the run is over, in [0, 1]."""
        self._share = share

    def weights(self) -> Tensor:
        """The importance weights (B,) of the rows drawn last, in (0, 1], float32."""
        assert self._batch is not None, "weights are those of a batch"
        priorities = self._tree.values[self._batch]
        beta = self.beta + self._share * (1 - self.beta)
        return torch.from_numpy((priorities.min() / priorities) ** beta).float()

    def prioritise(self, errors: Tensor) -> None:
        """Give the rows drawn last their priorities; does not wait for a GPU.

        Args:
            errors: (B,), of which the sizes count.

        """
        assert self._batch is not None, "priorities are those of a batch"
        if errors.shape != self._batch.shape:
            raise UserError(
                f"Loss.priority must be {self._batch.shape}, a number for every example, got "
                f"{tuple(errors.shape)}"
            )
        rows, self._batch = self._batch, None
        self._change(rows, errors.detach())

    def state_dict(self) -> dict[str, Any]:
        """The priorities of the members in their order, and the largest so far."""
        self._make_changes()
        priorities = self._tree.values[self.members().numpy()]
        return {"priorities": torch.from_numpy(priorities), "largest": self._largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the priorities of the members, which must be restored before.

        Raises:
            ValueError: they cannot be those of the members.

        """
        priorities, largest = state["priorities"], state["largest"]
        if len(priorities) != len(self) or not 0 < largest < np.inf:
            raise ValueError(
                f"{len(priorities)} priorities up to {largest} cannot be those of {len(self)} rows"
            )
        if not bool(((priorities > 0) & (priorities <= largest)).all()):
            raise ValueError(f"priorities must lie above 0, and none above {largest}")
        self._largest = largest
        self._make_changes()
        self._tree.set(self.members().numpy().astype(np.int64), priorities.numpy())

    def _change(self, rows: np.ndarray, priority: Tensor | float | None) -> None:
        self._changes.append((rows.copy(), priority))
        if len(self._changes) > MOST_CHANGES:
            self._make_changes()

    def _make_changes(self) -> None:
        """Make the changes that wait, in their order."""
        changed = []
        for rows, priority in self._changes:
            if isinstance(priority, Tensor):
                is_kept = rows >= 0
                rows, priority = rows[is_kept], self._compute_priorities(priority)[is_kept]
            self._tree.values[rows] = self._largest if priority is None else priority
            changed.append(rows)
        self._changes = []
        if changed:
            self._tree.update(np.concatenate(changed))

    def _compute_priorities(self, errors: Tensor) -> np.ndarray:
        """The priorities (B,) of rows with these errors; notes the largest."""
        priorities = (errors.double().abs().cpu().numpy() + self.epsilon) ** self.alpha
        largest = priorities.max().item()
        if not largest < np.inf:
            raise UserError(
                f"the errors of a batch, by which its rows are prioritised, became {largest}; "
                "training stopped, no checkpoint holds it"
            )
        self._largest = max(self._largest, largest)
        return priorities


PrioritisedRowsFactory: TypeAlias = Callable[[int], PrioritisedRows]
"""Makes a set of rows below a number, which are drawn by their priorities."""
