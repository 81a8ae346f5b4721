"""Networks that predict targets: their base class, and a perceptron on flattened observations."""

import math
from collections.abc import Sequence
from typing import cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor, nn

from research.batches import Tree
from research.networks.encoders import EncoderFactory
from research.networks.mlp import MLP, Activation, Init, Layers
from research.ranges import PositiveInt


class Predictor(nn.Module):
    """Maps observations (B, ...) to the scores (B, K) of K classes, or to values (B, D).

    Attributes:
        observation_space: of the observations.
        action_space: of the targets: Discrete, K classes; or a Box of floats, (D,).
        output_dim: K or D.

    Raises:
        ValueError: for any other ``action_space``.

    """

    def __init__(self, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.output_dim = count_outputs(action_space)


class FlatMLP(Predictor):
    """A perceptron on observations of any shape, flattened, or on the features of an encoder.

    Args:
        observation_space: a Box of floats, such as (O,) or (C, H, W); or what the encoder takes.
        action_space: of the targets.
        hidden_dims: widths of the hidden layers.
        activation: makes the activation after each hidden layer.
        layer_norm: whether hidden layers are normalised before their activation.
        init: fills the weight matrices; None for torch's own initialisation.
        encoder: makes the encoder; None for none.

    Raises:
        ValueError: for spaces that it cannot take.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        hidden_dims: Sequence[PositiveInt],
        activation: Activation,
        layer_norm: bool,
        init: Init | None,
        encoder: EncoderFactory | None = None,
    ) -> None:
        super().__init__(observation_space, action_space)
        layers = Layers(hidden_dims, activation, layer_norm, init)
        self.encoder: nn.Module = nn.Flatten()
        if encoder is None:
            width = math.prod(float_shape(observation_space))
        else:
            self.encoder = cast(nn.Module, encoder(observation_space))
            width = cast(int, self.encoder.output_dim)
        self.mlp = MLP(width, self.output_dim, layers)

    def forward(self, obs: Tree) -> Tensor:
        return self.mlp(self.encoder(obs))


def count_outputs(space: gymnasium.Space) -> int:
    """The number of outputs for targets in ``space``: K classes, or D values.

    Raises:
        ValueError: for any other space than classes from 0 on or flat floats.

    """
    if isinstance(space, Discrete) and space.start == 0:
        return int(space.n)
    if isinstance(space, Box) and len(space.shape) == 1 and is_float(space):
        return space.shape[0]
    raise ValueError(
        f"targets must be classes from 0 on, or flat floats (D,), got {space}; choose a dataset of "
        "such, or a network for such targets"
    )


def float_shape(space: gymnasium.Space) -> tuple[int, ...]:
    """The shape of observations of floats, at least one dimension.

    Raises:
        ValueError: for any other space, with the override that mends it.

    """
    if isinstance(space, Box) and space.shape and is_float(space):
        return space.shape
    is_image = len(space.shape or ()) == 3 and space.dtype == np.uint8
    mend = "processor=image, network=mlp network/encoder=nature or " if is_image else ""
    mend = "network=mlp network/encoder=multi_input or " if isinstance(space, Dict) else mend
    raise ValueError(
        f"observations must be floats, got {space}; try {mend}a network for such observations"
    )


def image_shape(space: gymnasium.Space, *, min_side: int) -> tuple[int, int, int]:
    """(C, H, W) of images of floats.

    Raises:
        ValueError: for any other space, or sides below ``min_side`` pixels.

    """
    shape = float_shape(space)
    if len(shape) != 3:
        raise ValueError(f"observations must be images (C, H, W), got {shape}; try network=mlp")
    if min(shape[1:]) < min_side:
        raise ValueError(
            f"images must be at least {min_side} x {min_side}, got {shape[1]} x {shape[2]}; "
            "try network=mlp"
        )
    return shape


def is_float(space: Box) -> bool:
    """Whether the values in a space are floats."""
    return np.issubdtype(space.dtype, np.floating)
