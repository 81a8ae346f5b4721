"""SimBa's network: residual blocks with layer normalisation, for actor and critics."""

import math

import gymnasium
import torch
from torch import Tensor, nn

from research.networks.actor_critic import (
    StochasticActorCritic,
    bounded_action_dim,
    make_encoder,
)
from research.networks.encoders import EncoderFactory
from research.networks.mlp import EnsembleLayerNorm, EnsembleLinear, initialise
from research.networks.squashed_gaussian import SquashedGaussianActor
from research.ranges import PositiveInt

EXPANSION = 4
"""Width of a block's hidden layer, in widths of the block."""

EPSILON = 1e-6
"""Added to the variance by the layer normalisation, as in Flax."""


def he_normal(weight: Tensor) -> Tensor:
    """Fill a weight matrix as He et al., 2015, with a normal cut off at two deviations."""
    std = math.sqrt(2 / weight.shape[1]) / 0.87962566103423978  # of the normal before it is cut off
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class EnsembleResidual(nn.Module):
    """N times ``x + W2 relu(W1 norm(x))``, on (N, B, D)."""

    def __init__(self, num_members: int, dim: int) -> None:
        super().__init__()
        self.norm = EnsembleLayerNorm(num_members, dim, epsilon=EPSILON)
        self.up = EnsembleLinear(num_members, dim, EXPANSION * dim)
        self.down = EnsembleLinear(num_members, EXPANSION * dim, dim)
        for layer in (self.up, self.down):
            initialise(layer, he_normal)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class EnsembleSimBa(nn.Module):
    """N networks on one input, (B, in) to (N, B, out): embedding, blocks, norm, output layer."""

    def __init__(
        self, num_members: int, in_dim: int, out_dim: int, *, hidden_dim: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.embedding = EnsembleLinear(num_members, in_dim, hidden_dim)
        self.blocks = nn.Sequential(
            *(EnsembleResidual(num_members, hidden_dim) for _ in range(num_blocks))
        )
        self.norm = EnsembleLayerNorm(num_members, hidden_dim, epsilon=EPSILON)
        self.output = EnsembleLinear(num_members, hidden_dim, out_dim)
        for layer in (self.embedding, self.output):
            initialise(layer, nn.init.orthogonal_)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x.expand(self.num_members, *x.shape))
        return self.output(self.norm(self.blocks(x)))


class SimBa(EnsembleSimBa):
    """One network: (B, in) to (B, out)."""

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int, num_blocks: int) -> None:
        super().__init__(1, in_dim, out_dim, hidden_dim=hidden_dim, num_blocks=num_blocks)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class SimBaCritics(nn.Module):
    """N action values on flat observations: (B, O) and (B, A) to (N, B)."""

    def __init__(self, ensemble: EnsembleSimBa) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.ensemble(torch.cat([obs, action], dim=-1)).squeeze(-1)


class SimBaActorCritic(StochasticActorCritic):
    """``actor`` maps observations to action distributions; ``critics`` return action values.

    Lee et al., 2024, https://arxiv.org/abs/2410.09754, section 4. Its observation normalisation is
    ``processor=normalise`` with ``processor.source=steps``.

    Args:
        observation_space: a flat Box of floats, (O,); or what the encoder takes.
        action_space: a Box in [-1, 1], (A,).
        actor_dim: width of the actor's blocks.
        actor_blocks: how many.
        critic_dim: width of the critics' blocks.
        critic_blocks: how many.
        num_critics: members of the critic ensemble.
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
        actor_dim: PositiveInt,
        actor_blocks: PositiveInt,
        critic_dim: PositiveInt,
        critic_blocks: PositiveInt,
        num_critics: PositiveInt,
        log_std_bounds: tuple[float, float],
        encoder: EncoderFactory | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim = bounded_action_dim(action_space)
        self.encoder, obs_dim = make_encoder(encoder, observation_space)
        actor = SimBa(obs_dim, 2 * action_dim, hidden_dim=actor_dim, num_blocks=actor_blocks)
        self.actor = SquashedGaussianActor(actor, log_std_bounds)
        in_dim = obs_dim + action_dim
        critics = EnsembleSimBa(
            num_critics, in_dim, 1, hidden_dim=critic_dim, num_blocks=critic_blocks
        )
        self.critics = SimBaCritics(critics)
