"""Batch renormalisation (Ioffe, 2017, https://arxiv.org/abs/1702.03275), and networks with it."""

from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from research.networks.actor_critic import (
    StochasticActorCritic,
    bounded_action_dim,
    make_encoder,
)
from research.networks.encoders import EncoderFactory
from research.networks.mlp import Activation, EnsembleLinear, Init, initialise
from research.networks.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt

EPSILON = 1e-3
"""Added to variances, as in CrossQ's code."""

MAX_RATIO = 3.0
"""r_max of the paper."""

MAX_SHIFT = 5.0
"""d_max of the paper."""


class BatchRenorm(_BatchNorm):
    """Batch normalisation that corrects a batch's statistics towards the running ones.

    Takes (B, D), or (N, B, D) for N members, each with statistics of its own. Its parameters and
    buffers have the names of ``torch.nn.BatchNorm1d``.

    Deviations:
        As in CrossQ's code (https://github.com/adityab/CrossQ), the corrections begin at once after
        ``warmup`` batches, before which they are left out, where the paper loosens their bounds
        little by little; and r scales the variance before the epsilon is added to it.

    Args:
        dim: D.
        num_members: N; None for inputs (B, D).
        momentum: share of the way that running statistics go towards those of a batch, in (0, 1).
        warmup: batches that are normalised by their own statistics alone, at least 0.

    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, num_members: int | None, *, momentum: float, warmup: int) -> None:
        super().__init__(dim * (num_members or 1), eps=EPSILON, momentum=momentum)
        self.share = momentum
        self.warmup = warmup
        self.shape = (1, dim) if num_members is None else (num_members, 1, dim)

    def forward(self, x: Tensor, is_learning: bool = False) -> Tensor:
        """Normalised inputs.

        Args:
            x: (B, D) or (N, B, D).
            is_learning: in training mode, whether to normalise by the batch and to move the running
                statistics; else ``x`` is normalised by these.

        Raises:
            ValueError: for a single example to learn from.

        """
        x = x.to(self.running_mean.dtype)  # those of autocast are too coarse for statistics
        mean, var = self.running_mean.view(self.shape), self.running_var.view(self.shape)
        if is_learning and self.training:
            mean, var = self.learn(x, mean, var)
        normalised = (x - mean) * (var + self.eps).rsqrt()
        weight, bias = self.weight.view(self.shape), self.bias.view(self.shape)
        return torch.addcmul(bias, normalised, weight)

    def learn(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance to normalise a batch by, towards which the running ones move."""
        if x.shape[-2] < 2:
            raise ValueError(f"batch renormalisation needs more than one example, got {x.shape}")
        var, mean = torch.var_mean(x, dim=-2, keepdim=True, correction=0)
        with torch.no_grad():
            running_std = (running_var + self.eps).sqrt()
            ratio = ((var + self.eps).sqrt() / running_std).clamp(1 / MAX_RATIO, MAX_RATIO)
            shift = ((mean - running_mean) / running_std).clamp(-MAX_SHIFT, MAX_SHIFT)
            is_warm = self.num_batches_tracked >= self.warmup
            ratio = torch.where(is_warm, ratio, 1.0)
            shift = torch.where(is_warm, shift, 0.0)
            running_mean.copy_(running_mean.lerp(mean, self.share))  # vmap has no lerp_
            running_var.copy_(running_var.lerp(var, self.share))
            self.num_batches_tracked.add_(1)
        # a unit that is 0 throughout the batch would have an infinite gradient of the root
        std = var.clamp(min=torch.finfo(var.dtype).tiny).sqrt()
        return mean - shift * std / ratio, var / ratio.square()


