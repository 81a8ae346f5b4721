"""Augmentations of training images, each image by itself, on the device."""

from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Box
from torch import Tensor

from research.processors.base import Processor
from research.ranges import Fraction, PositiveInt


class Augmentation(Processor):
    """Changes the images (B, C, H, W) of training batches, but not observations to act on.

    Args:
        observation_space: a Box of images (C, H, W).
        action_space: left as it is.

    Raises:
        ValueError: for other observations.

    """

    def __init__(self, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        if not isinstance(observation_space, Box) or len(observation_space.shape) != 3:
            raise ValueError(f"observations must be images (C, H, W), got {observation_space}")
        super().__init__(observation_space, action_space)

    def forward(self, batch: Any) -> Any:
        return batch._replace(obs=self.augment(batch.obs)) if self.training else batch

    def augment(self, images: Tensor) -> Tensor:
        """The augmented images (B, C, H, W)."""
        raise NotImplementedError


class RandomFlip(Augmentation):
    """Mirrors left and right.

    Args:
        observation_space: a Box of images (C, H, W).
        action_space: left as it is.
        probability: of an image to be mirrored.

    Raises:
        ValueError: for other observations.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        probability: Fraction,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.probability = probability

    def augment(self, images: Tensor) -> Tensor:
        flips = torch.rand(len(images), 1, 1, 1, device=images.device) < self.probability
        return torch.where(flips, images.flip(-1), images)


class Cutout(Augmentation):
    """Sets a square, part of which may lie outside the image, to 0.

    DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552. After ``StandardiseImages``, 0 is
    the mean of each channel, as in the paper.

    Args:
        observation_space: a Box of images (C, H, W).
        action_space: left as it is.
        size: side of the square in pixels.

    Raises:
        ValueError: for other observations.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        size: PositiveInt,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.size = size

    def augment(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        rows, columns = (self.covered(batch, length, images.device) for length in (height, width))
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)

    def covered(self, batch: int, length: int, device: torch.device) -> Tensor:
        """Which pixels along a side the squares cover, (B, length); their centres lie inside."""
        first = torch.randint(length, (batch, 1), device=device) - self.size // 2
        places = torch.arange(length, device=device)
        return (places >= first) & (places < first + self.size)


class Transform(Augmentation):
    """Any function of a batch of images, such as those of kornia or torchvision.

    Its random numbers must come from torch's generators, or runs are not reproducible.
    torchvision's functions draw once for the whole batch, kornia's for every image.

    Args:
        observation_space: a Box of images (C, H, W).
        action_space: left as it is.
        transform: images (B, C, H, W) to images of the same shape and type.

    Raises:
        ValueError: for other observations.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(observation_space, action_space)
        self.transform = transform

    def augment(self, images: Tensor) -> Tensor:
        changed = self.transform(images)
        if changed.shape != images.shape or changed.dtype != images.dtype:
            raise ValueError(
                f"processor.transform must keep {tuple(images.shape)} {images.dtype}, got "
                f"{tuple(changed.shape)} {changed.dtype}"
            )
        return changed
