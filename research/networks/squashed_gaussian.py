"""Actions drawn from a Gaussian and squashed into [-1, 1] by tanh."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import torch.nn.functional as F
from torch import Tensor, nn

from research.networks.actor_critic import (
    Critics,
    StochasticActorCritic,
    bounded_action_dim,
    make_encoder,
)
from research.networks.encoders import EncoderFactory
from research.networks.mlp import MLP, Activation, Init, Layers, initialise
from research.ranges import PositiveInt


class SquashedGaussian(NamedTuple):
    """The distribution of tanh(x) for a normal x with independent components.

    Haarnoja et al., 2018, https://arxiv.org/abs/1801.01290, appendix C.

    Attributes:
        mean: (B, A), of x.
        log_std: (B, A), logarithm of the standard deviation of x.

    """

    mean: Tensor
    log_std: Tensor

    def center(self) -> Tensor:
        """Actions (B, A) without noise: the squashed mean."""
        return self.mean.tanh()

    def action(self, noise: Tensor) -> Tensor:
        """Actions (B, A) for standard normal ``noise`` (B, A)."""
        return (self.mean + self.log_std.exp() * noise).tanh()

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) for standard normal ``noise`` (B, A), and their log-densities (B,)."""
        x = self.mean + self.log_std.exp() * noise
        # The normal density, and log(1 - tanh(x)^2) as 2 (log(2) - x - softplus(-2 x)), which is
        # not rounded to log(0) for a large x; all constants are added at once, which is faster.
        log_prob = (2 * (x + F.softplus(-2 * x)) - self.log_std - 0.5 * noise.square()).sum(dim=-1)
        constant = 0.5 * math.log(2 * math.pi) + 2 * math.log(2)
        return x.tanh(), log_prob - constant * noise.shape[-1]


class SquashedGaussianActor(nn.Module):
    """(B, O) to a ``SquashedGaussian``, whose log-std lies between two bounds.

    A tanh keeps it there, as in pytorch_sac (https://github.com/denisyarats/pytorch_sac); the paper
    clips it.

    Raises:
        ValueError: for bounds that do not rise.

    """

    def __init__(self, mlp: nn.Module, log_std_bounds: tuple[float, float]) -> None:
        super().__init__()
        low, high = log_std_bounds
        if low >= high:
            raise ValueError(f"log_std_bounds must rise, got {list(log_std_bounds)}")
        self.mlp = mlp
        self.middle, self.half_width = (low + high) / 2, (high - low) / 2

    def forward(self, obs: Tensor) -> SquashedGaussian:
        return self.distribution(self.mlp(obs))

    def distribution(self, output: Tensor) -> SquashedGaussian:
        """The distributions that the perceptron's ``output`` (B, 2 A) stands for."""
        mean, raw = output.chunk(2, dim=-1)
        return SquashedGaussian(mean, self.middle + self.half_width * raw.tanh())


class SquashedGaussianActorCritic(StochasticActorCritic):
    """``actor`` maps observations to action distributions; ``critics`` return action values.

    With an encoder, both take the features that ``encoder`` makes of observations; without one,
    ``encoder`` returns observations as they are.

    Args:
        observation_space: a flat Box of floats, (O,); or what the encoder takes.
        action_space: a Box in [-1, 1], (A,).
        hidden_dims: widths of the hidden layers of actor and critics.
        num_critics: members of the critic ensemble.
        activation: makes the activation after each hidden layer.
        layer_norm: whether hidden layers are normalised before their activation.
        init: fills the weight matrices; None for torch's own initialisation.
        output_init: fills those of the output layers; None to do as ``init``.
        log_std_bounds: least and largest logarithm of the standard deviation before the squashing.
        encoder: makes the encoder that actor and critics share; None for none.

    Raises:
        ValueError: for spaces that it cannot take, or bounds that do not rise.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        hidden_dims: Sequence[PositiveInt],
        num_critics: PositiveInt,
        activation: Activation,
        layer_norm: bool,
        init: Init | None,
        output_init: Init | None = None,
        log_std_bounds: tuple[float, float],
        encoder: EncoderFactory | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim = bounded_action_dim(action_space)
        self.encoder, obs_dim = make_encoder(encoder, observation_space)
        layers = Layers(hidden_dims, activation, layer_norm, init)
        mlp = MLP(obs_dim, 2 * action_dim, layers)
        self.actor = SquashedGaussianActor(mlp, log_std_bounds)
        self.critics = Critics(num_critics, obs_dim, action_dim, layers)
        for output in (mlp[-1], self.critics.ensemble.layers[-1]):
            initialise(output, output_init)
