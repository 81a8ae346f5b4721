"""The networks of DrQ-v2: an encoder of images that actor and critics share."""

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from research.networks.actor_critic import Critics, bounded_action_dim
from research.networks.mlp import MLP, Layers, initialise
from research.ranges import PositiveInt

NUM_FILTERS = 32


class Encoder(nn.Sequential):
    """Four 3x3 convolutions with 32 filters: uint8 (B, C, H, W) to (B, R)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        layers: list[nn.Module] = [
            nn.Conv2d(channels, NUM_FILTERS, 3, stride=2),
            nn.ReLU(inplace=True),
        ]
        for _ in range(3):
            layers += [nn.Conv2d(NUM_FILTERS, NUM_FILTERS, 3), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        # the last three each take a pixel off every side
        sides = [(side - 3) // 2 + 1 - 6 for side in (height, width)]
        if min(sides) < 1:
            raise ValueError(f"images must be at least 15 x 15, got {height} x {width}")
        self.output_dim = NUM_FILTERS * math.prod(sides)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("relu"))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  faster on CPUs

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        scaled = images.to(dtype, memory_format=torch.channels_last) / 255 - 0.5
        return super().forward(scaled).flatten(1)


class Trunk(nn.Sequential):
    """(B, R) to normalised features (B, F) in [-1, 1]."""

    def __init__(self, in_dim: int, feature_dim: int) -> None:
        super().__init__(nn.Linear(in_dim, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())


class TrunkCritics(nn.Module):
    """N critics on a trunk of their own: encoded images (B, R) and actions (B, A) to (N, B)."""

    def __init__(self, trunk: Trunk, critics: Critics) -> None:
        super().__init__()
        self.trunk = trunk
        self.critics = critics

    def forward(self, encoded: Tensor, action: Tensor) -> Tensor:
        return self.critics(self.trunk(encoded), action)


class DrQv2ActorCritic(nn.Module):
    """``encoder`` maps images to (B, R); ``actor`` and ``critics`` take its output.

    Yarats et al., 2021, https://arxiv.org/abs/2107.09645, appendix B. Weights are orthogonal.

    Args:
        observation_space: a Box of uint8 images (C, H, W), at least 15 x 15.
        action_space: a Box in [-1, 1], (A,).
        feature_dim: F, output width of the trunks.
        hidden_dims: widths of the hidden layers after the trunks.
        num_critics: members of the critic ensemble.

    Raises:
        ValueError: for spaces that it cannot take.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        feature_dim: PositiveInt,
        hidden_dims: Sequence[PositiveInt],
        num_critics: PositiveInt,
    ) -> None:
        super().__init__()
        shape, action_dim = image_shape(observation_space), bounded_action_dim(action_space)
        self.encoder = Encoder(shape)
        trunk_dims = self.encoder.output_dim, feature_dim
        layers = Layers(hidden_dims, nn.ReLU, layer_norm=False, init=nn.init.orthogonal_)
        self.actor = nn.Sequential(
            Trunk(*trunk_dims), MLP(feature_dim, action_dim, layers), nn.Tanh()
        )
        critics = Critics(num_critics, feature_dim, action_dim, layers)
        self.critics = TrunkCritics(Trunk(*trunk_dims), critics)
        for trunk in (self.actor[0], self.critics.trunk):
            initialise(trunk, nn.init.orthogonal_)


def image_shape(space: gymnasium.Space) -> tuple[int, ...]:
    """The shape of uint8 images.

    Raises:
        ValueError: for any other space, with the override that mends it.

    """
    if not isinstance(space, Box) or len(space.shape) != 3 or space.dtype != np.uint8:
        raise ValueError(
            f"observations must be uint8 images (C, H, W), got {space}; try env.pixels=true "
            "(dm_control), or for a Dict alg=sac network/encoder=multi_input"
        )
    return space.shape
