"""Steps down the gradient of one objective."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from research.algs.base import Objective
from research.algs.weight_decay import group_parameters
from research.errors import UserError
from research.parallel.sums import sum_over_ranks
from research.training.precision import LossScaler

ScheduleFactory: TypeAlias = Callable[..., LRScheduler]
"""Takes an optimizer; and ``total_updates``, if it has a parameter of that name."""


class Descent:
    """Takes the steps of one objective: its optimizer, with what bounds, scales and schedules it.

    Args:
        objective: names the parameters, and the optimizer.
        total_updates: of the run, for the schedule.
        schedule: makes the schedule of the learning rate; None for a constant rate.
        max_grad_norm: bound on the norm of the gradient, above 0; None for no bound.
        scaler: scales the losses of fp16; None for no scaling.
        capturable: whether a graph may capture the steps, wherever the optimizer has an option of
            that name. Its rate and its number of steps are then tensors, which rounds differently,
            so that all runs on a GPU need it.

    Raises:
        ValueError: the objective trains nothing.
        UserError: the optimizer or the schedule refuses its settings.

    """

    def __init__(
        self,
        objective: Objective,
        *,
        total_updates: int,
        schedule: ScheduleFactory | None,
        max_grad_norm: float | None,
        scaler: LossScaler | None,
        capturable: bool = False,
    ) -> None:
        groups = group_parameters(objective.trains)
        self.parameters: list[nn.Parameter] = list(unique_parameters(objective.trains))
        if not self.parameters:
            raise ValueError(f"the objective {objective.name} has no parameter to train")
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self.stop = objective.stop
        self.is_stopped = False
        self.scheduled = 0
        try:
            self.optim = objective.optim(self.parameters)
            if self.optim.defaults.get("weight_decay"):
                self.optim = objective.optim([group for group in groups if group["params"]])
            self.schedule = None
            if schedule is not None:
                if "total_updates" in inspect.signature(schedule).parameters:
                    schedule = partial(schedule, total_updates=total_updates)
                self.schedule = schedule(self.optim)
        except (TypeError, ValueError) as error:
            raise UserError(f"alg.optim or trainer.schedule: {error}") from error
        self.settings = copy.deepcopy(
            {
                "groups": [hyperparameters(group) for group in self.optim.param_groups],
                "schedule": self.schedule and self.schedule.state_dict(),
            }
        )
        groups = self.optim.param_groups
        self.rates: list[Tensor] | None = None
        if capturable and all("capturable" in group for group in groups):
            self.rates = [torch.tensor(float(group["lr"]), device=self.device) for group in groups]
            warnings.filterwarnings("ignore", message="This instance was constructed with capturab")
        self.constants = self.read_constants()
        # a delayed actor's optimizer has made no step when its schedule first does
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        if max_grad_norm is not None:
            clip_gradients(self.optim, max_grad_norm)

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.parameters[0].device

    def has_state(self) -> bool:
        """Whether the optimizer has a state for every parameter; not of those that no loss uses."""
        return all(self.optim.state.get(parameter) for parameter in self.parameters)

    def begin(self) -> None:
        """Forget the gradient of the last step."""
        for parameter in self.parameters:
            parameter.grad = None

    def add_gradient(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, which no other parameter gets."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        # Not autograd.grad: its gradients may share memory or be laid out unlike their parameters,
        # of which fused optimizers silently read the wrong numbers.
        loss.backward(inputs=self.parameters)

    def scale(self, share: float | Tensor) -> Tensor | None:
        """What a loss is to be multiplied by for ``add_gradients``; None for 1."""
        if not isinstance(share, Tensor):
            if self.scaler is None and share == 1.0:
                return None
            share = torch.full((), share, dtype=self.parameters[0].dtype, device=self.device)
        return share if self.scaler is None else self.scaler.scale(share)

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add what was computed elsewhere, in the order of the parameters; not to be used again."""
        places = set()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad += gradient
            elif gradient.stride() == parameter.stride() and gradient.data_ptr() not in places:
                parameter.grad = gradient
            else:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            places.add(gradient.data_ptr())

    def step(self, metrics: dict[str, Tensor]) -> bool:
        """Take a step with the sum of all ranks' gradients, and sum their ``metrics`` in place.

        If a metric exceeds the objective's bound, the steps end: ``is_stopped``.

        Returns:
            False if the gradient overflowed, with fp16, so that the step is to be made up for.

        """
        sum_over_ranks(self.parameters, metrics)
        if self.stop is not None and metrics[self.stop.metric].item() > self.stop.above:
            self.is_stopped = True
            return True
        with self.rates_as_tensors():
            if self.scaler is not None:
                return self.scaler.step(self.optim)
            self.optim.step()
        return True

    def why_not_captured(self) -> str | None:
        """The reason why a graph cannot repeat the steps, if there is one."""
        name = type(self.optim).__name__
        if self.scaler is not None:
            return "precision=fp16 waits for the GPU"
        if self.stop is not None:
            return f"a bound on {self.stop.metric} waits for the GPU"
        if self.rates is None and (self.schedule is not None or type(self.optim) is not SGD):
            return f"{name} has no option capturable"
        return None

    def read_constants(self) -> list[dict[str, Any]]:
        """The options of all groups, without their rates."""
        groups = map(hyperparameters, self.optim.param_groups)
        return [{name: each for name, each in group.items() if name != "lr"} for group in groups]

    def schedules_more(self) -> bool:
        """Whether the schedule has changed more than the rate, as OneCycleLR does the momentum."""
        return self.schedule is not None and self.read_constants() != self.constants

    def take_rates(self) -> None:
        """Set the rates that are tensors to the schedule's."""
        if self.rates is not None and self.schedule is not None:
            for rate, group in zip(self.rates, self.optim.param_groups, strict=True):
                rate.fill_(group["lr"])

    @contextmanager
    def rates_as_tensors(self) -> Iterator[None]:
        """In this context, the optimizer can be captured if it has ``rates``."""
        if self.rates is None:
            yield
            return
        groups = self.optim.param_groups
        before = [{name: group[name] for name in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group |= {"lr": rate, "capturable": True}
        try:
            yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group |= own

    def step_schedule(self) -> None:
        """Step the schedule if it counts updates."""
        self.scheduled += 1
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()

    def take_score(self, score: float) -> None:
        """Step the schedule if it waits for a plateau of the evaluations' ``score``."""
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(score)

    def state_dict(self) -> dict[str, Any]:
        """The state of optimizer, schedule and scale, and the settings they were made with."""
        return {
            "optimizer": self.optim.state_dict(),
            "schedule": self.schedule and self.schedule.state_dict(),
            "scheduled": self.scheduled,
            "scaler": self.scaler and self.scaler.state_dict(),
            "settings": self.settings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``.

        If the settings have changed, the optimizer keeps its statistics of the gradients and takes
        the new settings, and the schedule stands where it would be with them from the start.
        """
        groups = [hyperparameters(group) for group in self.optim.param_groups]
        self.optim.load_state_dict(state["optimizer"])
        if self.rates is not None:
            for own in self.optim.state.values():
                own["step"] = own["step"].to(self.device, torch.float32)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.settings == state["settings"]:
            self.scheduled = state["scheduled"]
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            return
        for group, values in zip(self.optim.param_groups, groups, strict=True):
            group.update(values)
        for _ in range(state["scheduled"]):
            self.step_schedule()


def unique_parameters(parts: Sequence[nn.Module | nn.Parameter]) -> dict[nn.Parameter, None]:
    """The parameters of ``parts`` that take gradients, in order and once each."""
    found: dict[nn.Parameter, None] = {}
    for part in parts:
        parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
        found |= {parameter: None for parameter in parameters if parameter.requires_grad}
    return found


def hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's group without its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def clip_gradients(optim: Optimizer, max_norm: float) -> None:
    """Bound the norm of the gradients that every later step of ``optim`` takes."""
    parameters = [p for group in optim.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    optim.register_step_pre_hook(clip)
