"""A deterministic actor with an ensemble of action-value critics."""

from collections.abc import Sequence
from typing import cast

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from research.networks.encoders import EncoderFactory
from research.networks.mlp import MLP, Activation, EnsembleMLP, Init, Layers
from research.ranges import PositiveInt


class Critics(nn.Module):
    """N action-value functions on observations (B, O), or on their features."""

    def __init__(
        self,
        num_critics: int,
        obs_dim: int,
        action_dim: int,
        layers: Layers,
    ) -> None:
        super().__init__()
        self.ensemble = EnsembleMLP(num_critics, obs_dim + action_dim, 1, layers)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The values (N, B) of all critics for observations (B, O) and actions (B, A)."""
        return self.ensemble(torch.cat([obs, action], dim=-1)).squeeze(-1)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """The values (B,) of the first critic, without computing the others."""
        return self.ensemble.forward_member(torch.cat([obs, action], dim=-1), 0).squeeze(-1)


class ActorCritic(nn.Module):
    """``actor`` maps observations to actions in [-1, 1]; ``critics`` map both to action values.

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
        action_dim = bounded_action_dim(action_space)
        self.encoder, obs_dim = make_encoder(encoder, observation_space)
        layers = Layers(hidden_dims, activation, layer_norm, init)
        self.actor = nn.Sequential(MLP(obs_dim, action_dim, layers), nn.Tanh())
        self.critics = Critics(num_critics, obs_dim, action_dim, layers)


class StochasticActorCritic(nn.Module):
    """A network of a stochastic actor and of critics, on the features of observations.

    Attributes:
        encoder: maps observations to features (B, R); ``nn.Identity`` where those are the same.
        actor: maps features to distributions of actions.
        critics: N action-value functions of features.
        action_dim: A, or the number of discrete actions.

    """

    encoder: nn.Module
    actor: nn.Module
    critics: nn.Module
    action_dim: int


def make_encoder(encoder: EncoderFactory | None, space: gymnasium.Space) -> tuple[nn.Module, int]:
    """The encoder for a space, and the width of its features.

    None stands for ``nn.Identity``: the features are the observations themselves.

    Raises:
        ValueError: for a space that the encoder cannot take, or, without one, that is not flat.

    """
    if encoder is None:
        return nn.Identity(), flat_dim(space)
    made = encoder(space)
    return cast(nn.Module, made), made.output_dim


def flat_dim(space: gymnasium.Space) -> int:
    """The width of a flat Box of floats.

    Raises:
        ValueError: for any other space, with the override that mends it.

    """
    if (
        not isinstance(space, gymnasium.spaces.Box)
        or len(space.shape) != 1
        or not np.issubdtype(space.dtype, np.floating)
    ):
        is_image = len(space.shape or ()) == 3 and space.dtype == np.uint8
        is_dict = isinstance(space, gymnasium.spaces.Dict)
        raise ValueError(
            f"observations must be flat floats (O,), got {space}; try "
            f"{'env.pixels=false (dm_control)' if is_image else 'env.flatten_obs=true'}, "
            f"network/encoder={'multi_input' if is_dict else 'nature'} or a network for such "
            "observations"
        )
    return space.shape[0]


def bounded_action_dim(space: gymnasium.Space) -> int:
    """The width of a flat action space in [-1, 1].

    Raises:
        ValueError: for an action space that is discrete or nested, or has other bounds.

    """
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"actions must be continuous (A,), got {space}; try alg=dqn or alg=ppo, or an env with "
            "a Box action space"
        )
    if not (np.all(space.low == -1) and np.all(space.high == 1)):
        raise ValueError(f"actions must lie in [-1, 1], got {space}")
    return space.shape[0]


def count_actions(space: gymnasium.Space) -> int:
    """The number of discrete actions.

    Raises:
        ValueError: for any other space than actions from 0 on.

    """
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise ValueError(
            f"actions must be discrete, got {space}; try alg=sac, or an env with discrete actions, "
            "such as env=cartpole_gym"
        )
    if space.start != 0:
        raise ValueError(f"discrete actions must begin at 0, got {space}")
    return int(space.n)
