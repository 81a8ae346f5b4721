"""Truncated Quantile Critics: Kuznetsov et al., 2020, https://arxiv.org/abs/2005.04269."""

import torch
from torch import Tensor

from research.algs.base import Loss, OptimFactory
from research.algs.maximum_entropy import MaximumEntropyWithTargets, Noise
from research.algs.quantiles import quantile_huber_loss
from research.batches import Transition
from research.networks.quantile_critics import QuantileActorCritic
from research.ranges import NonNegativeInt, PositiveFloat, PositiveFraction, PositiveInt


class TQC(MaximumEntropyWithTargets):
    """SAC with critics of quantiles, the highest of which are left out of the target (Algorithm 1).

    Actions lie in [-1, 1].

    Deviations:
        The log-std is bounded by a tanh, as in SAC here, where the authors' code clips it.
        The critics' losses are summed, where the authors' code averages them; for Adam the scale of
        a loss makes no difference, except for its epsilon.
        The temperature's loss is linear in the temperature, as in SAC here and in its paper, where
        the authors' code has its logarithm.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps features (B, R) to distributions, ``critics`` features and actions
            (B, A) to M quantiles of N critics, (N, B, M).
        optim: builds an optimizer from parameters; critics, actor and temperature have one each.
        tau: Polyak step per target update, in (0, 1].
        temperature: at the start, above 0.
        target_entropy: entropy that the temperature aims at, in nats; None for minus A.
        dropped_quantiles: d of the paper: of the N M quantiles of all critics, the N d highest are
            left out of the target; at least 0 and below M.
        actor_every: critic updates per update of actor and temperature, at least 1.
        target_every: critic updates per target update, at least 1.

    Raises:
        ValueError: no quantile would be left.

    """

    def __init__(
        self,
        network: QuantileActorCritic,
        *,
        optim: OptimFactory,
        tau: PositiveFraction,
        temperature: PositiveFloat,
        target_entropy: float | None,
        dropped_quantiles: NonNegativeInt,
        actor_every: PositiveInt,
        target_every: PositiveInt,
    ) -> None:
        num_quantiles = network.critics.num_quantiles
        if dropped_quantiles >= num_quantiles:
            raise ValueError(
                f"dropped_quantiles must be below network.num_quantiles={num_quantiles}, got "
                f"{dropped_quantiles}"
            )
        super().__init__(
            network,
            optim=optim,
            temperature=temperature,
            target_entropy=target_entropy,
            actor_every=actor_every,
            tau=tau,
            target_every=target_every,
        )
        self.dropped_quantiles = dropped_quantiles

    def critic_loss(self, batch: Transition, noise: Noise) -> Loss:
        """Quantile Huber loss of every critic on the truncated target."""
        target = self.compute_target(batch, noise.target)
        features = self.network.encoder(batch.obs)
        quantiles = self.network.critics(features, batch.action)
        loss = quantile_huber_loss(quantiles, target).sum(dim=0).mean()
        metrics = {"q": quantiles.mean(), "target_q": target.mean()}
        return Loss(loss, metrics, result=features)

    def actor_loss(self, batch: Transition, noise: Noise, features: Tensor) -> Loss:
        """Minus the mean of all quantiles, none left out, and the entropy."""
        action, log_prob = self.network.actor(features).sample(noise.actor)
        q = self.network.critics(features, action).mean(dim=(0, 2))
        temperature = self.temperature.detach()
        loss = (temperature * log_prob - q).mean()
        metrics = {"entropy": -log_prob.mean(), "temperature": temperature}
        return Loss(loss, metrics, result=log_prob)

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Tensor) -> Tensor:
        """The N (M - d) lowest atoms of the soft return, (B, K); ``noise`` is standard, (B, A)."""
        action, log_prob = self.network.actor(self.network.encoder(batch.next_obs)).sample(noise)
        quantiles = self.target_critics(self.target_encoder(batch.next_obs), action)
        num_kept = len(quantiles) * (quantiles.shape[-1] - self.dropped_quantiles)
        kept = quantiles.transpose(0, 1).flatten(1).sort(dim=1).values[:, :num_kept]
        soft = kept - (self.temperature * log_prob)[:, None]
        return batch.reward[:, None] + batch.discount[:, None] * soft
