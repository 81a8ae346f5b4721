"""Deep Q-learning: Mnih et al., 2015, https://www.nature.com/articles/nature14236."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective, OptimFactory, PolyakCopy
from research.algs.targets import frozen_copy
from research.batches import Transition
from research.networks.predictor import Predictor
from research.ranges import Fraction, PositiveFraction, PositiveInt


class DQN(Algorithm):
    """Values of K actions on a target network, and the best of them with epsilon-greedy noise.

    The target is that of double Q-learning (van Hasselt et al., 2016,
    https://arxiv.org/abs/1509.06461) if ``double`` is set. Rewards may be summed over n steps
    (``dataset.n_step``).

    Deviations:
        The error beyond 1 is bounded by the Huber loss, whose gradient is the paper's clipped one.
        The published optimizer is RMSprop; the config has Adam, and bounds the gradient's norm.
        An episode cut by a time limit bootstraps from its real final observation.

    Args:
        network: maps observations (B, ...) to values (B, K).
        optim: builds an optimizer from parameters.
        double: whether the network chooses the next action that the target network values.
        tau: share of the way to the network that the target goes at a time, in (0, 1]; 1 copies it.
        target_every: updates per move of the target, at least 1.
        explore_start: probability of a uniformly random action at step 0, in [0, 1].
        explore_end: the same from ``explore_steps`` on.
        explore_steps: environment steps over which it changes linearly, at least 1.

    Raises:
        ValueError: for a network whose actions are not discrete.

    """

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
    ) -> None:
        super().__init__()
        if not isinstance(network.action_space, Discrete):
            raise ValueError(
                f"DQN chooses among discrete actions, got {network.action_space}; try alg=td3 or "
                "alg=sac, or an env with discrete actions, such as env=cartpole_gym"
            )
        self.network = network
        self.target = frozen_copy(network)
        self.optim = optim
        self.is_double = double  # nn.Module has a method named double
        self.tau = tau
        self.target_every = target_every
        self.explore_start = explore_start
        self.explore_end = explore_end
        self.explore_steps = explore_steps

    def objectives(self) -> Sequence[Objective]:
        return [Objective(name="q", loss=self.loss, trains=[self.network], optim=self.optim)]

    def copies(self) -> Sequence[PolyakCopy]:
        return [PolyakCopy(self.target, self.network, self.tau, every=self.target_every)]

    def explore_share(self, step: Tensor) -> Tensor:
        """Probability of a random action after ``step`` environment steps."""
        share = (step / self.explore_steps).clamp(max=1.0)
        return (1 - share) * self.explore_start + share * self.explore_end

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        best = self.network(obs).argmax(dim=1)
        if not explore:
            return best
        is_random = torch.rand(best.shape, device=best.device) < self.explore_share(step)
        return torch.where(is_random, torch.randint_like(best, self.network.output_dim), best)

    def loss(self, batch: Transition, noise: None) -> Loss:
        """Huber loss of the value of the action that was taken, with the target."""
        target_q = self.compute_target(batch)
        q = self.network(batch.obs).gather(1, batch.action[:, None].long()).squeeze(1)
        return Loss(F.smooth_l1_loss(q, target_q), {"q": q.mean(), "target_q": target_q.mean()})

    @torch.no_grad()
    def compute_target(self, batch: Transition) -> Tensor:
        """Bootstrapped return, (B,), of the best next action."""
        next_q = self.target(batch.next_obs)
        chooser = self.network(batch.next_obs) if self.is_double else next_q
        best = chooser.argmax(dim=1, keepdim=True)
        return batch.reward + batch.discount * next_q.gather(1, best).squeeze(1)
