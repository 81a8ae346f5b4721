"""Critics whose values are distributions, told by quantiles, beside a squashed Gaussian actor."""

from collections.abc import Sequence

import gymnasium
import torch
from torch import Tensor, nn

from research.networks.actor_critic import (
    StochasticActorCritic,
    bounded_action_dim,
    make_encoder,
)
from research.networks.encoders import EncoderFactory
from research.networks.mlp import MLP, Activation, EnsembleMLP, Init, Layers
from research.networks.squashed_gaussian import SquashedGaussianActor
from research.ranges import PositiveInt


class QuantileCritics(nn.Module):
    """N functions of features and actions, each of which gives M quantiles of returns.

    The quantiles belong to the probabilities (m + 0.5) / M, for m from 0 on (Dabney et al., 2018,
    https://arxiv.org/abs/1710.10044); their mean is the action's value.
    """

    def __init__(
        self, num_critics: int, num_quantiles: int, obs_dim: int, action_dim: int, layers: Layers
    ) -> None:
        super().__init__()
        self.num_quantiles = num_quantiles
        self.ensemble = EnsembleMLP(num_critics, obs_dim + action_dim, num_quantiles, layers)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The quantiles (N, B, M) of all critics for observations (B, O) and actions (B, A)."""
        return self.ensemble(torch.cat([obs, action], dim=-1))


class QuantileActorCritic(StochasticActorCritic):
    """``actor`` maps observations to action distributions; ``critics`` return quantiles.

    Args:
        observation_space: a flat Box of floats, (O,); or what the encoder takes.
        action_space: a Box in [-1, 1], (A,).
        actor_hidden_dims: widths of the actor's hidden layers.
        critic_hidden_dims: widths of every critic's hidden layers.
        num_critics: members of the critic ensemble.
        num_quantiles: of each critic.
        activation: makes the activation after each hidden layer.
        layer_norm: whether hidden layers are normalised before their activation.
        init: fills the weight matrices; None for torch's own initialisation.
        log_std_bounds: least and largest logarithm of the standard deviation before the squashing.
        encoder: makes the encoder that actor and critics share; None for none.

    Raises:
        ValueError: for spaces that it cannot take, or bounds that do not rise.

    """

    critics: QuantileCritics

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        actor_hidden_dims: Sequence[PositiveInt],
        critic_hidden_dims: Sequence[PositiveInt],
        num_critics: PositiveInt,
        num_quantiles: PositiveInt,
        activation: Activation,
        layer_norm: bool,
        init: Init | None,
        log_std_bounds: tuple[float, float],
        encoder: EncoderFactory | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim = bounded_action_dim(action_space)
        self.encoder, obs_dim = make_encoder(encoder, observation_space)
        layers = Layers(actor_hidden_dims, activation, layer_norm, init)
        self.actor = SquashedGaussianActor(MLP(obs_dim, 2 * action_dim, layers), log_std_bounds)
        layers = layers._replace(hidden_dims=critic_hidden_dims)
        self.critics = QuantileCritics(num_critics, num_quantiles, obs_dim, action_dim, layers)
