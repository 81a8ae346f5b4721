"""Encoders: modules that turn images, or images and vectors, into features (B, R)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias, TypeGuard, cast

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

from research.batches import Tree
from research.networks.mlp import Init, initialise
from research.ranges import PositiveInt


class Encoder(Protocol):
    """A module that maps observations to features (B, R)."""

    output_dim: int
    """R."""

    def __call__(self, obs: Tree) -> Tensor:
        """The features."""
        ...


EncoderFactory: TypeAlias = Callable[[gymnasium.Space], Encoder]
"""Makes an encoder for a space of observations."""


class ImageEncoder(nn.Module):
    """Convolutions without padding, then maybe a linear layer, each followed by a ReLU.

    That of Mnih et al., 2015, https://www.nature.com/articles/nature14236, is
    ``network/encoder=nature``; that of Young and Tian, 2019, https://arxiv.org/abs/1903.03176, is
    ``network/encoder=minatar``.

    Args:
        observation_space: a Box of images (C, H, W): integers, which are divided by the largest
            value of the space, such as 255; or floats, which are taken as they are.
        channels: outputs of each convolution, of which there is at least one.
        kernels: width of each convolution, pixels.
        strides: of each convolution, pixels.
        feature_dim: R, outputs of the linear layer; None for no such layer, but the outputs of the
            last convolution, flattened.
        init: fills the weights; None for torch's own initialisation.

    Raises:
        ValueError: for other observations, images that are too small, or lists that differ in
            length.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        *,
        channels: Sequence[PositiveInt],
        kernels: Sequence[PositiveInt],
        strides: Sequence[PositiveInt],
        feature_dim: PositiveInt | None,
        init: Init | None,
    ) -> None:
        super().__init__()
        if not 0 < len(channels) == len(kernels) == len(strides):
            raise ValueError(
                "channels, kernels and strides must have one number for each convolution, got "
                f"{list(channels)}, {list(kernels)} and {list(strides)}"
            )
        if not is_image(observation_space):
            raise ValueError(
                f"observations must be images (C, H, W), got {observation_space}; try "
                "network/encoder=multi_input for a Dict, none for a vector"
            )
        shape, is_float = observation_space.shape, observation_space.dtype.kind == "f"
        self.largest = 1.0 if is_float else float(observation_space.high.max())
        layers: list[nn.Module] = []
        sizes = zip(pairwise([shape[0], *channels]), kernels, strides, strict=True)
        for widths, kernel, stride in sizes:
            layers += [nn.Conv2d(*widths, kernel, stride), nn.ReLU()]
        num_features = channels[-1] * math.prod(sides_after(shape[1:], kernels, strides))
        layers.append(nn.Flatten())
        if feature_dim is not None:
            layers += [nn.Linear(num_features, feature_dim), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.output_dim = feature_dim or num_features
        initialise(self, init)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  faster on CPUs

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        floats = images.to(dtype, memory_format=torch.channels_last)
        return self.layers(floats / self.largest)


class MultiInput(nn.Module):
    """The features of every image of a Dict, and its floats as they are, side by side.

    Images come first, then floats, both in the order of the space.

    Args:
        observation_space: a Dict of images (C, H, W) and of floats of any other shape.
        image: makes the encoder of each image.

    Raises:
        ValueError: for any other space.

    """

    def __init__(self, observation_space: gymnasium.Space, *, image: EncoderFactory) -> None:
        super().__init__()
        if not is_dict(observation_space):
            raise ValueError(
                f"observations must be a Dict, got {observation_space}; try env.flatten_obs=false, "
                "or network/encoder=nature for an image, none for a vector"
            )
        spaces = observation_space.spaces
        self.images = [key for key, space in spaces.items() if is_image(space)]
        self.floats = [key for key in spaces if key not in self.images]
        for key in self.floats:
            require_floats(key, spaces[key])
        encoders = [image(spaces[key]) for key in self.images]
        # a ModuleDict would refuse keys with a dot, and names such as "type"
        self.encoders = nn.ModuleList(cast(list[nn.Module], encoders))
        widths = [math.prod(spaces[key].shape or ()) for key in self.floats]
        self.output_dim = sum(widths) + sum(encoder.output_dim for encoder in encoders)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        pairs = zip(self.images, self.encoders, strict=True)
        features = [encoder(obs[key]) for key, encoder in pairs]
        # of any batch size, also where the module is exported
        floats = [obs[key].unsqueeze(-1).flatten(1) for key in self.floats]
        return torch.cat([*features, *floats], dim=1)


def is_image(space: gymnasium.Space) -> TypeGuard[Box]:
    """Whether a space is a Box of numbers (C, H, W)."""
    return isinstance(space, Box) and len(space.shape) == 3


def is_dict(space: gymnasium.Space) -> TypeGuard[Dict]:
    """Whether a space is a Dict."""
    return isinstance(space, Dict)


def require_floats(key: str, space: gymnasium.Space) -> None:
    """Refuse a part of a Dict that is no Box of floats."""
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"observations['{key}'] must be floats or an image (C, H, W), got {space}; try "
            "env.flatten_obs=true, or an encoder for such observations"
        )


def sides_after(
    sides: Sequence[int], kernels: Sequence[int], strides: Sequence[int]
) -> Sequence[int]:
    """Height and width after convolutions without padding.

    Raises:
        ValueError: an image has too few pixels.

    """
    smallest, left = 1, list(sides)
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        smallest = (smallest - 1) * stride + kernel
    if min(sides) < smallest:
        raise ValueError(
            f"images must be at least {smallest} x {smallest}, got {' x '.join(map(str, sides))}; "
            "try network/encoder=minatar, or other kernels and strides"
        )
    for kernel, stride in zip(kernels, strides, strict=True):
        left = [(side - kernel) // stride + 1 for side in left]
    return left
