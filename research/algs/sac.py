"""Soft Actor-Critic: Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.algs.base import Algorithm, Metrics, OptimFactory, take_step
from research.batches import Transition
from research.networks.squashed_gaussian import SquashedGaussianActorCritic
from research.networks.targets import frozen_copy, polyak_update
from research.ranges import PositiveFloat, PositiveFraction, PositiveInt


class SAC(Algorithm):
    """Stochastic actor, twin critics, and a temperature that holds the entropy (Algorithm 1).

    Actions lie in [-1, 1].

    Deviations:
        The critics' squared errors are not halved, as in pytorch_sac, where the paper halves them;
        for Adam the scale of a loss makes no difference, except for its epsilon.
        The log-std is bounded by a tanh, as in pytorch_sac, where the paper clips it.
        The temperature is learned as its logarithm, which keeps it positive.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps (B, O) to distributions, ``critics`` (B, O) and (B, A) to (N, B).
        optim: builds an optimizer from parameters, one for actor and temperature, one for critics.
        tau: Polyak step per target update, in (0, 1].
        temperature: at the start, above 0.
        target_entropy: entropy that the temperature aims at, in nats; None for minus A.
        actor_every: critic updates per update of actor and temperature, at least 1.
        target_every: critic updates per target update, at least 1.

    """

    def __init__(
        self,
        network: SquashedGaussianActorCritic,
        *,
        optim: OptimFactory,
        tau: PositiveFraction,
        temperature: PositiveFloat,
        target_entropy: float | None,
        actor_every: PositiveInt,
        target_every: PositiveInt,
    ) -> None:
        super().__init__()
        self.network = network
        self.target_critics = frozen_copy(network.critics)
        device = next(network.parameters()).device
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature), device=device))
        self.optim = optim
        self.tau = tau
        self.target_entropy = -network.action_dim if target_entropy is None else target_entropy
        self.actor_every = actor_every
        self.target_every = target_every

    def make_optimizers(self) -> None:
        # One step for both is the same as one each: neither loss depends on the other's parameters.
        self.actor_optim = self.optim([*self.network.actor.parameters(), self.log_temperature])
        self.critic_optim = self.optim(self.network.critics.parameters())

    def copies(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return [(self.target_critics, self.network.critics)]

    @torch.no_grad()
    def act(self, obs: Tensor, step: int, explore: bool) -> Tensor:
        distribution = self.network.actor(obs)
        if not explore:
            return distribution.center()
        return distribution.sample(torch.randn_like(distribution.mean))[0]

    def update(self, batch: Transition, *, step: int, updates: int) -> Metrics:
        metrics = self.update_critics(batch, torch.randn_like(batch.action))
        if (updates + 1) % self.actor_every == 0:
            metrics |= self.update_actor(batch.obs, torch.randn_like(batch.action))
        if (updates + 1) % self.target_every == 0:
            polyak_update(self.network.critics, self.target_critics, self.tau)
        return metrics

    def update_critics(self, batch: Transition, noise: Tensor) -> Metrics:
        """Regress every critic on the soft target (equation 5)."""
        target_q = self.compute_target(batch, noise)
        q = self.network.critics(batch.obs, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        take_step(self.critic_optim, loss)
        return {
            "critic_loss": loss.detach(),
            "q": q.detach().mean(),
            "target_q": target_q.mean(),
        }

    def update_actor(self, obs: Tensor, noise: Tensor) -> Metrics:
        """Maximise the lowest critic and the entropy (equation 9), and adjust the temperature."""
        action, log_prob = self.network.actor(obs).sample(noise)
        q = self.network.critics(obs, action).amin(dim=0)
        entropy, temperature = -log_prob.detach().mean(), self.temperature.detach()
        loss = (temperature * log_prob - q).mean()
        temperature_loss = self.compute_temperature_loss(entropy)
        take_step(self.actor_optim, loss + temperature_loss)
        return {
            "actor_loss": loss.detach(),
            "entropy": entropy,
            "temperature": temperature,
            "temperature_loss": temperature_loss.detach(),
        }

    def compute_temperature_loss(self, entropy: Tensor) -> Tensor:
        """The loss that raises the temperature while the entropy is below its target (eq. 18)."""
        return self.temperature * (entropy - self.target_entropy)

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """Bootstrapped soft return, (B,); ``noise`` is standard, (B, A)."""
        action, log_prob = self.network.actor(batch.next_obs).sample(noise)
        next_q = self.target_critics(batch.next_obs, action).amin(dim=0)
        return batch.reward + batch.discount * (next_q - self.temperature * log_prob)

    @property
    def temperature(self) -> Tensor:
        """The weight of the entropy, alpha."""
        return self.log_temperature.exp()
