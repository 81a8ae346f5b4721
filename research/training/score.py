"""The metric by which the best checkpoint is chosen, and whether training still improves it."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from research.errors import UserError, did_you_mean
from research.training.requirements import check_positive

SAVED = ("best_score", "evaluated_step", "evaluations_since_best")

log = logging.getLogger(__name__)


class Score:
    """What evaluations have come to so far.

    Args:
        metric: its name, such as ``eval/return``.
        mode: whether a larger (``max``) or smaller (``min``) value is better.
        patience: evaluations without a better one after which it is exhausted, at least 1; None
            for never.

    Attributes:
        best_score: None before the first evaluation.
        evaluated_step: of the last evaluation.
        evaluations_since_best: how many.

    Raises:
        ValueError: for another mode or group of metrics, or a loss to be as large as possible.

    """

    def __init__(self, *, metric: str, mode: Literal["max", "min"], patience: int | None) -> None:
        check_positive("score.", patience=patience)
        if mode not in ("max", "min"):
            raise ValueError(f"score.mode must be max or min, got {mode}")
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
        """The value among an evaluation's ``metrics``, and whether it is the best so far.

        Raises:
            UserError: it is none of them, or not finite.

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
        """The value among an evaluation's ``metrics``.

        Raises:
            UserError: it is none of them.

        """
        names = [f"eval/{name}" for name in metrics]
        if self.metric not in names:
            raise UserError(
                f"trainer.score.metric={self.metric} is none of the evaluation's; "
                f"allowed: {', '.join(names)}{did_you_mean(self.metric, names)}"
            )
        return metrics[self.metric.removeprefix("eval/")]

    def is_exhausted(self) -> bool:
        """Whether as many evaluations as allowed have passed without a better one."""
        is_over = self.patience is not None and self.evaluations_since_best >= self.patience
        if is_over:
            log.info("no better for %d evaluations: stopped", self.evaluations_since_best)
        return is_over

    def state_dict(self) -> dict[str, Any]:
        """From which ``load_state_dict`` goes on."""
        return {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        for name in SAVED:
            setattr(self, name, state[name])
