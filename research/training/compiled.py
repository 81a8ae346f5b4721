"""Whole updates as graphs that torch.compile makes: gradients, steps of Adam, and moved copies."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.optim import Adam, AdamW

from research.algs.base import Algorithm, Loss, Objective, PolyakCopy
from research.training.descent import Descent
from research.training.gradient import NOT_COMPILED, compiled, pure_gradient
from research.training.precision import Precision

log = logging.getLogger(__name__)


class AdamGroup(NamedTuple):
    """What a step of Adam reads and changes.

    Attributes:
        names: of the parameters.
        parameters: of one group of the optimizer, detached.
        means, squares, steps: the optimizer's state, a tensor for each parameter.
        rate: the learning rate, ().
        betas: decay of the means and of the squares.
        epsilon: added to the root of the squares.
        weight_decay: factor of the parameters.
        is_decoupled: whether that is subtracted from the parameters, as AdamW does, instead of
            being added to the gradients.

    """

    names: Sequence[str]
    parameters: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    steps: Sequence[Tensor]
    rate: Tensor
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    is_decoupled: bool


class Move(NamedTuple):
    """A copy that follows a module.

    Attributes:
        old, new: the parameters of both, detached.
        buffers: the pairs of both.
        tau: the share of the way that the copy's parameters go.

    """

    old: Sequence[Tensor]
    new: Sequence[Tensor]
    buffers: Sequence[tuple[Tensor, Tensor]]
    tau: float


class CompiledUpdates:
    """Makes the updates of an algorithm by a graph for each set of steps and copies due together.

    The numbers are those of eager updates but for rounding, in Adam's formula too, and the same in
    every run of one machine. As for ``CompiledGradients``, weights are detached.

    Args:
        alg: its tensors must stay where they are in memory.
        descents: their optimizers have made a step, and keep their state where it is.
        copies: that follow its modules.
        precision: of the networks' arithmetic.
        device: of the tensors.

    Attributes:
        is_exhausted: whether it gave up since there would be too many graphs.

    """

    def __init__(
        self,
        alg: Algorithm,
        descents: Mapping[str, Descent],
        copies: Sequence[PolyakCopy],
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.alg = alg
        self.descents = descents
        self.copies = copies
        self.precision: Precision = precision
        self.device = device
        self.names = {parameter: name for name, parameter in alg.named_parameters()}
        modules = [alg, *(module for copy in copies for module in (copy.target, copy.of))]
        # one detached tensor for each parameter: aliases among its inputs would slow a graph
        self.places = {each: each.detach() for module in modules for each in module.parameters()}
        self.tensors = {
            **{name: self.places[parameter] for parameter, name in self.names.items()},
            **dict(alg.named_buffers()),
        }
        self.rates: dict[str, list[Tensor]] = {
            name: [
                torch.tensor(group["lr"], dtype=torch.float64, device=device)
                for group in descent.optim.param_groups
            ]
            for name, descent in descents.items()
        }
        self.moves = [self.make_move(copy) for copy in copies]
        self.graphs: dict[Any, Callable[..., Any]] = {}
        self.is_exhausted = False

    def __call__(
        self, due: Sequence[Objective], moved: Sequence[bool], arguments: tuple[Any, Any]
    ) -> dict[str, Loss] | None:
        """Make an update; returns the losses by objective, or None if it cannot be compiled.

        Args:
            due: the objectives that have a step, at least one.
            moved: which copies move.
            arguments: a batch, and what was drawn for it.

        """
        key = (*(objective.name for objective in due), *moved)
        if key not in self.graphs:
            self.graphs[key] = compiled(self.make_update(due, moved))
        for objective in due:
            descent = self.descents[objective.name]
            if descent.schedule is not None:
                groups = descent.optim.param_groups
                for rate, group in zip(self.rates[objective.name], groups, strict=True):
                    rate.fill_(group["lr"])
        try:
            losses = self.graphs[key](arguments)
        except FailOnRecompileLimitHit:
            self.is_exhausted = True
            reason = "more than eight sizes of batches, or values of a number that a loss reads"
            log.warning("updates run eagerly from now on: %s", reason)
            return None
        except NOT_COMPILED:
            return None
        return {name: Loss(**loss) for name, loss in losses.items()}

    def make_update(
        self, due: Sequence[Objective], moved: Sequence[bool]
    ) -> Callable[[Any], dict[str, dict[str, Any]]]:
        """The update, of which the tensors of the algorithm and the optimizers are constants."""
        steps = []
        for objective in due:
            descent = self.descents[objective.name]
            names = [self.names[parameter] for parameter in descent.parameters]
            trained = {name: self.tensors[name] for name in names}
            fixed = {name: value for name, value in self.tensors.items() if name not in trained}
            pure = pure_gradient(self.alg, objective, self.precision, self.device)
            steps.append((objective, pure, trained, fixed, self.make_groups(objective)))
        moves = [move for move, is_due in zip(self.moves, moved, strict=True) if is_due]
        max_norms = {
            objective.name: self.descents[objective.name].max_grad_norm for objective in due
        }

        def update(arguments: tuple[Any, Any]) -> dict[str, dict[str, Any]]:
            losses: dict[str, dict[str, Any]] = {}
            for objective, pure, trained, fixed, groups in steps:
                source = objective.reuses
                reused = () if source is None else (losses[source].get("result"),)
                gradients, loss = pure(trained, fixed, (*arguments, *reused), None)
                max_norm = max_norms[objective.name]
                if max_norm is not None:
                    gradients = clip(gradients, max_norm)
                for group in groups:
                    take_adam_step(group, gradients)
                losses[objective.name] = loss
            for move in moves:
                if move.old:
                    torch._foreach_lerp_(move.old, move.new, move.tau)  # type: ignore[reportPrivateImportUsage]
                for old, new in move.buffers:
                    old.copy_(new)
            return losses

        return update

    def make_groups(self, objective: Objective) -> list[AdamGroup]:
        """The groups of an objective's optimizer."""
        optim = self.descents[objective.name].optim
        groups = []
        for group, rate in zip(optim.param_groups, self.rates[objective.name], strict=True):
            states = [optim.state[parameter] for parameter in group["params"]]
            made = AdamGroup(
                names=[self.names[parameter] for parameter in group["params"]],
                parameters=[self.places[parameter] for parameter in group["params"]],
                means=[state["exp_avg"] for state in states],
                squares=[state["exp_avg_sq"] for state in states],
                steps=[state["step"] for state in states],
                rate=rate,
                betas=group["betas"],
                epsilon=group["eps"],
                weight_decay=group["weight_decay"],
                is_decoupled=isinstance(optim, AdamW) or group.get("decoupled_weight_decay", False),
            )
            groups.append(made)
        return groups

    def make_move(self, copy: PolyakCopy) -> Move:
        """The tensors of a copy and of what it follows."""
        pair = copy.target, copy.of
        old, new = ([self.places[each] for each in module.parameters()] for module in pair)
        buffers = zip(copy.target.buffers(), copy.of.buffers(), strict=True)
        return Move(old, new, list(buffers), copy.tau)


