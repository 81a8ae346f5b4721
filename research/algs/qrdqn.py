"""Quantile regression DQN: Dabney et al., 2018, https://arxiv.org/abs/1710.10044."""

import torch
from torch import Tensor

from research.algs.base import Loss, OptimFactory
from research.algs.q_learning import Noise, QLearning, weighted_mean
from research.algs.quantiles import quantile_huber_loss
from research.batches import Transition
from research.networks.predictor import Predictor
from research.ranges import Fraction, PositiveFloat, PositiveFraction, PositiveInt


class QRDQN(QLearning):
    """M quantiles of every action's return (Algorithm 1).

    The atom i of the network is the quantile at (i + 1/2) / M. Priorities
    (``dataset=prioritised``), of which the paper has none, are the losses.

    Deviations:
        The config has the numbers of ``alg=dqn``.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: maps observations (B, ...) to quantiles (B, K, M).
        optim, double, tau, target_every, explore_start, explore_end, explore_steps: as of
            ``QLearning``.
        kappa: size of an error beyond which the Huber loss is linear, above 0.

    """

    min_atoms = 1

    def __init__(
        self,
        network: Predictor,
        *,
        optim: OptimFactory,
        double: bool,
        tau: PositiveFraction,
        target_every: PositiveInt,
        explore_start: Fraction,
        explore_end: Fraction,
        explore_steps: PositiveInt,
        kappa: PositiveFloat,
    ) -> None:
        super().__init__(
            network,
            optim=optim,
            double=double,
            tau=tau,
            target_every=target_every,
            explore_start=explore_start,
            explore_end=explore_end,
            explore_steps=explore_steps,
        )
        self.kappa = kappa

    def values(self, output: Tensor) -> Tensor:
        """The means (B, K), or (B,), of these quantiles."""
        return output.mean(dim=-1)

    def loss(self, batch: Transition, noise: Noise | None) -> Loss:
        """Quantile Huber loss of all quantiles with all of the target (equation 10)."""
        target = self.compute_target(batch, noise)
        quantiles = self.taken_output(batch, noise)
        # the paper's is a sum over the quantiles
        errors = self.num_atoms * quantile_huber_loss(quantiles, target, self.kappa)
        metrics = {"q": quantiles.mean(), "target_q": target.mean()}
        return Loss(weighted_mean(errors, batch), metrics, priority=errors)

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Noise | None) -> Tensor:
        """Quantiles (B, M) of the bootstrapped return."""
        return batch.reward[:, None] + batch.discount[:, None] * self.next_output(batch, noise)
