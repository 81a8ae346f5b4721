"""Modules between dataset and algorithm that process whole batches on the device."""

from collections.abc import Iterable
from typing import Any

import gymnasium
from torch import Tensor, nn

from research.batches import Tree


class Processor(nn.Module):
    """Turns a dataset's batches into an algorithm's; this one leaves them as they are.

    Attributes:
        observation_space: of the observations after processing.
        action_space: of the actions after processing, those the algorithm acts in.
        observes: whether ``observe`` is to be called.

    """

    observes = False

    def __init__(self, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space

    def fit(self, batches: Iterable[Any]) -> None:
        """Compute statistics of all training batches, before the first update.

        Args:
            batches: may be iterated more than once; each time the dataset is read again.

        """

    def forward(self, batch: Any) -> Any:
        """A training batch as the algorithm takes it; in training mode statistics are updated."""
        return batch

    def process_obs(self, obs: Tree) -> Tree:
        """Observations (B, O) to act on; no statistics are updated."""
        return obs

    def observe(self, obs: Tree) -> None:
        """Note the observations (E, O) of one step of training, before they are acted on."""

    def unprocess_action(self, action: Tensor) -> Tensor:
        """The algorithm's actions (B, A) as the environment takes them."""
        return action


class Identity(Processor):
    """Leaves everything as it is."""
