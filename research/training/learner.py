"""Updates of an algorithm from batches."""

import copy
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from research.algs.base import Algorithm
from research.batches import to_device
from research.datasets.base import Dataset, PreparingDataset
from research.errors import UserError
from research.processors.base import Processor
from research.training.meter import Metrics, Phases

ScheduleFactory: TypeAlias = Callable[..., LRScheduler]
"""Takes an optimizer; and ``total_updates``, if it has a parameter of that name."""


class Learner:
    """Updates an algorithm from a dataset, with learning-rate schedules and gradient clipping.

    The optimizers are made at the first update.

    Args:
        alg: learns from processed batches.
        processor: processes batches.
        dataset: gives batches.
        device: where algorithm and processor are.
        total_updates: of the whole run, for schedules.
        schedule: makes a learning-rate schedule for each optimizer, stepped once per update that
            is not skipped, or, if it is a ReduceLROnPlateau, once per evaluation; None for constant
            rates.
        max_grad_norm: bound on the norm of each optimizer's gradients, above 0; None for no bound.
        prefetch: whether the dataset prepares the next batch during an update; None: only on a GPU,
            and only if the dataset supports it.

    Raises:
        ValueError: for ``prefetch`` if the dataset does not support
            it.

    """

    def __init__(
        self,
        alg: Algorithm,
        processor: Processor,
        dataset: Dataset,
        device: torch.device,
        *,
        total_updates: int,
        schedule: ScheduleFactory | None,
        max_grad_norm: float | None,
        prefetch: bool | None,
    ) -> None:
        self.preparing = dataset if isinstance(dataset, PreparingDataset) else None
        if prefetch and self.preparing is None:
            raise ValueError(
                f"prefetch is true, but a {type(dataset).__name__} prepares no batches"
            )
        if prefetch is False or (prefetch is None and device.type != "cuda"):
            self.preparing = None
        self.alg = alg
        self.processor = processor
        self.dataset = dataset
        self.device = device
        self.schedule = schedule
        if schedule is not None and "total_updates" in inspect.signature(schedule).parameters:
            self.schedule = partial(schedule, total_updates=total_updates)
        self.max_grad_norm = max_grad_norm
        self.updates = 0
        self.scheduled = 0
        self.metrics = Metrics("train")
        self.optimizers: dict[str, Optimizer] | None = None
        self.schedules: list[LRScheduler] = []
        self.settings: dict[str, Any] = {}

    def make_optimizers(self) -> dict[str, Optimizer]:
        """Make the optimizers, their schedules and their clipping; returns the optimizers by name.

        Raises:
            UserError: an optimizer or a schedule refuses its settings.

        """
        try:
            self.alg.make_optimizers()
            self.optimizers = self.alg.optimizers
            if self.schedule is not None:
                self.schedules = [self.schedule(optim) for optim in self.optimizers.values()]
        except (TypeError, ValueError) as error:
            raise UserError(f"alg.optim or trainer.schedule: {error}") from error
        groups = {
            name: [hyperparameters(group) for group in optim.param_groups]
            for name, optim in self.optimizers.items()
        }
        schedules = [schedule.state_dict() for schedule in self.schedules]
        self.settings = copy.deepcopy({"optimizers": groups, "schedules": schedules})
        # a delayed actor's optimizer has made no step when its schedule first does
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for optim in self.optimizers.values():
            if self.max_grad_norm is not None:
                clip_gradients(optim, self.max_grad_norm)
        return self.optimizers

    def prepare(self) -> None:
        """Let the dataset gather the next batch; nothing may be added before its update."""
        if self.preparing is not None:
            self.preparing.prepare(pinned=self.device.type == "cuda")

    def update(self, step: int, phases: Phases, *, can_prepare: bool) -> None:
        """Make one update from one batch.

        Args:
            step: steps of the run so far.
            phases: records the time taken.
            can_prepare: whether another update comes before anything is added to the dataset.

        """
        if self.optimizers is None:
            self.make_optimizers()
        preparing = self.preparing
        batch = preparing.sample_packed() if preparing else self.dataset.sample()
        if can_prepare:
            self.prepare()
        phases.lap("sample")
        batch = self.processor(to_device(batch, self.device))
        self.metrics.add(self.alg.update(batch, step=step, updates=self.updates), step)
        self.updates += 1
        if not self.alg.is_skipped:
            self.step_schedules()
        phases.lap("update")

    def step_schedules(self) -> None:
        """Step the schedules that count updates."""
        self.scheduled += 1
        for schedule in self.schedules:
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()

    def take_score(self, score: float) -> None:
        """Step the schedules that wait for a plateau with an evaluation's ``score``."""
        for schedule in self.schedules:
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(score)

    def take_metrics(self) -> dict[str, float]:
        """Means of the updates' metrics since the last call, and scheduled learning rates."""
        means = self.metrics.take()
        if self.optimizers and self.schedules:
            for name, optim in self.optimizers.items():
                means[f"{name}_lr"] = optim.param_groups[0]["lr"]
        return means

    def state_dict(self) -> dict[str, Any]:
        """Updates made, metrics not yet taken, and the state of optimizers and schedules."""
        return {
            "updates": self.updates,
            "scheduled": self.scheduled,
            "metrics": self.metrics.state_dict(),
            "settings": self.settings,
            "optimizers": self.optimizers
            and {name: optim.state_dict() for name, optim in self.optimizers.items()},
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``.

        If the settings have changed, the optimizers keep their statistics of the gradients and take
        the new settings, and the schedules stand where they would be with the new settings from the
        start.
        """
        self.updates = state["updates"]
        self.metrics.load_state_dict(state["metrics"], self.device)
        self.optimizers, self.schedules, self.scheduled = None, [], 0
        if state["optimizers"] is None:
            return
        scheduled = state.get("scheduled", self.updates)  # older checkpoints lack it
        optimizers = self.make_optimizers()
        for name, optim in optimizers.items():
            groups = [hyperparameters(group) for group in optim.param_groups]
            optim.load_state_dict(state["optimizers"][name])
            if self.settings != state["settings"]:
                for group, values in zip(optim.param_groups, groups, strict=True):
                    group.update(values)
        if self.settings != state["settings"]:
            for _ in range(scheduled):
                self.step_schedules()
            return
        self.scheduled = scheduled
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)


def hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's group without its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def clip_gradients(optim: Optimizer, max_norm: float) -> None:
    """Bound the norm of the gradients that every later step of ``optim`` takes."""
    parameters = [p for group in optim.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    optim.register_step_pre_hook(clip)
