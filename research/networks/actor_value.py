"""A stochastic actor with a state-value function, for on-policy algorithms."""

from collections.abc import Sequence

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from research.batches import Tree
from research.networks.actor_critic import bounded_action_dim, count_actions, make_encoder
from research.networks.distributions import Categorical, Gaussian
from research.networks.encoders import EncoderFactory
from research.networks.mlp import MLP, Activation, Init, Layers, initialise
from research.ranges import PositiveInt


class ActorValue(nn.Module):
    """``actor`` maps features to the parameters of a distribution, ``value`` to a state's value.

    Continuous actions are Gaussian, with a standard deviation that does not depend on the
    observation; discrete ones are categorical.

    Args:
        observation_space: a flat Box of floats, (O,); or what the encoder takes.
        action_space: a Box in [-1, 1], (A,), or Discrete, K actions from 0 on.
        hidden_dims: widths of the hidden layers of actor and value.
        activation: makes the activation after each hidden layer.
        layer_norm: whether hidden layers are normalised before their activation.
        init: fills the weight matrices; None for torch's own initialisation.
        actor_init: fills that of the actor's output layer; None to do as ``init``.
        value_init: fills that of the value's output layer; None to do as ``init``.
        log_std: logarithm of the Gaussian's standard deviation at the start.
        encoder: makes the encoder that both share; None for none.

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
        actor_init: Init | None,
        value_init: Init | None,
        log_std: float,
        encoder: EncoderFactory | None,
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.encoder, width = make_encoder(encoder, observation_space)
        layers = Layers(hidden_dims, activation, layer_norm, init)
        count = count_actions if isinstance(action_space, Discrete) else bounded_action_dim
        self.actor = MLP(width, count(action_space), layers)
        self.value = MLP(width, 1, layers)
        initialise(self.actor[-1], actor_init)
        initialise(self.value[-1], value_init)
        self.log_std: nn.Parameter | None = None
        if isinstance(action_space, Box):
            self.log_std = nn.Parameter(torch.full(action_space.shape, float(log_std)))

    def forward(self, obs: Tree) -> tuple[Gaussian | Categorical, Tensor]:
        """The distributions of actions, and the values (B,), of observations (B, ...)."""
        features = self.encoder(obs)
        return self.distribution(features), self.value(features).squeeze(-1)

    def policy(self, obs: Tree) -> Gaussian | Categorical:
        """The distributions of actions for observations (B, ...)."""
        return self.distribution(self.encoder(obs))

    def values(self, obs: Tree) -> Tensor:
        """The values (B,) of observations (B, ...)."""
        return self.value(self.encoder(obs)).squeeze(-1)

    def distribution(self, features: Tensor) -> Gaussian | Categorical:
        """The distributions of actions for features (B, R)."""
        output = self.actor(features)
        return Categorical(output) if self.log_std is None else Gaussian(output, self.log_std)
