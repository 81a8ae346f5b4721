"""Twin Delayed DDPG: Fujimoto et al., 2018, https://arxiv.org/abs/1802.09477."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective, OptimFactory, PolyakCopy
from research.algs.targets import frozen_copy
from research.batches import Transition, Tree
from research.networks.actor_critic import ActorCritic
from research.ranges import NonNegativeFloat, PositiveFraction, PositiveInt


class TD3(Algorithm):
    """Deterministic actor, twin critics on a clipped target, delayed and smoothed (Algorithm 1).

    Actions lie in [-1, 1]; every noise below is in those units.

    Deviations:
        Hidden layers are 256 and 256 wide and batches hold 256, as in the authors' later code; the
        paper has 400 and 300, and 100.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps features (B, R) to (B, A); ``critics`` return (N, B). If it has an
            encoder that makes the features, the critics' loss trains it and the actor's does not.
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
                every=self.actor_every,
                reuses="critic",
            ),
        ]

    def copies(self) -> Sequence[PolyakCopy]:
        return [PolyakCopy(self.target, self.network, self.tau, every=self.actor_every)]

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        action = self.network.actor(self.network.encoder(obs))
        if explore:
            action = (action + self.explore_noise * torch.randn_like(action)).clamp(-1, 1)
        return action

    def draw(self, batch: Transition, step: Tensor) -> Tensor:
        """Standard noise (B, A) for the target actions."""
        return torch.randn_like(batch.action)

    def critic_loss(self, batch: Transition, noise: Tensor) -> Loss:
        """Squared distance of every critic to the clipped double-Q target."""
        target_q = self.compute_target(batch, noise)
        features = self.network.encoder(batch.obs)
        q = self.network.critics(features, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        return Loss(loss, {"q": q.mean(), "target_q": target_q.mean()}, result=features)

    def actor_loss(self, batch: Transition, noise: Tensor, features: Tensor) -> Loss:
        """Minus the first critic's value (the deterministic policy gradient)."""
        return Loss(-self.network.critics.first(features, self.network.actor(features)).mean())

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """Bootstrapped return at a smoothed target action, (B,)."""
        noise = (self.target_noise * noise).clamp(-self.noise_clip, self.noise_clip)
        features = self.target.encoder(batch.next_obs)
        next_action = (self.target.actor(features) + noise).clamp(-1, 1)
        next_q = self.target.critics(features, next_action).amin(dim=0)
        return batch.reward + batch.discount * next_q
