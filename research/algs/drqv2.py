"""DrQ-v2: Yarats et al., 2021, https://arxiv.org/abs/2107.09645."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective, OptimFactory, PolyakCopy
from research.algs.targets import frozen_copy
from research.batches import Transition
from research.networks.drqv2 import DrQv2ActorCritic
from research.ranges import NonNegativeFloat, PositiveFraction, PositiveInt

EDGE = 1e-6
"""How far sampled actions stay from -1 and 1, as in the authors' code."""


class Noise(NamedTuple):
    """Noise (B, A) of an update, of the std that the step asks for.

    Attributes:
        target: of the next actions, in the target.
        actor: of the actions that the actor is trained on.

    """

    target: Tensor
    actor: Tensor


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

    def objectives(self) -> Sequence[Objective]:
        network, optim = self.network, self.optim
        return [
            Objective(
                name="critic",
                loss=self.critic_loss,
                trains=[network.encoder, network.critics],
                optim=optim,
            ),
            Objective(
                name="actor",
                loss=self.actor_loss,
                trains=[network.actor],
                optim=optim,
                reuses="critic",
            ),
        ]

    def copies(self) -> Sequence[PolyakCopy]:
        return [PolyakCopy(self.target_critics, self.network.critics, self.tau)]

    def noise_std(self, step: Tensor) -> Tensor:
        """Standard deviation of the noise after ``step`` environment steps (equation 4)."""
        share = (step / self.noise_steps).clamp(max=1.0)
        return (1 - share) * self.noise_start + share * self.noise_end

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        action = self.network.actor(self.network.encoder(obs))
        if explore:
            noise = self.noise_std(step) * torch.randn_like(action)
            action = (action + noise).clamp(EDGE - 1, 1 - EDGE)
        return action

    def draw(self, batch: Transition, step: Tensor) -> Noise:
        std, action = self.noise_std(step), batch.action
        return Noise(std * torch.randn_like(action), std * torch.randn_like(action))

    def critic_loss(self, batch: Transition, noise: Noise) -> Loss:
        """Squared distance of every critic to the clipped double-Q target (equation 2)."""
        encoded = self.network.encoder(batch.obs)
        target_q = self.compute_target(batch, noise.target)
        q = self.network.critics(encoded, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        return Loss(loss, {"q": q.mean(), "target_q": target_q.mean()}, result=encoded)

    def actor_loss(self, batch: Transition, noise: Noise, encoded: Tensor) -> Loss:
        """Minus the lowest critic's value (equation 3); the encoder gets no gradient from it."""
        action = self.perturb(self.network.actor(encoded), noise.actor)
        return Loss(-self.network.critics(encoded, action).amin(dim=0).mean())

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
