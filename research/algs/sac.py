"""Soft Actor-Critic: Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905."""

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Loss, OptimFactory
from research.algs.maximum_entropy import MaximumEntropyWithTargets, Noise
from research.batches import Transition
from research.networks.simba import SimBaActorCritic
from research.networks.squashed_gaussian import SquashedGaussianActorCritic
from research.ranges import PositiveFloat, PositiveFraction, PositiveInt


class SAC(MaximumEntropyWithTargets):
    """Stochastic actor, twin critics, and a temperature that holds the entropy (Algorithm 1).

    Actions lie in [-1, 1].

    Deviations:
        The critics' squared errors are not halved, as in pytorch_sac, where the paper halves them;
        for Adam the scale of a loss makes no difference, except for its epsilon.
        The log-std is bounded by a tanh, as in pytorch_sac, where the paper clips it.
        The temperature is learned as its logarithm, which keeps it positive.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps features (B, R) to distributions, ``critics`` features and actions
            (B, A) to (N, B).
        optim: builds an optimizer from parameters; critics, actor and temperature have one each.
        tau: Polyak step per target update, in (0, 1].
        temperature: at the start, above 0.
        target_entropy: entropy that the temperature aims at, in nats; None for what
            ``entropy_per_action`` says.
        entropy_per_action: the same for each of the A components of an action.
        actor_every: critic updates per update of actor and temperature, at least 1.
        target_every: critic updates per target update, at least 1.

    """

    network: SquashedGaussianActorCritic | SimBaActorCritic

    def __init__(
        self,
        network: SquashedGaussianActorCritic | SimBaActorCritic,
        *,
        optim: OptimFactory,
        tau: PositiveFraction,
        temperature: PositiveFloat,
        target_entropy: float | None,
        entropy_per_action: float,
        actor_every: PositiveInt,
        target_every: PositiveInt,
    ) -> None:
        if target_entropy is None:
            target_entropy = entropy_per_action * network.action_dim
        super().__init__(
            network,
            optim=optim,
            temperature=temperature,
            target_entropy=target_entropy,
            actor_every=actor_every,
            tau=tau,
            target_every=target_every,
        )

    def critic_loss(self, batch: Transition, noise: Noise) -> Loss:
        """Squared distance of every critic to the soft target (equation 5)."""
        target_q = self.compute_target(batch, noise.target)
        features = self.network.encoder(batch.obs)
        q = self.network.critics(features, batch.action)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        return Loss(loss, {"q": q.mean(), "target_q": target_q.mean()}, result=features)

    def actor_loss(self, batch: Transition, noise: Noise, features: Tensor) -> Loss:
        """Minus the lowest critic's value and the entropy (equation 9)."""
        action, log_prob = self.network.actor(features).sample(noise.actor)
        q = self.network.critics(features, action).amin(dim=0)
        temperature = self.temperature.detach()
        loss = (temperature * log_prob - q).mean()
        metrics = {"entropy": -log_prob.mean(), "temperature": temperature}
        return Loss(loss, metrics, result=log_prob)

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """Bootstrapped soft return, (B,); ``noise`` is standard, (B, A)."""
        features = self.network.encoder(batch.next_obs)
        action, log_prob = self.network.actor(features).sample(noise)
        next_q = self.target_critics(self.target_encoder(batch.next_obs), action).amin(dim=0)
        return batch.reward + batch.discount * (next_q - self.temperature * log_prob)
