"""A small convolutional network."""

from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import torch
from torch import Tensor, nn

from research.networks.predictor import Predictor, image_shape
from research.ranges import FractionBelowOne, PositiveInt


class CNN(Predictor):
    """3x3 convolutions with batch normalisation; images are halved between them, then averaged.

    Args:
        observation_space: a Box of float images (C, H, W), each side at least 2 ** (stages - 1).
        action_space: of the targets.
        channels: of each stage, of which there is at least one.
        dropout: share of the averaged channels that is dropped.
        channels_last: whether images are laid out as (B, H, W, C) in memory.

    Raises:
        ValueError: for spaces that it cannot take, or no stage.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        channels: Sequence[PositiveInt],
        dropout: FractionBelowOne,
        channels_last: bool,
    ) -> None:
        super().__init__(observation_space, action_space)
        if not channels:
            raise ValueError("channels must be of at least one stage, got []")
        in_channels, *_ = image_shape(observation_space, min_side=2 ** (len(channels) - 1))
        layers: list[nn.Module] = []
        for width_in, width in pairwise([in_channels, *channels]):
            layers += [
                nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.stages = nn.Sequential(*layers[:-1])
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels[-1], self.output_dim))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(images.contiguous(memory_format=self.layout))
        return self.head(features.mean(dim=(2, 3)))
