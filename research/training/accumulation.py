"""Gradients of a batch: sums over its parts, of which each rank has its own."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective
from research.batches import count_rows, map_tensors
from research.errors import UserError
from research.parallel.batch_norm import has_batch_norm
from research.parallel.sums import count_examples, is_parallel
from research.training.descent import Descent
from research.training.meter import check_metric
from research.training.precision import Precision, autocast

if TYPE_CHECKING:
    from research.training.gradient import CompiledGradients
    from research.training.lockstep import Seat


class Losses(NamedTuple):
    """What the losses of a batch's parts gave besides gradients.

    Attributes:
        metrics: means over the batch, or a rank's terms of them, with the loss's own value.
        results: of each part, detached.
        priorities: of each part that gave any.

    """

    metrics: dict[str, Tensor]
    results: list[Any]
    priorities: list[Tensor]


class Accumulation:
    """Computes the gradients of an algorithm's objectives, part by part of a batch.

    With several ranks, gradients and metrics are this rank's terms of the sums.

    Args:
        alg: its objectives have the losses.
        device: of its tensors.
        precision: of the networks' arithmetic.
        num_parts: into which a batch is cut, at least 1.
        gradients: computes gradients otherwise than ``Tensor.backward``, where it can; or None.

    """

    def __init__(
        self,
        alg: Algorithm,
        device: torch.device,
        precision: Precision,
        num_parts: int,
        gradients: "CompiledGradients | Seat | None",
    ) -> None:
        self.alg = alg
        self.device = device
        self.precision: Precision = precision
        self.num_parts = num_parts
        self.gradients = gradients

    def cut(self, batch: Any) -> list[Any]:
        """The parts of a batch, and of what was drawn for it."""
        return list(cut(batch, self.num_parts))

    def compute(
        self,
        objective: Objective,
        name: str,
        descent: Descent,
        parts: Sequence[Any],
        reused: Sequence[Any] | None,
    ) -> Losses:
        """Set an objective's gradient to that of the mean over all parts.

        Args:
            objective: has the loss.
            name: of the metric of its value.
            descent: of the objective.
            parts: arguments of the loss.
            reused: one more argument for each part, or None.

        Raises:
            UserError: a rank's share of the batch has fewer examples than there are parts.

        """
        losses = Losses({}, [], [])
        counts = [count_rows(part) for part in parts]
        count = self.count_examples(sum(counts))
        descent.begin()
        for index, part in enumerate(parts):
            arguments = part if reused is None else [*part, reused[index]]
            share = counts[index] / count
            loss = self.add_gradient(objective, descent, arguments, counts[index], share)
            for key, value in {name: loss.value, **loss.metrics}.items():
                term, sums = weigh(value.detach(), share), losses.metrics
                sums[key] = sums[key] + term if key in sums else term
            result = None if loss.result is None else map_tensors(Tensor.detach, loss.result)
            losses.results.append(result)
            if objective.prioritises and loss.priority is not None:
                losses.priorities.append(loss.priority.detach())
        return losses

    def add_gradient(
        self,
        objective: Objective,
        descent: Descent,
        arguments: Sequence[Any],
        count: int,
        share: float | Tensor,
    ) -> Loss:
        """Add ``share`` of the gradient of the loss of ``count`` examples; returns that loss."""
        if self.gradients is not None:
            factor = descent.scale(share)
            computed = self.gradients(objective, descent.parameters, arguments, factor)
            if computed is not None:
                loss, gradients = computed
                descent.add_gradients(gradients)
                return loss
        loss = self.compute_loss(objective, arguments, count)
        descent.add_gradient(weigh(loss.value, share))
        return loss

    def count_examples(self, own: int) -> int | Tensor:
        """The number of examples in the batch of all ranks, of which this one has ``own``."""
        if own < self.num_parts and is_parallel():
            raise UserError(
                f"a rank's share of a batch has {own} examples, fewer than "
                f"trainer.accumulate={self.num_parts}; raise dataset.batch_size"
            )
        return count_examples(own, self.device)

    def compute_loss(self, objective: Objective, arguments: Sequence[Any], count: int) -> Loss:
        """The loss of ``count`` examples, in fp32.

        Raises:
            UserError: a metric is no tensor, or batch normalisation gets a single value of a
                channel.

        """
        try:
            with autocast(self.device, self.precision):
                loss = objective.loss(*arguments)
        except ValueError as error:
            if count > 1 or not has_batch_norm(self.alg):
                raise
            raise UserError(
                "batch normalisation needs more than one example at once; raise "
                f"dataset.batch_size, or lower trainer.accumulate={self.num_parts}"
            ) from error
        for name, value in loss.metrics.items():
            check_metric(f"train/{name}", value)
        if self.precision == "fp32":
            return loss
        metrics = {name: value.float() for name, value in loss.metrics.items()}
        return loss._replace(value=loss.value.float(), metrics=metrics)


def weigh(value: Tensor, share: float | Tensor) -> Tensor:
    """``value`` times ``share``; does not wait for a GPU, and takes no time for a share of 1."""
    return value if isinstance(share, float) and share == 1.0 else value * share


def cut(batch: Any, num_parts: int) -> Iterable[Any]:
    """Parts of nearly equal size, none empty; tensors without dimensions are in all of them."""
    return [batch] if num_parts == 1 else cut_at(batch, count_rows(batch), num_parts)


def cut_at(batch: Any, size: int, num_parts: int) -> Iterator[Any]:
    """The parts of a batch of ``size`` rows."""
    edges = [index * size // num_parts for index in range(num_parts + 1)]
    for start, end in pairwise(edges):
        if start < end:
            yield map_tensors(partial(take_rows, slice(start, end)), batch)


def take_rows(rows: slice, tensor: Tensor) -> Tensor:
    """These rows; all of a tensor without dimensions."""
    return tensor[rows] if tensor.ndim else tensor
