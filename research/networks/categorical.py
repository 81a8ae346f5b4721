"""An actor that chooses among discrete actions, with critics that rate all of them."""

from collections.abc import Sequence

import gymnasium
from torch import Tensor, nn

from research.networks.actor_critic import StochasticActorCritic, count_actions, make_encoder
from research.networks.distributions import Categorical
from research.networks.encoders import EncoderFactory
from research.networks.mlp import MLP, Activation, EnsembleMLP, Init, Layers
from research.ranges import PositiveInt


class CategoricalActor(nn.Module):
    """(B, O) to a ``Categorical`` of K actions."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, obs: Tensor) -> Categorical:
        return Categorical(self.mlp(obs))


class CategoricalActorCritic(StochasticActorCritic):
    """``actor`` maps observations to distributions, ``critics`` to the values of all actions.

    The critics' output is (N, B, K).

    Args:
        observation_space: a flat Box of floats, (O,); or what the encoder takes.
        action_space: Discrete, K actions from 0 on.
        hidden_dims: widths of the hidden layers of actor and critics.
        num_critics: N.
        activation: makes the activation after each hidden layer.
        layer_norm: whether hidden layers are normalised before their activation.
        init: fills the weight matrices; None for torch's own initialisation.
        encoder: makes the encoder that actor and critics share; None for none.

    Raises:
        ValueError: for spaces that it cannot take.

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
        encoder: EncoderFactory | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = count_actions(action_space)
        self.encoder, obs_dim = make_encoder(encoder, observation_space)
        self.observation_space, self.action_space = observation_space, action_space
        layers = Layers(hidden_dims, activation, layer_norm, init)
        self.actor = CategoricalActor(MLP(obs_dim, self.action_dim, layers))
        self.critics = EnsembleMLP(num_critics, obs_dim, self.action_dim, layers)
