"""The metric by which the best checkpoint is chosen, and whether training still improves it."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from research.errors import UserError, did_you_mean
from research.ranges import PositiveInt

SAVED = ("best_score", "evaluated_step", "evaluations_since_best")

log = logging.getLogger(__name__)


class Score:
    """Finds the best evaluation so far by one metric.

    Args:
        metric: its name, such as ``eval/return``.
        mode: whether a larger (``max``) or smaller (``min``) value is better.
        patience: evaluations in a row without a better one after which training ends, at least 1;
            None for never.

    Attributes:
        best_score: the best value; None before the first evaluation.
        evaluated_step: step of the last evaluation.
        evaluations_since_best: number of evaluations after the best one.

    Raises:
        ValueError: for a metric that is not the evaluation's, or the mode ``max`` with a loss.

    """

    def __init__(
        self, *, metric: str, mode: Literal["max", "min"], patience: PositiveInt | None
    ) -> None:
        if not metric.startswith("eval/"):
            raise ValueError(
                f"score.metric must be one of the evaluation's, eval/..., got {metric}"
            )
        if mode == "max" and metric.endswith("loss"):
            raise ValueError(
                f"score.mode is max, but the best {metric} is the lowest; set it to min"
            )
        self.metric = metric
        self.mode = mode
        self.patience = patience
        self.best_score: float | None = None
        self.evaluated_step = 0
        self.evaluations_since_best = 0

    def take(self, metrics: Mapping[str, float], step: int) -> tuple[float, bool]:
        """The score among an evaluation's ``metrics``, and whether it is the best so far.

        Raises:
            UserError: the score is missing, or not finite.

        """
        value = self.find(metrics)
        if not math.isfinite(value):
            raise UserError(f"{self.metric} became {value} at step {step}; training stopped")
        sign = 1 if self.mode == "max" else -1
        is_best = self.best_score is None or sign * value > sign * self.best_score
        self.best_score = value if is_best else self.best_score
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        self.evaluated_step = step
        return value, is_best

    def find(self, metrics: Mapping[str, float]) -> float:
        """The score among an evaluation's ``metrics``.

        Raises:
            UserError: the score is missing.

        """
        names = [f"eval/{name}" for name in metrics]
        if self.metric not in names:
            raise UserError(
                f"trainer.score.metric={self.metric} is not a metric of the evaluation; "
                f"allowed: {', '.join(names)}{did_you_mean(self.metric, names)}"
            )
        return metrics[self.metric.removeprefix("eval/")]

    def is_exhausted(self) -> bool:
        """Whether as many evaluations as allowed have passed without a better one."""
        is_over = self.patience is not None and self.evaluations_since_best >= self.patience
        if is_over:
            log.info("no better score in %d evaluations: stopped", self.evaluations_since_best)
        return is_over

    def state_dict(self) -> dict[str, Any]:
        """The state that ``load_state_dict`` restores."""
        return {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``."""
        for name in SAVED:
            setattr(self, name, state[name])
