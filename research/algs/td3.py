"""Twin Delayed DDPG: Fujimoto et al., 2018, https://arxiv.org/abs/1802.09477."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.algs.base import Algorithm, Metrics, OptimFactory, take_step
from research.batches import Transition
from research.networks.actor_critic import ActorCritic
from research.networks.targets import frozen_copy, polyak_update
from research.ranges import NonNegativeFloat, PositiveFraction, PositiveInt


class TD3(Algorithm):
    """Deterministic actor, twin critics on a clipped target, delayed and smoothed (Algorithm 1).

    Actions lie in [-1, 1]; every noise below is in those units.

    Deviations:
        Hidden layers are 256 and 256 wide and batches hold 256, as in the authors' later code; the
        paper has 400 and 300, and 100.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps (B, O) to (B, A); ``critics`` return (N, B).
        optim: builds an optimizer from parameters.
        tau: Polyak step per target update, in (0, 1].
        explore_noise: std of the noise added to training actions, at least 0.
        target_noise: std of the noise that smooths target actions, at least 0.
        noise_clip: bound on the target noise, at least 0.
        actor_every: critic updates per actor and target update, at least 1.

    """

    def __init__(
        self,
        network: ActorCritic,
        *,
        optim: OptimFactory,
        tau: PositiveFraction,
        explore_noise: NonNegativeFloat,
        target_noise: NonNegativeFloat,
        noise_clip: NonNegativeFloat,
        actor_every: PositiveInt,
    ) -> None:
        super().__init__()
        self.network = network
        self.target = frozen_copy(network)
        self.optim = optim
        self.tau = tau
        self.explore_noise = explore_noise
        self.target_noise = target_noise
        self.noise_clip = noise_clip
        self.actor_every = actor_every

    def make_optimizers(self) -> None:
        self.actor_optim = self.optim(self.network.actor.parameters())
        self.critic_optim = self.optim(self.network.critics.parameters())

    def copies(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return [(self.target, self.network)]

    @torch.no_grad()
    def act(self, obs: Tensor, step: int, explore: bool) -> Tensor:
        action = self.network.actor(obs)
        if explore:
            action = (action + self.explore_noise * torch.randn_like(action)).clamp(-1, 1)
        return action

    def update(self, batch: Transition, *, step: int, updates: int) -> Metrics:
        metrics = self.update_critic(batch, torch.randn_like(batch.action))
        if (updates + 1) % self.actor_every == 0:
            metrics |= self.update_actor(batch.obs)
            polyak_update(self.network, self.target, self.tau)
        return metrics

    def update_critic(self, batch: Transition, noise: Tensor) -> Metrics:
        """Regress every critic on the clipped double-Q target."""
        target_q = self.compute_target(batch, noise)
        q = self.network.critics(batch.obs, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        take_step(self.critic_optim, loss)
        return {
            "critic_loss": loss.detach(),
            "q": q.detach().mean(),
            "target_q": target_q.mean(),
        }

    def update_actor(self, obs: Tensor) -> Metrics:
        """Maximise the first critic (the deterministic policy gradient)."""
        loss = -self.network.critics.first(obs, self.network.actor(obs)).mean()
        take_step(self.actor_optim, loss)
        return {"actor_loss": loss.detach()}

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """Bootstrapped return at a smoothed target action, (B,); ``noise`` is standard, (B, A)."""
        noise = (self.target_noise * noise).clamp(-self.noise_clip, self.noise_clip)
        next_action = (self.target.actor(batch.next_obs) + noise).clamp(-1, 1)
        next_q = self.target.critics(batch.next_obs, next_action).amin(dim=0)
        return batch.reward + batch.discount * next_q
