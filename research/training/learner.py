"""Updates of an algorithm from batches."""

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research.algs.base import Algorithm, Objective, PolyakCopy
from research.batches import to_device
from research.datasets.base import (
    Dataset,
    PreparingDataset,
    RolloutDataset,
    find_prioritised,
)
from research.parallel.batch_norm import synchronise_batch_norm
from research.parallel.sums import is_parallel
from research.processors.base import Processor
from research.training.descent import Descent, ScheduleFactory
from research.training.execution import Execution, choose_execution, refuse_own_update
from research.training.meter import Metrics, Phases
from research.training.precision import LossScaler, Precision, autocast, make_step
from research.training.steps import Steps

if TYPE_CHECKING:
    from research.training.lockstep import Seat


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
        steps: what takes the steps.

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
        # of messages that something runs eagerly, which matter where something else was asked for
        self.level = logging.INFO if execution == "auto" else logging.WARNING
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
        self.execution = execution
        self.objectives = check_objectives(alg.objectives())
        self.average: Algorithm | None = None
        averaging: PolyakCopy | None = None
        if ema_decay is not None:
            self.average = copy_algorithm(alg)
            averaging = PolyakCopy(self.average, alg, 1 - ema_decay)
        self.updates = 0
        self.step = make_step(device)
        self.metrics = Metrics("train")
        self.descents: dict[str, Descent] | None = None
        if seat is not None:
            seat.learner = self
        self.steps = Steps(
            alg,
            self.objectives,
            averaging,
            device=device,
            precision=precision,
            accumulate=accumulate,
            execution=execution,
            level=self.level,
            seat=seat,
        )

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
                capturable=self.device.type == "cuda" or self.steps.graphs is not None,
            )
            for objective in self.objectives
        }
        self.steps.open(self.descents)
        return self.descents

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
        if self.prioritised is not None and self.steps.priorities:
            self.prioritised.prioritise(torch.cat(self.steps.priorities))
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
        if self.has_own_update:
            optimizers = {name: descent.optim for name, descent in descents.items()}
            metrics = self.alg.update(batch, self.step, optimizers)
            taken = dict.fromkeys(descents, True)
            self.steps.move_copies(self.updates, taken)
        else:
            metrics, taken = self.steps.take(batch, self.step, self.updates)
        for name, descent in descents.items():
            if taken.get(name, True):
                descent.step_schedule()
        return metrics

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
