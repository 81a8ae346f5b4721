"""The gradient of a loss as a function of nothing but tensors, compiled as one graph."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.func import functional_call, grad

from research.algs.base import Algorithm, Loss, Objective
from research.training.precision import Precision, autocast

Tensors = Mapping[str, Tensor]
Pure = Callable[
    [Tensors, Tensors, Sequence[Any], Tensor | None], tuple[dict[str, Tensor], dict[str, Any]]
]
"""See ``pure_gradient``."""

NOT_COMPILED = (TorchDynamoException, OSError)
"""What torch.compile raises where it cannot; OSError if it cannot write to its cache."""

OF_CODE = {
    *("BUILTIN_MATCH", "CLASS_MATCH", "CLOSURE_MATCH", "DICT_CONTAINS", "DICT_KEYS_MATCH"),
    *("DICT_NOT_CONTAINS", "EMPTY_NN_MODULE_HOOKS_DICT", "MODULE_MATCH"),
    *("NOT_PRESENT_IN_GENERIC_DICT", "TYPE_MATCH"),
}
"""Guards, by torch.compile's names, of what does not change while a run trains."""

log = logging.getLogger(__name__)


class CompiledGradients:
    """Computes the gradients of an algorithm's objectives by graphs that torch.compile makes.

    A graph holds the loss and its derivative. It reads detached weights: of inputs that require
    gradients torch.compile would trace the second derivative too, which takes twice as long. The
    numbers are those of ``Tensor.backward`` but for rounding, and the same in every run of one
    machine; a trained parameter that the loss does not use has a gradient of zeros instead of none.

    Args:
        alg: has the objectives; its tensors must stay where they are in memory.
        precision: of the networks' arithmetic.
        device: of the tensors.

    """

    def __init__(self, alg: Algorithm, precision: Precision, device: torch.device) -> None:
        self.alg = alg
        self.precision: Precision = precision
        self.device = device
        self.names = {parameter: name for name, parameter in alg.named_parameters()}
        parameters = {name: parameter.detach() for parameter, name in self.names.items()}
        self.tensors = {**parameters, **dict(alg.named_buffers())}
        self.graphs: dict[str, Callable[..., Any] | None] = {}

    def __call__(
        self,
        objective: Objective,
        parameters: Sequence[nn.Parameter],
        arguments: Sequence[Any],
        factor: Tensor | None,
    ) -> tuple[Loss, list[Tensor]] | None:
        """A loss and its gradient times ``factor``; None if it cannot be compiled.

        Args:
            objective: whose loss it is.
            parameters: by which to differentiate, the same in every call.
            arguments: of the loss.
            factor: (), or None for 1.

        """
        if objective.name not in self.graphs:
            names = [self.names[parameter] for parameter in parameters]
            trained = {name: self.tensors[name] for name in names}
            fixed = {name: value for name, value in self.tensors.items() if name not in trained}
            pure = pure_gradient(self.alg, objective, self.precision, self.device)
            self.graphs[objective.name] = partial(compiled(pure), trained, fixed)
        graph = self.graphs[objective.name]
        if graph is None:
            return None
        try:
            gradients, loss = graph(tuple(arguments), factor)
        except (*NOT_COMPILED, FailOnRecompileLimitHit) as error:
            reason = str(error).strip().partition("\n")[0]
            told = "%s is trained eagerly, for torch.compile cannot: %s"
            log.warning(told, objective.name, reason)
            self.graphs[objective.name] = None
            return None
        return Loss(**loss), list(gradients.values())


class LossModule(nn.Module):
    """An objective's loss as a module's forward, for which tensors can be given.

    Args:
        alg: has the tensors.
        loss: of the algorithm.

    """

    def __init__(self, alg: Algorithm, loss: Callable[..., Loss]) -> None:
        super().__init__()
        self.alg = alg
        self.loss = loss

    def forward(self, *arguments: Any) -> Loss:
        """The loss."""
        return self.loss(*arguments)


def pure_gradient(
    alg: Algorithm, objective: Objective, precision: Precision, device: torch.device
) -> Pure:
    """The gradient of an objective's loss, as a function of all tensors of its algorithm.

    Its arguments: the tensors to differentiate by and the others, both by name; the loss's own
    arguments; and a factor, or None for 1. It returns the gradient times the factor by name, and
    the fields of the loss that are not None, detached and in fp32. Buffers are changed in place, as
    the loss changes them.
    """
    module = LossModule(alg, objective.loss)

    def compute_value(
        trained: Tensors, fixed: Tensors, arguments: Sequence[Any], factor: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        tensors = {f"alg.{name}": value for name, value in {**fixed, **trained}.items()}
        with autocast(device, precision):
            loss = functional_call(module, tensors, tuple(arguments))
        if precision != "fp32":
            metrics = {name: value.float() for name, value in loss.metrics.items()}
            loss = loss._replace(value=loss.value.float(), metrics=metrics)
        present = {key: part for key, part in loss._asdict().items() if part is not None}
        return loss.value if factor is None else loss.value * factor, present

    return grad(compute_value, has_aux=True)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as one graph for each shape of its inputs, made when it is first called."""
    options: dict[str, Any] = {"guard_filter_fn": choose_guards}
    return torch.compile(of_its_own_code(function), fullgraph=True, dynamic=False, options=options)


def choose_guards(guards: Sequence[Any]) -> list[bool]:
    """Which guards are checked at each call: of what may change while a run trains.

    These are the inputs' shapes, numbers that a loss reads, and torch's own state; not the code,
    the modules and other tensors, of which a small network has 700 guards, which take a twentieth
    of an update.

    Args:
        guards: torch.compile's entries, for which it wants a bool each.

    """
    return [
        guard.guard_type not in OF_CODE
        and (guard.guard_type != "TENSOR_MATCH" or "inputs" in guard.name)
        for guard in guards
    ]


def of_its_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, called by code that nothing else is called by.

    torch.compile makes at most eight graphs of one piece of code.
    """

    def call(*inputs: Any) -> Any:
        return function(*inputs)

    return FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
