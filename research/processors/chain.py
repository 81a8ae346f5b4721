"""Processors one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import gymnasium
from torch import Tensor, nn

from research.batches import Repeatable, Tree
from research.processors.base import Processor

ProcessorFactory: TypeAlias = Callable[[gymnasium.Space, gymnasium.Space], Processor]


class Chain(Processor):
    """Processors in order, each made for the spaces of the one before; actions pass in reverse.

    Args:
        observation_space: the environment's.
        action_space: the environment's.
        processors: each makes a processor from an observation and an action space.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        processors: Sequence[ProcessorFactory],
    ) -> None:
        links: list[Processor] = []
        for make in processors:
            links.append(make(observation_space, action_space))
            observation_space, action_space = links[-1].observation_space, links[-1].action_space
        super().__init__(observation_space, action_space)
        self.links = cast(Sequence[Processor], nn.ModuleList(links))
        self.observes = any(link.observes for link in links)

    def fit(self, batches: Iterable[Any]) -> None:
        for number, link in enumerate(self.links):
            link.fit(Repeatable(partial(self.until, number, batches)))

    def until(self, number: int, batches: Iterable[Any]) -> Iterator[Any]:
        """``batches`` as the processor of this number gets them."""
        for batch in batches:
            for link in self.links[:number]:
                batch = link(batch)
            yield batch

    def forward(self, batch: Any) -> Any:
        for link in self.links:
            batch = link(batch)
        return batch

    def observe(self, obs: Tree) -> None:
        for link in self.links:
            link.observe(obs)
            obs = link.process_obs(obs)

    def process_obs(self, obs: Tree) -> Tree:
        for link in self.links:
            obs = link.process_obs(obs)
        return obs

    def unprocess_action(self, action: Tensor) -> Tensor:
        for link in reversed(self.links):
            action = link.unprocess_action(action)
        return action
