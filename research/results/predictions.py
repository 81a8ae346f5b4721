"""What a policy predicts for examples, beside their targets."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from research.batches import to_device
from research.training.policy import Policy


class Predictions:
    """Notes what a policy predicts for batches of examples, in the processor's units."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def note(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches themselves, each after its predictions were noted."""
        policy = self.policy
        for batch in batches:
            processed = policy.processor(to_device(batch, policy.device))
            with policy.autocast():
                output = policy.alg.act(processed.obs, policy.step, explore=False)
            self.pairs.append((processed.target.cpu().numpy(), output.float().cpu().numpy()))
            yield batch

    def summarise(self, num_classes: int | None) -> dict[str, Any]:
        """Of classes, the confusion matrix: a row for each target, a column for each prediction.

        Of values, the root of the mean squared error, the mean absolute error, and the mean over
        the values of R2; that is None if a target is the same everywhere.
        """
        target, output = map(np.concatenate, zip(*self.pairs, strict=True))
        found = {"examples": len(target)}
        if num_classes is not None:
            cells = target.astype(int) * num_classes + output.astype(int)
            counts = np.bincount(cells, minlength=num_classes**2)
            return {**found, "confusion": counts.reshape(num_classes, num_classes).tolist()}
        target, output = target.astype(np.float64), output.astype(np.float64)
        square = np.square(output - target)
        variance = target.var(axis=0)
        r2 = np.mean(1 - square.mean(axis=0) / variance) if np.all(variance > 0) else None
        return {
            **found,
            "rmse": float(np.sqrt(square.mean())),
            "mae": float(np.abs(output - target).mean()),
            "r2": None if r2 is None else float(r2),
        }
