"""Updates of an algorithm from batches."""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective, PolyakCopy
from research.algs.targets import polyak_update
from research.batches import count_rows, map_tensors, to_device
from research.datasets.base import (
    Dataset,
    PreparingDataset,
    RolloutDataset,
    find_prioritised,
)
from research.errors import UserError
from research.parallel.batch_norm import has_batch_norm, synchronise_batch_norm
from research.parallel.sums import count_examples, is_parallel
from research.processors.base import Processor
from research.training.capture import Captured, CudaGraphs, Graphs
from research.training.descent import Descent, ScheduleFactory
from research.training.execution import Execution, choose_execution, refuse_own_update
from research.training.meter import Metrics, Phases, check_metric
from research.training.precision import LossScaler, Precision, autocast, make_step

if TYPE_CHECKING:
    from research.training.compiled import CompiledUpdates
    from research.training.gradient import CompiledGradients
    from research.training.lockstep import Seat


log = logging.getLogger(__name__)


class Learner:
    """Takes the steps of an algorithm's objectives on the batches of a dataset.

    The optimizers are made at the first update: until then, acting and loading weights need none.
    (The first optimizer of a process makes torch import its compiler, which takes about as long as
    importing torch.)

    With several ranks, each learns from a share of the batch. Gradients are those of the whole
    batch, and so are the statistics of batch normalisation, which then needs GPUs. With
    ``accumulate`` above 1 these statistics are those of a part of the batch, which consists of
    other examples than on one rank.

    Args:
        alg: its objectives learn from processed batches.
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
        precision: of the networks' arithmetic; weights are fp32. With fp16, steps whose gradients
            overflow are skipped; ``skipped_share`` is their share.
        accumulate: number of parts into which a batch is cut to save memory, at least 1; their
            gradients are summed.
        ema_decay: decay, in (0, 1), of an exponential moving average of the weights, which
            evaluation uses (Polyak and Juditsky, 1992); None for no average.
        execution: ``eager``; ``compile``: torch.compile makes one graph of an update, or of each of
            its gradients; ``graph``: a CUDA graph repeats the whole update; ``auto``: as
            ``choose_execution`` has it.
        seat: computes the gradients of a run in lockstep with others; None for a run alone.

    Attributes:
        average: the algorithm with averaged weights, or None.
        priorities: of the parts of the last batch, if its loss gave any.

    Raises:
        ValueError: for ``prefetch`` if the dataset does not support it or is prioritised,
            objectives that do not go together, or settings that an algorithm with an update of its
            own cannot have, as are CUDA graphs without a GPU.
        UserError: batch normalisation is to be shared by processes that have no GPUs.

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
        precision: Precision,
        accumulate: int,
        ema_decay: float | None,
        execution: Execution,
        seat: "Seat | None" = None,
    ) -> None:
        self.rollouts = dataset if isinstance(dataset, RolloutDataset) else None
        self.preparing = dataset if isinstance(dataset, PreparingDataset) else None
        if prefetch and self.preparing is None:
            raise ValueError(
                f"prefetch is true, but a {type(dataset).__name__} prepares no batches"
            )
        self.prioritised = find_prioritised(dataset)
        if prefetch and self.prioritised is not None:
            raise ValueError(
                "prefetch gathers a batch before the errors of the one before are known, by which "
                "a prioritised dataset draws; set trainer.prefetch=null, or dataset=replay"
            )
        is_wanted = device.type == "cuda" if prefetch is None else prefetch
        if not is_wanted or self.prioritised is not None:
            self.preparing = None
        self.has_own_update = type(alg).update is not Algorithm.update
        self.level = (
            logging.INFO if execution == "auto" else logging.WARNING
        )  # of what is not asked
        if execution == "auto" and (is_parallel() or self.has_own_update):
            execution = "eager"
        execution = choose_execution(execution, device, total_updates, is_alone=seat is None)
        if self.has_own_update:
            refuse_own_update(alg, precision, accumulate, execution)
        if is_parallel():
            synchronise_batch_norm(alg, device)
        self.alg = alg
        self.processor = processor
        self.dataset = dataset
        self.device = device
        self.total_updates = total_updates
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.precision: Precision = precision
        self.accumulate = accumulate
        self.execution = execution
        self.objectives = check_objectives(alg.objectives())
        self.copies = list(alg.copies())
        self.average: Algorithm | None = None
        if ema_decay is not None:
            self.average = copy_algorithm(alg)
            self.averaging = PolyakCopy(self.average, alg, 1 - ema_decay)
        self.updates = 0
        self.step = make_step(device)
        self.metrics = Metrics("train")
        self.priorities: list[Tensor] = []
        self.descents: dict[str, Descent] | None = None
        self.gradients: CompiledGradients | Seat | None = seat
        if seat is not None:
            seat.learner = self
        self.graphs: Graphs | None = CudaGraphs(device) if execution == "graph" else None
        self.captured: Captured | None = None
        self.compiled: CompiledUpdates | None = None

    def make_optimizers(self) -> dict[str, Descent]:
        """Make the optimizers with their schedules, by the names of the objectives.

        Raises:
            UserError: an optimizer or a schedule refuses its settings.

        """
        scaler = LossScaler if self.precision == "fp16" else lambda _: None
        self.descents = {
            objective.name: Descent(
                objective,
                total_updates=self.total_updates,
                schedule=self.schedule,
                max_grad_norm=self.max_grad_norm,
                scaler=scaler(self.device),
                capturable=self.device.type == "cuda" or self.graphs is not None,
            )
            for objective in self.objectives
        }
        if self.graphs is not None:
            self.captured = Captured(self.graphs, "updates", self.level)
            reasons = (descent.why_not_captured() for descent in self.descents.values())
            if reason := self.why_not_captured() or next(filter(None, reasons), None):
                self.captured.refuse(reason)
        if self.execution == "compile" and self.gradients is None:
            self.compile(self.descents)
        return self.descents

    def compile(self, descents: dict[str, Descent]) -> None:
        """Let torch.compile make graphs of whole updates, or of the gradients alone."""
        from research.training.compiled import CompiledUpdates, is_plain_adam  # takes a second

        own = set(self.alg.parameters())
        if any(parameter not in own for each in descents.values() for parameter in each.parameters):
            log.log(
                self.level, "updates run eagerly: an objective trains what is not the algorithm's"
            )
            return
        is_whole = all(map(is_plain_adam, descents.values())) and self.device.type != "mps"
        if not is_whole or self.accumulate > 1 or is_parallel():
            self.gradients = self.compile_gradients()
            return
        copies = self.copies if self.average is None else [*self.copies, self.averaging]
        self.compiled = CompiledUpdates(self.alg, descents, copies, self.precision, self.device)

    def compile_gradients(self) -> "CompiledGradients":
        """A graph for each gradient."""
        from research.training.gradient import CompiledGradients

        return CompiledGradients(self.alg, self.precision, self.device)

    def why_not_captured(self) -> str | None:
        """The reason why a graph cannot repeat the updates, if there is one."""
        return "several ranks wait for each other" if is_parallel() else None

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
        self.step.fill_(step)
        if self.prioritised is not None:
            self.prioritised.anneal(self.updates / self.total_updates)
        batch = self.sample(can_prepare=can_prepare)
        phases.lap("sample")
        if self.rollouts is None:  # a rollout is processed as a whole
            batch = self.processor(to_device(batch, self.device))
        self.metrics.add(self.learn(batch), step)
        if self.prioritised is not None and self.priorities:
            self.prioritised.prioritise(torch.cat(self.priorities))
        phases.lap("update")

    def sample(self, *, can_prepare: bool) -> Any:
        """The next batch; one of a rollout is processed."""
        if self.rollouts is not None:
            return self.sample_rollout(self.rollouts)
        batch = self.preparing.sample_packed() if self.preparing else self.dataset.sample()
        if can_prepare:
            self.prepare()
        return batch

    def sample_rollout(self, dataset: RolloutDataset) -> Any:
        """The next minibatch of a rollout, which is processed and prepared as a whole."""
        rollout = dataset.take_rollout()
        if rollout is not None:
            rollout = self.processor(to_device(rollout, self.device))
            with torch.no_grad(), autocast(self.device, self.precision):
                dataset.learn_from(self.alg.prepare(rollout, dataset.num_envs))
            for descent in (self.descents or {}).values():
                descent.is_stopped = False
        return dataset.sample()

    def learn(self, batch: Any) -> dict[str, Tensor]:
        """Take the steps that are due, on a processed batch; returns the metrics."""
        descents = self.descents or self.make_optimizers()
        self.updates += 1
        for descent in descents.values():
            descent.take_rates()
        if (self.captured or self.compiled) and any(
            descent.schedules_more() for descent in descents.values()
        ):
            self.go_on_without_constants()
        if self.has_own_update:
            optimizers = {name: descent.optim for name, descent in descents.items()}
            metrics = self.alg.update(batch, self.step, optimizers)
            taken = dict.fromkeys(descents, True)
            self.move_copies(taken)
        elif self.captured is None or self.captured.is_refused:
            metrics, taken = self.take_steps(batch, descents)
        else:
            metrics, taken = self.replay_steps(self.captured, batch, descents)
        for name, descent in descents.items():
            if taken.get(name, True):
                descent.step_schedule()
        return metrics

    def go_on_without_constants(self) -> None:
        """Let optimizers take the steps, of which graphs keep all options but the rates."""
        if self.captured is not None and not self.captured.is_refused:
            self.captured.refuse("the schedule changes more than the learning rate")
        if self.compiled is not None:
            self.compiled, self.gradients = None, self.compile_gradients()

    def replay_steps(
        self, captured: Captured, batch: Any, descents: dict[str, Descent]
    ) -> tuple[dict[str, Tensor], dict[str, bool]]:
        """``take_steps`` as a graph, one for the steps and copies that are due together."""
        due = [each.name for each in self.objectives if self.updates % each.every == 0]
        copied = [self.updates % copy.every == 0 for copy in self.copies]
        if not due:
            return self.take_steps(batch, descents)

        def take_steps(batch: Any) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            metrics, _ = self.take_steps(batch, descents)
            return metrics, tuple(self.priorities)

        metrics, priorities = captured((*due, *copied), take_steps, batch)
        self.priorities = list(priorities)
        return metrics, dict.fromkeys(due, True)

    def move_copies(self, taken: dict[str, bool]) -> None:
        """Move the copies that are due, and the average if every step was ``taken``."""
        copies = self.copies
        if self.average is not None and all(taken.values()):
            copies = [*copies, self.averaging]
        for target, module, tau, every in copies:
            if self.updates % every == 0:
                polyak_update(module, target, tau)

    def take_steps(
        self, batch: Any, descents: dict[str, Descent]
    ) -> tuple[dict[str, Tensor], dict[str, bool]]:
        """Take the steps that are due and move the copies.

        Returns:
            the metrics of the steps, and whether each was taken.

        """
        batch = self.alg.augment(batch)
        drawn = batch, self.alg.draw(batch, self.step)
        if self.compiled is not None and (found := self.run_compiled(drawn, descents)) is not None:
            return found
        parts = list(cut(drawn, self.accumulate))
        metrics: dict[str, Tensor] = {}
        taken: dict[str, bool] = {}
        results: dict[str, list[Any]] = {}
        self.priorities = []
        for objective in self.objectives:
            descent = descents[objective.name]
            if self.updates % objective.every or descent.is_stopped:
                continue
            own, results[objective.name] = self.compute_gradient(objective, descent, parts, results)
            taken[objective.name] = descent.step(own)
            metrics |= own
        if self.precision == "fp16" and taken:
            share = 1 - sum(taken.values()) / len(taken)
            metrics["skipped_share"] = torch.tensor(share, device=self.device)
        self.move_copies(taken)
        return metrics, taken

    def run_compiled(
        self, drawn: tuple[Any, Any], descents: dict[str, Descent]
    ) -> tuple[dict[str, Tensor], dict[str, bool]] | None:
        """``take_steps`` as one graph; None if that cannot be, or not yet."""
        assert self.compiled is not None
        due = [each for each in self.objectives if self.updates % each.every == 0]
        if not due or not all(descents[objective.name].optim.state for objective in due):
            return None  # an optimizer's first step, which makes its state
        losses = None
        if all(descents[objective.name].has_state() for objective in due):
            moved = [self.updates % copy.every == 0 for copy in self.compiled.copies]
            losses = self.compiled(due, moved, drawn)
        if losses is None:
            is_exhausted, self.compiled = self.compiled.is_exhausted, None
            self.gradients = None if is_exhausted else self.compile_gradients()
            return None
        metrics: dict[str, Tensor] = {}
        self.priorities = []
        for objective in due:
            loss = losses[objective.name]
            metrics |= {self.loss_name(objective): loss.value, **loss.metrics}
            if objective.prioritises:
                self.priorities = [] if loss.priority is None else [loss.priority]
        return metrics, {objective.name: True for objective in due}

    def loss_name(self, objective: Objective) -> str:
        """Under which an objective's loss is logged."""
        return "loss" if len(self.objectives) == 1 else f"{objective.name}_loss"

    def compute_gradient(
        self,
        objective: Objective,
        descent: Descent,
        parts: Sequence[Any],
        results: dict[str, list[Any]],
    ) -> tuple[dict[str, Tensor], list[Any]]:
        """Compute an objective's gradient; returns its metrics, and the results of all parts.

        With several ranks, gradient and metrics are this rank's terms of the sums.

        Raises:
            UserError: a rank's share of the batch has fewer examples than there are parts.

        """
        name = self.loss_name(objective)
        metrics: dict[str, Tensor] = {}
        own = []
        counts = [count_rows(part) for part in parts]
        count = self.count_examples(sum(counts))
        descent.begin()
        for index, part in enumerate(parts):
            reused = [] if objective.reuses is None else [results[objective.reuses][index]]
            share = counts[index] / count
            loss = self.add_gradient(objective, descent, [*part, *reused], counts[index], share)
            for key, value in {name: loss.value, **loss.metrics}.items():
                term = weigh(value.detach(), share)
                metrics[key] = metrics[key] + term if key in metrics else term
            own.append(None if loss.result is None else map_tensors(Tensor.detach, loss.result))
            if objective.prioritises and loss.priority is not None:
                self.priorities.append(loss.priority.detach())
        return metrics, own

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
        if own < self.accumulate and is_parallel():
            raise UserError(
                f"a rank's share of a batch has {own} examples, fewer than "
                f"trainer.accumulate={self.accumulate}; raise dataset.batch_size"
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
                f"dataset.batch_size, or lower trainer.accumulate={self.accumulate}"
            ) from error
        for name, value in loss.metrics.items():
            check_metric(f"train/{name}", value)
        if self.precision == "fp32":
            return loss
        metrics = {name: value.float() for name, value in loss.metrics.items()}
        return loss._replace(value=loss.value.float(), metrics=metrics)

    def take_score(self, score: float) -> None:
        """Step the schedules that wait for a plateau with an evaluation's ``score``."""
        for descent in (self.descents or {}).values():
            descent.take_score(score)

    def take_metrics(self) -> dict[str, float]:
        """Means of the updates' metrics since the last call, and scheduled learning rates."""
        means = self.metrics.take()
        for name, descent in (self.descents or {}).items():
            if descent.schedule is not None:
                key = "lr" if len(self.objectives) == 1 else f"{name}_lr"
                means[key] = descent.optim.param_groups[0]["lr"]
        return means

    def state_dict(self) -> dict[str, Any]:
        """Updates made, metrics not yet taken, and the state of optimizers and schedules."""
        descents = self.descents
        return {
            "updates": self.updates,
            "metrics": self.metrics.state_dict(),
            "descents": descents and {name: each.state_dict() for name, each in descents.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``; optimizers keep their statistics even if settings changed."""
        self.updates = state["updates"]
        self.metrics.load_state_dict(state["metrics"], self.device)
        self.descents = None
        if state["descents"] is not None:
            for name, descent in self.make_optimizers().items():
                descent.load_state_dict(state["descents"][name])


def check_objectives(objectives: Sequence[Objective]) -> Sequence[Objective]:
    """The objectives, if they go together.

    Raises:
        ValueError: two have one name or give priorities, or one reuses what no earlier one computes
            every time.

    """
    earlier: dict[str, int] = {}
    for objective in objectives:
        name, source = objective.name, objective.reuses
        if name in earlier:
            raise ValueError(f"two objectives are named {name}")
        if source is not None and (source not in earlier or objective.every % earlier[source]):
            raise ValueError(
                f"the objective {name} reuses the result of {source}, which must be an earlier "
                f"objective with a step in all of its updates; earlier ones: {list(earlier)}"
            )
        earlier[name] = objective.every
    prioritising = [objective.name for objective in objectives if objective.prioritises]
    if len(prioritising) > 1:
        raise ValueError(f"one objective may give priorities, but these do: {prioritising}")
    return objectives


def copy_algorithm(alg: Algorithm) -> Algorithm:
    """A frozen copy that shares the algorithm's own frozen copies, such as target networks."""
    shared = {id(target): target for target, *_ in alg.copies()}
    return copy.deepcopy(alg, shared).requires_grad_(False)


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
            rows = itemgetter(slice(start, end))
            yield map_tensors(lambda tensor: rows(tensor) if tensor.ndim else tensor, batch)  # noqa: B023
