"""Soft Actor-Critic for discrete actions: Christodoulou, 2019, https://arxiv.org/abs/1910.07207."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Loss, OptimFactory
from research.algs.maximum_entropy import MaximumEntropyWithTargets
from research.batches import Transition, Tree
from research.networks.categorical import CategoricalActorCritic
from research.ranges import Fraction, PositiveFloat, PositiveFraction, PositiveInt


class SACDiscrete(MaximumEntropyWithTargets):
    """Categorical actor, critics of all K actions, expectations in place of samples (Algorithm 1).

    Deviations:
        The critics' squared errors are not halved, as in SAC here; for Adam the scale of a loss
        makes no difference, except for its epsilon.
        The temperature is learned as its logarithm, which keeps it positive.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: ``actor`` maps features (B, R) to distributions of K actions, ``critics`` to
            (N, B, K).
        optim: builds an optimizer from parameters; critics, actor and temperature have one each.
        tau: Polyak step per target update, in (0, 1]; 1 copies the critics.
        temperature: at the start, above 0.
        target_entropy_share: entropy that the temperature aims at, as a share of log(K), that of
            uniformly random actions; in [0, 1]. The paper has 0.98, for Atari; of two actions, that
            leaves so little to choose that the temperature grows without end.
        actor_every: critic updates per update of actor and temperature, at least 1.
        target_every: critic updates per target update, at least 1.

    """

    def __init__(
        self,
        network: CategoricalActorCritic,
        *,
        optim: OptimFactory,
        tau: PositiveFraction,
        temperature: PositiveFloat,
        target_entropy_share: Fraction,
        actor_every: PositiveInt,
        target_every: PositiveInt,
    ) -> None:
        super().__init__(
            network,
            optim=optim,
            temperature=temperature,
            target_entropy=target_entropy_share * math.log(network.action_dim),
            actor_every=actor_every,
            tau=tau,
            target_every=target_every,
        )

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        distribution = self.network.actor(self.network.encoder(obs))
        return distribution.sample() if explore else distribution.center()

    def draw(self, batch: Transition, step: Tensor) -> None:
        """Nothing: the losses are expectations."""

    def critic_loss(self, batch: Transition, noise: None) -> Loss:
        """Squared distance of every critic's value of the taken action to the target (eq. 4)."""
        target_q = self.compute_target(batch)
        features = self.network.encoder(batch.obs)
        q = self.network.critics(features)
        taken = batch.action.long().expand(len(q), -1)[..., None]
        q = q.gather(-1, taken).squeeze(-1)
        loss = F.mse_loss(q, target_q.expand_as(q), reduction="sum") / len(target_q)
        return Loss(loss, {"q": q.mean(), "target_q": target_q.mean()}, result=features)

    def actor_loss(self, batch: Transition, noise: None, features: Tensor) -> Loss:
        """Minus the expected value of the lowest critic and the entropy (equation 12)."""
        log_prob = self.network.actor(features).logits.log_softmax(dim=-1)
        with torch.no_grad():
            q = self.network.critics(features).amin(dim=0)
        prob, temperature = log_prob.exp(), self.temperature.detach()
        loss = (prob * (temperature * log_prob - q)).sum(dim=-1).mean()
        mean_log_prob = (prob * log_prob).sum(dim=-1)
        metrics = {"entropy": -mean_log_prob.mean(), "temperature": temperature}
        return Loss(loss, metrics, result=mean_log_prob)

    @torch.no_grad()
    def compute_target(self, batch: Transition) -> Tensor:
        """Bootstrapped soft return, (B,), of the next observation's value (equation 10)."""
        features = self.network.encoder(batch.next_obs)
        log_prob = self.network.actor(features).logits.log_softmax(dim=-1)
        next_q = self.target_critics(self.target_encoder(batch.next_obs)).amin(dim=0)
        value = (log_prob.exp() * (next_q - self.temperature * log_prob)).sum(dim=-1)
        return batch.reward + batch.discount * value
