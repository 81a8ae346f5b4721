"""Deep Q-learning: Mnih et al., 2015, https://www.nature.com/articles/nature14236."""

import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Loss
from research.algs.q_learning import Noise, QLearning, weighted_mean
from research.batches import Transition


class DQN(QLearning):
    """Values of K actions on a target network, and the best of them with epsilon-greedy noise.

    The target is that of double Q-learning (van Hasselt et al., 2016,
    https://arxiv.org/abs/1509.06461) if ``double`` is set. Rewards may be summed over n steps
    (``dataset.n_step``). Priorities (``dataset=prioritised``) are the sizes of the errors.

    Deviations:
        The error beyond 1 is bounded by the Huber loss, whose gradient is the paper's clipped one.
        The published optimizer is RMSprop; the config has Adam, and bounds the gradient's norm.
        An episode cut by a time limit bootstraps from its real final observation.

    For its arguments see ``QLearning``.
    """

    def loss(self, batch: Transition, noise: Noise | None) -> Loss:
        """Huber loss of the value of the action that was taken, with the target."""
        target_q = self.compute_target(batch, noise)
        q = self.taken_output(batch, noise)
        loss = weighted_mean(F.smooth_l1_loss(q, target_q, reduction="none"), batch)
        metrics = {"q": q.mean(), "target_q": target_q.mean()}
        return Loss(loss, metrics, priority=(q.detach() - target_q).abs())

    @torch.no_grad()
    def compute_target(self, batch: Transition, noise: Noise | None = None) -> Tensor:
        """Bootstrapped return, (B,), of the best next action."""
        return batch.reward + batch.discount * self.next_output(batch, noise)
