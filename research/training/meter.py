"""Metrics and time between two log rows."""

import reprlib
import time
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from research.errors import UserError


class Metrics:
    """Collects the metrics of updates as tensors; nothing waits for the device until they are read.

    A value that is not finite is reported at the next reading, with the step of its update.

    Args:
        group: prefix of the logged names, for error messages.

    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.values: dict[str, list[Tensor]] = {}
        self.steps: dict[str, list[int]] = {}

    def add(self, metrics: dict[str, Tensor], step: int) -> None:
        """Take in the metrics of one update.

        Raises:
            UserError: they are not a dict of tensors.

        """
        if not isinstance(metrics, dict):
            raise UserError(f"update must return metrics by name, got {reprlib.repr(metrics)}")
        for name, value in metrics.items():
            if name not in self.values:
                check_metric(f"{self.group}/{name}", value)
            self.values.setdefault(name, []).append(value)
            self.steps.setdefault(name, []).append(step)

    def check(self) -> dict[str, float]:
        """The means so far.

        Raises:
            UserError: a value is NaN or infinite; the message names the first such metric and its
                step.

        """
        stacked = {name: torch.stack(values).cpu() for name, values in self.values.items()}
        wrong = [
            (self.steps[name][index], name, values[index].item())
            for name, values in stacked.items()
            for index in values.isfinite().logical_not().nonzero()[:1, 0].tolist()
        ]
        if wrong:
            step, name, value = min(wrong, key=itemgetter(0))
            raise UserError(
                f"{self.group}/{name} became {value} at step {step}; "
                "training stopped, no checkpoint holds it"
            )
        return {name: values.double().mean().item() for name, values in stacked.items()}

    def take(self) -> dict[str, float]:
        """The means since the last call, checked; drops their values."""
        means = self.check()
        self.values, self.steps = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The values not yet taken."""
        values = {name: torch.stack(values) for name, values in self.values.items()}
        return {"values": values, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore a ``state_dict``, its tensors on ``device``."""
        self.values = {n: list(values.to(device).unbind()) for n, values in state["values"].items()}
        self.steps = state["steps"]


def check_metric(name: str, value: object) -> None:
    """Refuse a metric that is not a tensor."""
    if not isinstance(value, Tensor):
        raise UserError(
            f"{name} must be a detached tensor without dimensions, got {reprlib.repr(value)} of "
            f"type {type(value).__name__}; write loss.detach(), or torch.tensor(number)"
        )


class Phases:
    """Measures the time of each phase: call ``lap(name)`` at its end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = self.start = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last lap to ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def take(self) -> dict[str, float]:
        """Each phase's share of the time since the last call; ``other`` has the rest."""
        self.lap("other")
        elapsed = max(self.last - self.start, 1e-9)
        shares = {name: seconds / elapsed for name, seconds in self.seconds.items()}
        self.seconds, self.start = {}, self.last
        return shares
