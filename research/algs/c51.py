"""Categorical DQN: Bellemare et al., 2017, https://arxiv.org/abs/1707.06887."""

import torch
from torch import Tensor

from research.algs.base import Loss, OptimFactory
from research.algs.q_learning import Noise, QLearning, weighted_mean
from research.batches import Transition
from research.networks.predictor import Predictor
from research.ranges import FiniteFloat, Fraction, PositiveFraction, PositiveInt


class C51(QLearning):
    """The distribution of every action's return, over M atoms from ``v_min`` to ``v_max``.

    The network's atoms are logits (Algorithm 1). Priorities (``dataset=prioritised``) are the
    divergences of the predictions from their targets, and with ``double`` the network chooses the
    next action, both as in Hessel et al., 2018, https://arxiv.org/abs/1710.02298.

    Deviations:
        The config has Adam with the numbers of ``alg=dqn``; experiment=rainbow has published ones.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: maps observations (B, ...) to logits (B, K, M), M at least 2.
        optim, double, tau, target_every, explore_start, explore_end, explore_steps: as of
            ``QLearning``.
        v_min: the lowest return; what lies below counts as this.
        v_max: the highest, above ``v_min``.

    Raises:
        ValueError: ``v_max`` is not above ``v_min``, or the network does not suit.

    """

    min_atoms = 2
    support: Tensor

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
        v_min: FiniteFloat,
        v_max: FiniteFloat,
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
        if not v_min < v_max:
            raise ValueError(f"alg.v_max must be above alg.v_min={v_min}, got {v_max}")
        num_atoms, device = self.num_atoms, next(network.parameters()).device
        self.v_min, self.spacing = v_min, (v_max - v_min) / (num_atoms - 1)
        support = torch.linspace(v_min, v_max, num_atoms, device=device)
        self.register_buffer("support", support, persistent=False)

    def values(self, output: Tensor) -> Tensor:
        """The means (B, K), or (B,), of distributions with these logits."""
        return self.mean(output.softmax(dim=-1))

    def mean(self, probabilities: Tensor) -> Tensor:
        """The means (...) of distributions (..., M)."""
        return (probabilities * self.support).sum(dim=-1)

    def loss(self, batch: Transition, noise: Noise | None) -> Loss:
        """Cross entropy of the taken action's distribution with its target."""
        target = self.compute_target(batch, noise)
        logits = self.taken_output(batch, noise)
        errors = -(target * logits.log_softmax(dim=1)).sum(dim=1)
        with torch.no_grad():
            metrics = {"q": self.values(logits).mean(), "target_q": self.mean(target).mean()}
            divergence = (errors - torch.special.entr(target).sum(dim=1)).clamp(min=0)
        return Loss(weighted_mean(errors, batch), metrics, priority=divergence)

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Noise | None) -> Tensor:
        """Probabilities (B, M) of the bootstrapped return, on the atoms (equation 7)."""
        probabilities = self.next_output(batch, noise).softmax(dim=1)
        returns = batch.reward[:, None] + batch.discount[:, None] * self.support
        last = len(self.support) - 1
        places = ((returns - self.v_min) / self.spacing).clamp(0, last)
        atoms = torch.arange(last + 1, device=places.device)
        # Not scattered: on a GPU, the order in which an atom's shares are added would be random.
        shares = (1 - (places[:, None, :] - atoms[:, None]).abs()).clamp(min=0)
        return (shares * probabilities[:, None, :]).sum(dim=2)