def is_plain_adam(descent: Descent) -> bool:
    """Whether a graph can hold the steps: those of Adam, as the paper has them, and always due."""
    groups, others = descent.optim.param_groups, ("amsgrad", "maximize", "differentiable")
    return (
        type(descent.optim) in (Adam, AdamW)
        and descent.scaler is None
        and descent.stop is None
        and not any(group[name] for group in groups for name in others)
    )


def take_adam_step(group: AdamGroup, gradients: Mapping[str, Tensor]) -> None:
    """A step of Adam, in place: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980, algorithm 1.

    With decoupled weight decay: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
    """
    # torch.compile stores a result with an exponential in it that is read more than once, where it
    # would compute a power again in the loops over a parameter's elements.
    counts = torch.stack([*group.steps]).double() + 1
    logs = [math.log(beta) if beta else -math.inf for beta in group.betas]
    first, second = (1 - (counts * each).exp() for each in logs)
    sizes, scales = group.rate / first, second.rsqrt()
    beta1, beta2 = group.betas
    tensors = (group.names, group.parameters, group.means, group.squares, group.steps)
    for index, (name, parameter, mean, square, step) in enumerate(zip(*tensors, strict=True)):
        gradient = gradients[name]
        step.add_(1)
        if group.is_decoupled:
            parameter.mul_(1 - group.rate * group.weight_decay)
        elif group.weight_decay:
            gradient = gradient + group.weight_decay * parameter
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt() * scales[index] + group.epsilon
        parameter.sub_(sizes[index] * mean / root)


def clip(gradients: Mapping[str, Tensor], max_norm: float) -> dict[str, Tensor]:
    """The gradients, scaled down where their joint norm exceeds a bound."""
    norms = torch.stack([torch.linalg.vector_norm(each) for each in gradients.values()])
    factor = (max_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}
