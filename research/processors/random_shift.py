"""Images moved by a few pixels, each by itself: the augmentation of DrQ and DrQ-v2."""

from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Box
from torch import Tensor

from research.processors.base import Processor
from research.ranges import NonNegativeInt


class RandomShift(Processor):
    """Shift every image of a training batch by up to ``pad`` pixels in each direction.

    The border is repeated to fill the gap. Yarats et al., 2021,
    https://arxiv.org/abs/2107.09645, section 3.1, whose bilinear interpolation is at whole pixels
    only, so it copies pixels as this does. ``obs`` and ``next_obs`` are shifted independently;
    observations to act on are not shifted.

    Args:
        observation_space: a Box of images (C, H, W).
        action_space: left as it is.
        pad: maximum shift in pixels, below H and W.

    Raises:
        ValueError: for other observations, or images that are not larger than ``pad``.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        pad: NonNegativeInt,
    ) -> None:
        if not isinstance(observation_space, Box) or len(observation_space.shape) != 3:
            raise ValueError(
                f"observations must be images (C, H, W), got {observation_space}; try "
                "env.pixels=true (dm_control), or processor=identity and an algorithm for such"
            )
        if pad >= min(observation_space.shape[1:]):
            raise ValueError(f"pad must be below the image's size, got {pad}")
        super().__init__(observation_space, action_space)
        self.pad = pad

    def forward(self, batch: Any) -> Any:
        if not self.training:
            return batch
        processed = {"obs": self.shift(batch.obs)}
        if hasattr(batch, "next_obs"):
            processed["next_obs"] = self.shift(batch.next_obs)
        return batch._replace(**processed)

    def shift(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), each shifted by a random number of pixels."""
        offsets = torch.randint(2 * self.pad + 1, (2, len(images)), device=images.device)
        return shift_images(images, *offsets, pad=self.pad)


def shift_images(images: Tensor, down: Tensor, right: Tensor, *, pad: int) -> Tensor:
    """Cut (B, C, H, W) from images whose border is repeated ``pad`` times.

    Args:
        images: (B, C, H, W).
        down: (B,), the first row of the cut, from 0 to twice ``pad``; ``pad`` is no shift.
        right: (B,), the first column.
        pad: repetitions of the border.

    """
    height, width = images.shape[2:]
    cuts = repeat_border(images, pad).unfold(2, height, 1).unfold(3, width, 1)
    return cuts[torch.arange(len(images), device=images.device), :, down, right]


def repeat_border(images: Tensor, pad: int) -> Tensor:
    """Images (B, C, H + 2 pad, W + 2 pad), whose border pixels are repeated outwards.

    ``torch.nn.functional.pad`` takes no uint8, and gathering the pixels takes several times longer.
    """
    batch, channels, height, width = images.shape
    padded = images.new_empty(batch, channels, height + 2 * pad, width + 2 * pad)
    bottom, right = pad + height, pad + width
    padded[..., pad:bottom, pad:right] = images
    padded[..., pad:bottom, :pad] = images[..., :1]
    padded[..., pad:bottom, right:] = images[..., -1:]
    padded[..., :pad, :] = padded[..., pad : pad + 1, :]
    padded[..., bottom:, :] = padded[..., bottom - 1 : bottom, :]
    return padded
