"""Observations shifted and scaled by their running mean and standard deviation."""

from collections import OrderedDict
from typing import Any, Literal, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

from research.batches import Tree
from research.parallel.sums import is_parallel, sum_of_ranks
from research.processors.base import Processor
from research.ranges import PositiveFloat


class RunningMoments(nn.Module):
    """Mean and variance of all values so far, updated batch by batch.

    Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances", equation 2.1. The statistics are buffers, so checkpoints hold them.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Update the statistics by B values, (B, ...); by those of all ranks."""
        values = values.double()
        difference, variance = values.mean(dim=0) - self.mean, values.var(dim=0, correction=0)
        size: int | Tensor = len(values)
        if is_parallel():
            size = sum_of_ranks(torch.full_like(self.count, size))
            moments = torch.stack([difference, variance + difference.square()]) * len(values)
            difference, square = sum_of_ranks(moments) / size
            variance = square - difference.square()
        count = self.count + size
        sum_of_squares = (
            self.variance * self.count
            + variance * size
            + difference.square() * self.count * size / count
        )
        self.mean += difference * size / count
        self.variance.copy_(sum_of_squares / count)
        self.count.copy_(count)


class NormaliseObservations(Processor):
    """Shift and scale every float observation by running statistics.

    Statistics of batches come from the ``obs`` of each training batch, once per update, so they
    follow what the algorithm learns from. Those of steps come from every observation that is acted
    on in training, once (Lee et al., 2024, https://arxiv.org/abs/2410.09754, equation 2). Entries
    of a Dict that are not float are left as they are.

    Args:
        observation_space: a Box, or a Dict of such.
        action_space: left as it is.
        clip: bound on the result, in standard deviations.
        epsilon: added to the variance.
        source: of the statistics, ``batches`` or ``steps``.

    Raises:
        ValueError: no part of the space is a float Box.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        clip: PositiveFloat,
        epsilon: PositiveFloat,
        source: Literal["batches", "steps"],
    ) -> None:
        parts = observation_space.spaces if isinstance(observation_space, Dict) else None
        boxes = parts or {"obs": observation_space}
        # ordered, since a Dict space sorts the keys of a plain dict
        normalised = OrderedDict((key, self.bounded(space, clip)) for key, space in boxes.items())
        super().__init__(Dict(normalised) if parts else normalised["obs"], action_space)
        self.moments = {
            key: RunningMoments(space.shape) for key, space in boxes.items() if is_float(space)
        }
        if not self.moments:
            raise ValueError(f"there is no float observation to normalise in {observation_space}")
        # a ModuleDict would refuse keys with a dot, and names such as "type"
        self.registered = nn.ModuleList(self.moments.values())
        self.clip = clip
        self.epsilon = epsilon
        self.observes = source == "steps"

    @staticmethod
    def bounded(space: gymnasium.Space, clip: float) -> gymnasium.Space:
        return Box(-clip, clip, space.shape, np.float32) if is_float(space) else space

    def forward(self, batch: Any) -> Any:
        if self.training and not self.observes:
            self.update(batch.obs)
        processed = {"obs": self.process_obs(batch.obs)}
        if hasattr(batch, "next_obs"):
            processed["next_obs"] = self.process_obs(batch.next_obs)
        return batch._replace(**processed)

    def observe(self, obs: Tree) -> None:
        if self.observes:
            self.update(obs)

    def update(self, obs: Tree) -> None:
        """Update the statistics by observations (B, O)."""
        parts = obs if isinstance(obs, dict) else {"obs": obs}
        for key, moments in self.moments.items():
            moments.update(parts[key])

    def process_obs(self, obs: Tree) -> Tree:
        if isinstance(obs, dict):
            return {key: self.normalise(key, value) for key, value in obs.items()}
        return self.normalise("obs", obs)

    def normalise(self, key: str, value: Tensor) -> Tensor:
        """One part of the observation, (B, O)."""
        if key not in self.moments:
            return value
        moments = self.moments[key]
        scale = (moments.variance + self.epsilon).rsqrt().float()
        return ((value.float() - moments.mean.float()) * scale).clamp(-self.clip, self.clip)


def is_float(space: gymnasium.Space) -> TypeGuard[Box]:
    """Whether a space is a Box of floats."""
    return isinstance(space, Box) and np.issubdtype(space.dtype, np.floating)
