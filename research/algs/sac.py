"""Soft Actor-Critic: Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Loss, OptimFactory, PolyakCopy
from research.algs.maximum_entropy import MaximumEntropy, Noise
from research.algs.targets import frozen_copy
from research.batches import Transition
from research.networks.squashed_gaussian import SquashedGaussianActorCritic
from research.ranges import PositiveFloat, PositiveFraction, PositiveInt


class SAC(MaximumEntropy):
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
        optim: builds an optimizer from parameters; critics, actor and temperature have one each.
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
        super().__init__(
            network,
            optim=optim,
            temperature=temperature,
            target_entropy=target_entropy,
            actor_every=actor_every,
        )
        self.target_critics = frozen_copy(network.critics)
        self.tau = tau
        self.target_every = target_every

    def copies(self) -> Sequence[PolyakCopy]:
        critics = self.network.critics
        return [PolyakCopy(self.target_critics, critics, self.tau, every=self.target_every)]

    def critic_loss(self, batch: Transition, noise: Noise) -> Loss:
        """Squared distance of every critic to the soft target (equation 5)."""
        target_q = self.compute_target(batch, noise.target)
        q = self.network.critics(batch.obs, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        return Loss(loss, {"q": q.mean(), "target_q": target_q.mean()})

    def actor_loss(self, batch: Transition, noise: Noise) -> Loss:
        """Minus the lowest critic's value and the entropy (equation 9)."""
        action, log_prob = self.network.actor(batch.obs).sample(noise.actor)
        q = self.network.critics(batch.obs, action).amin(dim=0)
        temperature = self.temperature.detach()
        loss = (temperature * log_prob - q).mean()
        metrics = {"entropy": -log_prob.mean(), "temperature": temperature}
        return Loss(loss, metrics, result=log_prob)

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """Bootstrapped soft return, (B,); ``noise`` is standard, (B, A)."""
        action, log_prob = self.network.actor(batch.next_obs).sample(noise)
        next_q = self.target_critics(batch.next_obs, action).amin(dim=0)
        return batch.reward + batch.discount * (next_q - self.temperature * log_prob)
