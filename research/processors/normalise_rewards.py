"""Rewards scaled so that discounted returns have a standard deviation of about one."""

from typing import Any

import gymnasium
import torch
from torch import Tensor

from research.batches import Rollout, accumulate
from research.errors import UserError
from research.processors.base import Processor
from research.processors.normalise import RunningMoments
from research.ranges import Fraction, PositiveFloat


class NormaliseRewards(Processor):
    """Divide the rewards of rollouts by the standard deviation of the discounted sum so far.

    The sum of an environment's rewards begins anew with every episode; its statistics are of all
    steps of all rollouts. This is the scaling of ``VecNormalize`` in Stable-Baselines3, except that
    the statistics are brought up to date once per rollout, before it is scaled.

    Args:
        observation_space: left as it is.
        action_space: left as it is.
        discount: gamma per step of the sums, in [0, 1].
        clip: bound on the result.
        epsilon: added to the variance.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        discount: Fraction,
        clip: PositiveFloat,
        epsilon: PositiveFloat,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.moments = RunningMoments(())
        self.sums = torch.zeros(0)
        self.discount = discount
        self.clip = clip
        self.epsilon = epsilon

    def forward(self, batch: Any) -> Any:
        """The rollout with scaled rewards; in training mode its rewards count before.

        Raises:
            UserError: the batch is no rollout, whose rewards alone have an order.

        """
        if not isinstance(batch, Rollout):
            raise UserError(
                "processor: only the rewards of rollouts can be normalised, as of alg=ppo; "
                "leave NormaliseRewards out"
            )
        if self.training:
            self.moments.update(self.sum_rewards(batch))
        scale = (self.moments.variance + self.epsilon).rsqrt().to(batch.reward.dtype)
        return batch._replace(reward=(batch.reward * scale).clamp(-self.clip, self.clip))

    @torch.no_grad()
    def sum_rewards(self, batch: Rollout) -> Tensor:
        """The discounted sums (B,) of each episode's rewards so far, also of earlier rollouts."""
        num_envs = int(batch.env.max()) + 1
        reward, over = batch.reward.view(-1, num_envs), batch.over.view(-1, num_envs)
        if len(self.sums) != num_envs:
            self.sums = torch.zeros_like(reward[0])
        decay = self.discount * torch.cat([torch.ones_like(over[:1]), ~over[:-1]])
        sums = accumulate(reward, decay, self.sums.to(reward))
        self.sums = sums[-1] * ~over[-1]
        return sums.flatten()

    def get_extra_state(self) -> Tensor:
        """The sums (E,) of the open episodes, which a module's buffer could not hold before."""
        return self.sums

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the sums."""
        self.sums = state
