"""Residual networks: He et al., 2016, https://arxiv.org/abs/1512.03385."""

from collections.abc import Sequence
from typing import Literal

import gymnasium
import torch
from torch import Tensor, nn

from research.networks.predictor import Predictor, image_shape
from research.ranges import PositiveInt

SMALL_SIDE = 64
"""Images with a side below this keep their resolution up to the second stage (section 4.2)."""


class Residual(nn.Module):
    """A block, initialised to its shortcut: (B, C, H, W) to (B, C', H / stride, W / stride).

    C' is ``width``, or 4 ``width`` for a bottleneck.
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, is_bottleneck: bool) -> None:
        super().__init__()
        if is_bottleneck:
            out_channels = 4 * width
            layers = [
                *convolve(in_channels, width, 1),
                nn.ReLU(inplace=True),
                *convolve(width, width, 3, stride),
                nn.ReLU(inplace=True),
                *convolve(width, out_channels, 1),
            ]
        else:
            out_channels = width
            layers = [
                *convolve(in_channels, width, 3, stride),
                nn.ReLU(inplace=True),
                *convolve(width, width, 3),
            ]
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        self.body = nn.Sequential(*layers)
        keeps_shape = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity()
            if keeps_shape
            else nn.Sequential(*convolve(in_channels, out_channels, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(Predictor):
    """A stem, stages of residual blocks (usually four), and an average over the image.

    Images whose sides are 64 or more go through the stem of ImageNet, smaller ones through that of
    CIFAR-10.

    Deviations:
        Shortcuts that change shape are projections everywhere (option B of the paper).
        A bottleneck's stride is in its 3x3 convolution, and the last norm of every block starts at
        zero, both as in Goyal et al., 2017, https://arxiv.org/abs/1706.02677.

    Args:
        observation_space: a Box of float images (C, H, W), each side at least 2 ** (stages - 1).
        action_space: of the targets.
        block: two 3x3 convolutions (basic), or 1x1, 3x3 and 1x1 (bottleneck).
        depths: blocks of each stage, of which there is at least one.
        width: channels of the first stage's 3x3 convolutions; each stage doubles them.
        channels_last: whether images are laid out as (B, H, W, C) in memory.

    Raises:
        ValueError: for spaces that it cannot take, or no stage.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[PositiveInt],
        width: PositiveInt,
        channels_last: bool,
    ) -> None:
        super().__init__(observation_space, action_space)
        if not depths:
            raise ValueError("depths must be of at least one stage, got []")
        shape = image_shape(observation_space, min_side=2 ** (len(depths) - 1))
        self.stem = make_stem(shape, width)
        channels, blocks = width, []
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                is_bottleneck = block == "bottleneck"
                stage_width = width * 2**stage
                blocks.append(Residual(channels, stage_width, stride, is_bottleneck=is_bottleneck))
                channels = stage_width * (4 if is_bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, self.output_dim)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images.contiguous(memory_format=self.layout)))
        return self.head(features.mean(dim=(2, 3)))


def make_stem(shape: tuple[int, int, int], width: int) -> nn.Sequential:
    """The layers before the first block, for images (C, H, W)."""
    channels, height, width_of_image = shape
    if min(height, width_of_image) < SMALL_SIDE:
        return nn.Sequential(*convolve(channels, width, 3), nn.ReLU(inplace=True))
    return nn.Sequential(
        *convolve(channels, width, 7, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def convolve(in_channels: int, channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution, initialised as in He et al., 2015, and its normalisation."""
    convolution = nn.Conv2d(
        in_channels, channels, size, stride=stride, padding=size // 2, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(channels)]
