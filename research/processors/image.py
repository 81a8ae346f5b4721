"""uint8 images as floats around 0."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from research.batches import Tree
from research.processors.base import Processor
from research.ranges import PositiveFloat

NUM_BYTES = 256


class StandardiseImages(Processor):
    """uint8 images to float32 with mean 0 and standard deviation 1 in every channel.

    Args:
        observation_space: a Box of uint8 (C, H, W).
        action_space: left as it is.
        mean: of every channel, (C,), where 0 is black and 1 white; None: that of the training
            images, which is computed before the first update and saved in every checkpoint.
        std: standard deviation of every channel; None if and only if ``mean`` is.

    Raises:
        ValueError: for other observations, or numbers that do not fit them.

    """

    mean: Tensor
    std: Tensor
    is_known: Tensor

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        mean: Sequence[float] | None,
        std: Sequence[PositiveFloat] | None,
    ) -> None:
        shape, dtype = observation_space.shape, observation_space.dtype
        if not isinstance(observation_space, Box) or len(shape or ()) != 3 or dtype != np.uint8:
            raise ValueError(
                f"observations must be uint8 images (C, H, W), got {observation_space}; "
                "try processor=identity"
            )
        assert shape is not None, "a Box has a shape"
        num_channels = shape[0]
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != num_channels:
                raise ValueError(f"{name} must have {num_channels} numbers, got {list(values)}")
        if (mean is None) != (std is None):
            raise ValueError(f"give mean and std, or null for both, got mean={mean}, std={std}")
        super().__init__(Box(-np.inf, np.inf, shape, np.float32), action_space)
        self.register_buffer("is_known", torch.tensor(mean is not None))
        self.register_buffer("mean", torch.tensor(mean or [0.0] * num_channels).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * num_channels).view(-1, 1, 1))

    def fit(self, batches: Iterable[Any]) -> None:
        if self.is_known:  # given, or loaded from another run's checkpoint
            return
        values = torch.arange(NUM_BYTES, dtype=torch.float64) / (NUM_BYTES - 1)
        counts = torch.zeros(len(self.mean), NUM_BYTES, dtype=torch.float64)
        for batch in batches:
            channels = batch.obs.transpose(0, 1).flatten(1)
            for channel, count in zip(channels, counts, strict=True):
                count += channel.bincount(minlength=NUM_BYTES).cpu()
        shares = counts / counts.sum(dim=1, keepdim=True)
        mean = shares @ values
        variance = shares @ values.square() - mean.square()
        self.mean.copy_(mean.view_as(self.mean))
        # A channel that never changes is left at 0.
        std = torch.where(variance > 1e-12, variance, 1.0).sqrt()
        self.std.copy_(std.view_as(self.std))
        self.is_known.fill_(True)

    def forward(self, batch: Any) -> Any:
        processed = {"obs": self.process_obs(batch.obs)}
        if hasattr(batch, "next_obs"):
            processed["next_obs"] = self.process_obs(batch.next_obs)
        return batch._replace(**processed)

    def process_obs(self, obs: Tree) -> Tree:
        assert isinstance(obs, Tensor), "images are one tensor"
        return (obs / (NUM_BYTES - 1) - self.mean) / self.std
