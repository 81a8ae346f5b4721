"""The base class of algorithms that learn targets from examples."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from research.algs.base import Algorithm, Loss, Metrics, Objective, OptimFactory
from research.batches import Example, Tree
from research.errors import UserError
from research.networks.predictor import Predictor

REMEDIES: dict[type[gymnasium.Space], str] = {
    Discrete: "try alg=regression, or, if these are labels, store integers or say how many classes "
    "there are, as in dataset.num_classes=2",
    Box: "try alg=classification, or, if these are numbers to learn, store floats or set "
    "dataset.num_classes=0 for a file's integers",
}
"""Advice for targets of another kind, by the kind that the algorithm learns."""


class Supervised(Algorithm):
    """Minimises a loss that is a mean over examples; a subclass defines the loss.

    Args:
        network: maps observations (B, ...) to scores or values (B, D).
        optim: builds an optimizer from groups of parameters.

    Raises:
        ValueError: for a network for targets of another kind.

    """

    target_space: ClassVar[type[gymnasium.Space]]
    """The kind of targets that the loss takes."""

    def __init__(self, network: Predictor, *, optim: OptimFactory) -> None:
        super().__init__()
        if not isinstance(network.action_space, self.target_space):
            raise ValueError(
                f"{type(self).__name__} learns targets in a {self.target_space.__name__}, got "
                f"{network.action_space}; {REMEDIES.get(self.target_space, 'try another alg')}"
            )
        self.network = network
        self.optim = optim

    def objectives(self) -> Sequence[Objective]:
        return [
            Objective(name="network", loss=self.loss, trains=[self.network], optim=self.optim),
        ]

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        """The network's outputs (B, D), whether to explore or not."""
        return self.network(obs)

    def loss(self, batch: Example, noise: Any) -> Loss:
        """The loss of the network's outputs, and their other metrics."""
        output = self.network(batch.obs)
        # the square of an output may overflow fp16
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        loss = self.compute_loss(output, batch)
        with torch.no_grad():
            return Loss(loss, self.compute_metrics(output, batch))

    def validate(self, batch: Example) -> Metrics:
        """The metrics of training; expects evaluation mode."""
        loss = self.loss(batch, None)
        return {"loss": loss.value, **loss.metrics}

    @abstractmethod
    def compute_loss(self, output: Tensor, batch: Example) -> Tensor:
        """The mean over the batch of every example's loss, without dimensions.

        It must be the sum over the examples divided by B: parts of a batch are weighted by their
        number of examples.
        """

    def compute_metrics(self, output: Tensor, batch: Example) -> Metrics:
        """Other means over the batch."""
        return {}


def check_shape(output: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a network's ``output`` that the loss would broadcast or misread.

    Raises:
        UserError: it is not of the ``expected`` shape.

    """
    if output.shape != expected:
        raise UserError(
            f"the network returns {tuple(output.shape)} for a batch, but the loss needs {expected}"
        )
