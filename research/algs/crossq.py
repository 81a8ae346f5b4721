"""CrossQ: Bhatt et al., 2024, https://arxiv.org/abs/1902.05605."""

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Loss, OptimFactory
from research.algs.maximum_entropy import MaximumEntropy, Noise
from research.batches import Transition
from research.networks.batch_renorm import BatchRenormActorCritic
from research.ranges import PositiveFloat, PositiveInt


class CrossQ(MaximumEntropy):
    """SAC with batch renormalisation in critics and actor, and without target networks.

    One pass of the critics rates the batch's actions and the next ones together, so that both are
    normalised by the statistics of their mixture. Only that pass moves the critics' running
    statistics, and only the actor's loss the actor's; wherever else actions are rated or taken,
    exploration included, the networks normalise by the running ones. Actions lie in [-1, 1].

    Deviations:
        The critics' squared errors are not halved, as in SAC here, where the authors' code halves
        them; for Adam the scale of a loss makes no difference, except for its epsilon.
        The log-std is bounded by a tanh, as in SAC here, where the authors' code clips it.
        The temperature's loss is linear in the temperature, as in SAC here and in its paper, where
        the authors' code has its logarithm; and its Adam has the others' betas.
        Weights begin as torch's own do, not as Flax's.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps features (B, R) to distributions, ``critics`` features and actions
            (B, A) to (N, B).
        optim: builds an optimizer from parameters; critics, actor and temperature have one each.
        temperature: at the start, above 0.
        target_entropy: entropy that the temperature aims at, in nats; None for minus A.
        actor_every: critic updates per update of actor and temperature, at least 1.

    """

    def __init__(
        self,
        network: BatchRenormActorCritic,
        *,
        optim: OptimFactory,
        temperature: PositiveFloat,
        target_entropy: float | None,
        actor_every: PositiveInt,
    ) -> None:
        super().__init__(
            network,
            optim=optim,
            temperature=temperature,
            target_entropy=target_entropy,
            actor_every=actor_every,
        )

    def critic_loss(self, batch: Transition, noise: Noise) -> Loss:
        """Squared distance of every critic to the soft target, both of one pass."""
        features = self.network.encoder(batch.obs)
        with torch.no_grad():
            next_features = self.network.encoder(batch.next_obs)
            next_action, next_log_prob = self.network.actor(next_features).sample(noise.target)
        both = torch.cat([features, next_features])
        action = torch.cat([batch.action, next_action])
        q, next_q = self.network.critics(both, action, is_learning=True).chunk(2, dim=1)
        target_q = self.compute_target(batch, next_q, next_log_prob)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        return Loss(loss, {"q": q.mean(), "target_q": target_q.mean()}, result=features)

    def actor_loss(self, batch: Transition, noise: Noise, features: Tensor) -> Loss:
        """Minus the lowest critic's value, by the running statistics, and the entropy."""
        distribution = self.network.actor(features, is_learning=True)
        action, log_prob = distribution.sample(noise.actor)
        q = self.network.critics(features, action).amin(dim=0)
        temperature = self.temperature.detach()
        loss = (temperature * log_prob - q).mean()
        metrics = {"entropy": -log_prob.mean(), "temperature": temperature}
        return Loss(loss, metrics, result=log_prob)

    @torch.no_grad()
    def compute_target(self, batch: Transition, next_q: Tensor, next_log_prob: Tensor) -> Tensor:
        """Bootstrapped soft return, (B,), of the next actions' values (N, B)."""
        next_q = next_q.amin(dim=0) - self.temperature * next_log_prob
        return batch.reward + batch.discount * next_q
