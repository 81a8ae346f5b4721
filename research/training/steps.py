"""The steps of one update: eagerly, as a graph of torch.compile's, or as a CUDA graph."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from research.algs.base import Algorithm, Objective, PolyakCopy
from research.algs.targets import polyak_update
from research.batches import map_tensors
from research.parallel.sums import is_parallel
from research.training.accumulation import Accumulation
from research.training.capture import Captured, CudaGraphs, Graphs
from research.training.descent import Descent
from research.training.execution import Execution
from research.training.precision import Precision

if TYPE_CHECKING:
    from research.training.compiled import CompiledUpdates
    from research.training.lockstep import Seat

Taken: TypeAlias = tuple[dict[str, Tensor], dict[str, bool]]
"""The metrics of an update's steps; and by objective, whether its step was taken or overflowed."""

log = logging.getLogger(__name__)


class Steps:
    """Takes the steps of an algorithm's objectives that are due, and moves the copies.

    Args:
        alg: its objectives learn from processed batches.
        objectives: of the algorithm, which go together.
        averaging: the copy that averages its weights, or None.
        device: of its tensors.
        precision: of the networks' arithmetic.
        accumulate: number of parts into which a batch is cut, at least 1.
        execution: any but ``auto``.
        level: of logging, at which it is said that updates run eagerly.
        seat: computes the gradients of a run in lockstep with others; None for a run alone.

    Attributes:
        copies: that follow modules of the algorithm, but for the average.
        graphs: makes CUDA graphs; None unless updates are to be captured.
        priorities: of the parts of the last batch, if its loss gave any.

    """

    def __init__(
        self,
        alg: Algorithm,
        objectives: Sequence[Objective],
        averaging: PolyakCopy | None,
        *,
        device: torch.device,
        precision: Precision,
        accumulate: int,
        execution: Execution,
        level: int,
        seat: "Seat | None",
    ) -> None:
        self.alg = alg
        self.objectives = objectives
        self.copies = list(alg.copies())
        self.averaging = averaging
        self.device = device
        self.precision: Precision = precision
        self.execution = execution
        self.level = level
        self.accumulation = Accumulation(alg, device, precision, accumulate, seat)
        self.descents: Mapping[str, Descent] = {}
        self.graphs: Graphs | None = CudaGraphs(device) if execution == "graph" else None
        self.captured: Captured | None = None
        self.compiled: CompiledUpdates | None = None
        self.priorities: list[Tensor] = []

    def open(self, descents: Mapping[str, Descent]) -> None:
        """Take the steps with these optimizers, by objective, from now on."""
        self.descents = descents
        if self.graphs is not None:
            self.captured = Captured(self.graphs, "updates", self.level)
            reasons = [descent.why_not_captured() for descent in descents.values()]
            if is_parallel():
                reasons = ["several ranks wait for each other"]
            if reason := next(filter(None, reasons), None):
                self.captured.refuse(reason)
        if self.execution == "compile" and self.accumulation.gradients is None:
            self.compile()

    def compile(self) -> None:
        """Let torch.compile make graphs of whole updates, or of the gradients alone."""
        from research.training.compiled import CompiledUpdates, is_plain_adam  # takes a second

        descents, own = self.descents.values(), set(self.alg.parameters())
        if any(parameter not in own for each in descents for parameter in each.parameters):
            log.log(
                self.level, "updates run eagerly: an objective trains what is not the algorithm's"
            )
            return
        is_whole = all(map(is_plain_adam, descents)) and self.device.type != "mps"
        if not is_whole or self.accumulation.num_parts > 1 or is_parallel():
            self.compile_gradients()
            return
        copies = self.copies if self.averaging is None else [*self.copies, self.averaging]
        self.compiled = CompiledUpdates(
            self.alg, self.descents, copies, self.precision, self.device
        )

    def compile_gradients(self) -> None:
        """Let torch.compile make a graph for each gradient."""
        from research.training.gradient import CompiledGradients

        self.compiled = None
        self.accumulation.gradients = CompiledGradients(self.alg, self.precision, self.device)

    def go_on_without_constants(self) -> None:
        """Give up graphs if a schedule changes more than the rate, which is all they can follow."""
        is_captured = self.captured is not None and not self.captured.is_refused
        if not (is_captured or self.compiled):
            return
        if not any(descent.schedules_more() for descent in self.descents.values()):
            return
        if self.captured is not None and is_captured:
            self.captured.refuse("the schedule changes more than the learning rate")
        if self.compiled is not None:
            self.compile_gradients()

    def take(self, batch: Any, step: Tensor, updates: int) -> Taken:
        """Take the steps that are due in an update, and move the copies.

        Args:
            batch: processed.
            step: steps of the run so far, ().
            updates: of the run, with this one.

        """
        self.go_on_without_constants()
        due = [each for each in self.objectives if updates % each.every == 0]
        if self.captured is None or self.captured.is_refused or not due:
            if self.device.type == "cuda" and self.execution != "compile":
                # laid out as a graph's inputs, by which libraries choose their kernels
                batch = map_tensors(Tensor.clone, batch)
            return self.take_due(batch, step, updates, due)

        def update(batch: Any) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            metrics, _ = self.take_due(batch, step, updates, due)
            return metrics, tuple(self.priorities)

        names = [each.name for each in due]
        key = (*names, *(updates % copy.every == 0 for copy in self.copies))
        metrics, priorities = self.captured(key, update, batch)
        self.priorities = list(priorities)
        return metrics, dict.fromkeys(names, True)

    def take_due(self, batch: Any, step: Tensor, updates: int, due: Sequence[Objective]) -> Taken:
        """Take the steps of the objectives ``due``, and move the copies."""
        batch = self.alg.augment(batch)
        drawn = batch, self.alg.draw(batch, step)
        if self.compiled and (found := self.run_compiled(self.compiled, drawn, updates, due)):
            return found
        parts = self.accumulation.cut(drawn)
        metrics: dict[str, Tensor] = {}
        taken: dict[str, bool] = {}
        results: dict[str, list[Any]] = {}
        self.priorities = []
        for objective in due:
            descent = self.descents[objective.name]
            if descent.is_stopped:
                continue
            reused = None if objective.reuses is None else results[objective.reuses]
            name = self.loss_name(objective)
            losses = self.accumulation.compute(objective, name, descent, parts, reused)
            results[objective.name] = losses.results
            self.priorities += losses.priorities
            taken[objective.name] = descent.step(losses.metrics)
            metrics |= losses.metrics
        if self.precision == "fp16" and taken:
            share = 1 - sum(taken.values()) / len(taken)
            metrics["skipped_share"] = torch.tensor(share, device=self.device)
        self.move_copies(updates, taken)
        return metrics, taken

    def run_compiled(
        self,
        compiled: "CompiledUpdates",
        drawn: tuple[Any, Any],
        updates: int,
        due: Sequence[Objective],
    ) -> Taken | None:
        """``take_due`` as one graph; None if that cannot be, or not yet."""
        if not due or not all(self.descents[objective.name].optim.state for objective in due):
            return None  # an optimizer's first step, which makes its state
        losses = None
        if all(self.descents[objective.name].has_state() for objective in due):
            moved = [updates % copy.every == 0 for copy in compiled.copies]
            losses = compiled(due, moved, drawn)
        if losses is None:
            self.compiled = None
            if not compiled.is_exhausted:
                self.compile_gradients()
            return None
        metrics: dict[str, Tensor] = {}
        self.priorities = []
        for objective in due:
            loss = losses[objective.name]
            metrics |= {self.loss_name(objective): loss.value, **loss.metrics}
            if objective.prioritises:
                self.priorities = [] if loss.priority is None else [loss.priority]
        return metrics, {objective.name: True for objective in due}

    def move_copies(self, updates: int, taken: Mapping[str, bool]) -> None:
        """Move the copies that are due, and the average if every step was ``taken``."""
        copies = self.copies
        if self.averaging is not None and all(taken.values()):
            copies = [*copies, self.averaging]
        for target, module, tau, every in copies:
            if updates % every == 0:
                polyak_update(module, target, tau)

    def loss_name(self, objective: Objective) -> str:
        """Under which an objective's loss is logged."""
        return "loss" if len(self.objectives) == 1 else f"{objective.name}_loss"
