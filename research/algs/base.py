"""The base class of algorithms: a module that acts and learns from batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.batches import Tree

Metrics: TypeAlias = dict[str, Tensor]
"""Detached tensors without dimensions, by name."""

OptimFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]


class Algorithm(nn.Module, ABC):
    """A learning rule. Its ``state_dict`` holds its weights; its optimizers are attributes.

    It is built without optimizers, so acting and loading weights need none; the trainer asks for
    them before the first update. (The first optimizer of a process makes torch import its compiler,
    which takes about as long as importing torch.)
    """

    is_skipped = False
    """Whether the last update changed no weight, since it overflowed; schedules skip it, too."""

    @abstractmethod
    def act(self, obs: Tree, step: int, explore: bool) -> Tensor:
        """Actions (B, A) for observations (B, O), with exploration noise or without."""

    @abstractmethod
    def make_optimizers(self) -> None:
        """Set the optimizers, as attributes, for the parameters on their present device.

        Raises:
            ValueError: an optimizer refuses its settings.

        """

    @abstractmethod
    def update(self, batch: Any, *, step: int, updates: int) -> Metrics:
        """Learn from one batch.

        Args:
            batch: as the processor returns it, on the device.
            step: steps of the run so far, for schedules.
            updates: updates made before this one, for periods.

        """

    def copies(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """Each frozen copy of a network, such as a target, and the network that it copies.

        With ``init_from`` a copy that gets no weights of its own gets those of its network.
        """
        return ()

    def validate(self, batch: Any) -> Metrics:
        """Metrics of the algorithm on one batch that it does not learn from.

        Raises:
            NotImplementedError: the algorithm is evaluated in environments only.

        """
        raise NotImplementedError(f"{type(self).__name__} has no validation on batches")

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers by their attribute's name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Optimizer)}


def take_step(optim: Optimizer, loss: Tensor) -> None:
    """One optimizer step down the gradient of ``loss``, for this optimizer's parameters alone.

    No other parameter gets a gradient, so a frozen critic costs nothing in an actor's update.
    """
    parameters = [p for group in optim.param_groups for p in group["params"]]
    for parameter, grad in zip(
        parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
    ):
        parameter.grad = grad
    optim.step()
