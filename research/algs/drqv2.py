"""DrQ-v2: Yarats et al., 2021, https://arxiv.org/abs/2107.09645."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from research.algs.base import Algorithm, Metrics, OptimFactory, take_step
from research.batches import Transition
from research.networks.drqv2 import DrQv2ActorCritic
from research.networks.targets import frozen_copy, polyak_update
from research.ranges import NonNegativeFloat, PositiveFraction, PositiveInt

EDGE = 1e-6
"""How far sampled actions stay from -1 and 1, as in the authors' code."""


class DrQv2(Algorithm):
    """DDPG from images: shared encoder, clipped double Q, n-step returns, scheduled noise.

    The batch's images are shifted already (``processor=random_shift``), its rewards summed over n
    steps (``dataset.n_step=3``). Actions lie in [-1, 1].

    Deviations:
        Encoder and critics share an optimizer, which for Adam is the same as one each.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``encoder``, and ``actor`` and ``critics`` that take its output.
        optim: builds an optimizer from parameters.
        tau: Polyak step per update, in (0, 1].
        noise_start: std of the noise on actions at step 0, at least 0.
        noise_end: the same from ``noise_steps`` on.
        noise_steps: environment steps over which it changes linearly, at least 1.
        noise_clip: bound on the noise of actions in updates, at least 0.

    """

    def __init__(
        self,
        network: DrQv2ActorCritic,
        *,
        optim: OptimFactory,
        tau: PositiveFraction,
        noise_start: NonNegativeFloat,
        noise_end: NonNegativeFloat,
        noise_steps: PositiveInt,
        noise_clip: NonNegativeFloat,
    ) -> None:
        super().__init__()
        self.network = network
        self.target_critics = frozen_copy(network.critics)
        self.optim = optim
        self.tau = tau
        self.noise_start = noise_start
        self.noise_end = noise_end
        self.noise_steps = noise_steps
        self.noise_clip = noise_clip

    def make_optimizers(self) -> None:
        encoder, critics = self.network.encoder, self.network.critics
        self.actor_optim = self.optim(self.network.actor.parameters())
        self.critic_optim = self.optim([*encoder.parameters(), *critics.parameters()])

    def copies(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return [(self.target_critics, self.network.critics)]

    def noise_std(self, step: int) -> float:
        """Standard deviation of the noise after ``step`` environment steps (equation 4)."""
        share = min(step / self.noise_steps, 1.0)
        return (1 - share) * self.noise_start + share * self.noise_end

    @torch.no_grad()
    def act(self, obs: Tensor, step: int, explore: bool) -> Tensor:
        action = self.network.actor(self.network.encoder(obs))
        if explore:
            noise = self.noise_std(step) * torch.randn_like(action)
            action = (action + noise).clamp(EDGE - 1, 1 - EDGE)
        return action

    def update(self, batch: Transition, *, step: int, updates: int) -> Metrics:
        std = self.noise_std(step)
        encoded = self.network.encoder(batch.obs)
        metrics = self.update_critics(batch, encoded, std * torch.randn_like(batch.action))
        metrics |= self.update_actor(encoded.detach(), std * torch.randn_like(batch.action))
        polyak_update(self.network.critics, self.target_critics, self.tau)
        return metrics

    def update_critics(self, batch: Transition, encoded: Tensor, noise: Tensor) -> Metrics:
        """Regress encoder and critics on the clipped double-Q target (equation 2)."""
        target_q = self.compute_target(batch, noise)
        q = self.network.critics(encoded, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        take_step(self.critic_optim, loss)
        return {
            "critic_loss": loss.detach(),
            "q": q.detach().mean(),
            "target_q": target_q.mean(),
        }

    def update_actor(self, encoded: Tensor, noise: Tensor) -> Metrics:
        """Maximise the lowest critic (equation 3); the encoder gets no gradient from it."""
        action = self.perturb(self.network.actor(encoded), noise)
        loss = -self.network.critics(encoded, action).amin(dim=0).mean()
        take_step(self.actor_optim, loss)
        return {"actor_loss": loss.detach()}

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """Bootstrapped n-step return at a perturbed action, (B,); ``noise`` is (B, A)."""
        encoded = self.network.encoder(batch.next_obs)
        action = self.perturb(self.network.actor(encoded), noise)
        return batch.reward + batch.discount * self.target_critics(encoded, action).amin(dim=0)

    def perturb(self, action: Tensor, noise: Tensor) -> Tensor:
        """Actions with clipped noise, within the bounds; gradients pass the bounds unchanged."""
        moved = action + noise.clamp(-self.noise_clip, self.noise_clip)
        return moved + (moved.clamp(EDGE - 1, 1 - EDGE) - moved).detach()
