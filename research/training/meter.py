"""Metrics and time between two log rows."""

import reprlib
import time
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from research.batches import copy_all
from research.errors import UserError

BLOCK = 256
"""Values of a metric that share a block of memory."""


class Column:
    """The values of one metric, in blocks of memory.

    A tensor for each value would lie between the activations of two updates, where it would keep
    the memory around it from being used again: for TD3, half a megabyte at every update.

    Args:
        like: the first value; all are stored on its device, integers as float64.

    """

    def __init__(self, like: Tensor) -> None:
        dtype = like.dtype if like.is_floating_point() else torch.float64
        self.options = {"dtype": dtype, "device": like.device}
        self.blocks: list[Tensor] = []
        self.free: list[Tensor] = []
        self.steps: list[int] = []

    def place(self, step: int) -> Tensor:
        """Where to write the value of the next update."""
        if not self.free:
            self.blocks.append(torch.empty(BLOCK, **self.options))
            self.free = list(self.blocks[-1].unbind())[::-1]
        self.steps.append(step)
        return self.free.pop()

    def values(self) -> Tensor:
        """All, in their order."""
        return torch.cat(self.blocks)[: len(self.steps)]


class Metrics:
    """Collects the metrics of updates as tensors; nothing waits for the device until they are read.

    A value that is not finite is reported at the next reading, with the step of its update.

    Args:
        group: prefix of the logged names, for error messages.

    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.columns: dict[str, Column] = {}

    def add(self, metrics: dict[str, Tensor], step: int) -> None:
        """Take in the metrics of one update.

        Raises:
            UserError: they are not a dict of tensors without dimensions.

        """
        if not isinstance(metrics, dict):
            raise UserError(f"update must return metrics by name, got {reprlib.repr(metrics)}")
        for name, value in metrics.items():
            if name not in self.columns:
                check_metric(f"{self.group}/{name}", value)
                self.columns[name] = Column(value)
        places = [self.columns[name].place(step) for name in metrics]
        with torch.no_grad():
            copy_all(places, list(metrics.values()))

    def check(self) -> dict[str, float]:
        """The means so far.

        Raises:
            UserError: a value is NaN or infinite; the message names the first such metric and its
                step.

        """
        found = {name: column.values().cpu() for name, column in self.columns.items()}
        wrong = [
            (self.columns[name].steps[index], name, values[index].item())
            for name, values in found.items()
            for index in values.isfinite().logical_not().nonzero()[:1, 0].tolist()
        ]
        if wrong:
            step, name, value = min(wrong, key=itemgetter(0))
            raise UserError(
                f"{self.group}/{name} became {value} at step {step}; "
                "training stopped, no checkpoint holds it"
            )
        return {name: values.double().mean().item() for name, values in found.items()}

    def take(self) -> dict[str, float]:
        """The means since the last call, checked; drops their values."""
        means = self.check()
        self.columns = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The values not yet taken."""
        values = {name: column.values() for name, column in self.columns.items()}
        return {"values": values, "steps": {n: column.steps for n, column in self.columns.items()}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore a ``state_dict``, its tensors on ``device``."""
        self.columns = {}
        for name, values in state["values"].items():
            column = self.columns[name] = Column(values.to(device))
            for step, value in zip(state["steps"][name], values, strict=True):
                column.place(step).copy_(value)


def check_metric(name: str, value: object) -> None:
    """Refuse a metric that is not a tensor without dimensions."""
    if not isinstance(value, Tensor) or value.ndim:
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