class BatchRenormMLP(nn.Module):
    """A perceptron with batch renormalisation before every linear layer, the first included.

    Maps (B, in) to (B, out); with N members, to (N, B, out).

    Args:
        in_dim: width of the inputs.
        out_dim: width of the outputs.
        num_members: N; None for one perceptron and outputs without that dimension.
        hidden_dims: widths of the hidden layers.
        activation: makes the activation after each hidden layer.
        init: fills the weight matrices; None for torch's own initialisation.
        momentum: of the running statistics, as for ``BatchRenorm``.
        warmup: batches, as for ``BatchRenorm``.

    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_members: int | None,
        *,
        hidden_dims: Sequence[int],
        activation: Activation,
        init: Init | None,
        momentum: float,
        warmup: int,
    ) -> None:
        super().__init__()
        self.num_members = num_members
        self.layers = nn.ModuleList()
        for width_in, width in pairwise([in_dim, *hidden_dims, out_dim]):
            if len(self.layers):
                self.layers.append(activation())
            norm = BatchRenorm(width_in, num_members, momentum=momentum, warmup=warmup)
            self.layers.append(norm)
            if num_members is None:
                self.layers.append(nn.Linear(width_in, width))
            else:
                self.layers.append(EnsembleLinear(num_members, width_in, width))
        initialise(self, init)

    def forward(self, x: Tensor, is_learning: bool = False) -> Tensor:
        """The outputs; ``is_learning`` as for ``BatchRenorm``."""
        if self.num_members is not None:
            x = x.expand(self.num_members, *x.shape)
        for layer in self.layers:
            x = layer(x, is_learning) if isinstance(layer, BatchRenorm) else layer(x)
        return x


class BatchRenormActor(SquashedGaussianActor):
    """(B, O) to a ``SquashedGaussian``; ``is_learning`` as for ``BatchRenorm``."""

    def forward(self, obs: Tensor, is_learning: bool = False) -> SquashedGaussian:
        return self.distribution(self.mlp(obs, is_learning))


class BatchRenormCritics(nn.Module):
    """N action-value functions on observations (B, O), or on their features."""

    def __init__(self, ensemble: BatchRenormMLP) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, obs: Tensor, action: Tensor, is_learning: bool = False) -> Tensor:
        """The values (N, B) of observations (B, O) and actions (B, A).

        ``is_learning`` is as for ``BatchRenorm``.
        """
        return self.ensemble(torch.cat([obs, action], dim=-1), is_learning).squeeze(-1)


class BatchRenormActorCritic(StochasticActorCritic):
    """``actor`` maps observations to action distributions; ``critics`` return action values.

    Args:
        observation_space: a flat Box of floats, (O,); or what the encoder takes.
        action_space: a Box in [-1, 1], (A,).
        actor_hidden_dims: widths of the actor's hidden layers.
        critic_hidden_dims: widths of every critic's hidden layers.
        num_critics: members of the critic ensemble.
        activation: makes the activation after each hidden layer.
        init: fills the weight matrices; None for torch's own initialisation.
        log_std_bounds: least and largest logarithm of the standard deviation before the squashing.
        momentum: share of the way that running statistics go towards those of a batch.
        warmup: batches that each norm normalises by their own statistics alone.
        encoder: makes the encoder that actor and critics share; None for none.

    Raises:
        ValueError: for spaces that it cannot take, or bounds that do not rise.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        actor_hidden_dims: Sequence[PositiveInt],
        critic_hidden_dims: Sequence[PositiveInt],
        num_critics: PositiveInt,
        activation: Activation,
        init: Init | None,
        log_std_bounds: tuple[float, float],
        momentum: OpenFraction,
        warmup: NonNegativeInt,
        encoder: EncoderFactory | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim = bounded_action_dim(action_space)
        self.encoder, obs_dim = make_encoder(encoder, observation_space)
        mlp = BatchRenormMLP(
            obs_dim,
            2 * action_dim,
            None,
            hidden_dims=actor_hidden_dims,
            activation=activation,
            init=init,
            momentum=momentum,
            warmup=warmup,
        )
        ensemble = BatchRenormMLP(
            obs_dim + action_dim,
            1,
            num_critics,
            hidden_dims=critic_hidden_dims,
            activation=activation,
            init=init,
            momentum=momentum,
            warmup=warmup,
        )
        self.actor = BatchRenormActor(mlp, log_std_bounds)
        self.critics = BatchRenormCritics(ensemble)
