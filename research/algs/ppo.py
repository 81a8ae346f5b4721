"""Proximal policy optimisation: Schulman et al., 2017, https://arxiv.org/abs/1707.06347."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor

from research.algs.base import Acted, Algorithm, Loss, Objective, OptimFactory, Stop
from research.batches import Rollout, Tree, accumulate, map_tensors
from research.networks.actor_value import ActorValue
from research.parallel.sums import is_parallel, sum_of_ranks
from research.ranges import Fraction, NonNegativeFloat, PositiveFloat

UNCLIPPED = "unclipped"


class Judged(NamedTuple):
    """Steps of a rollout with what the policy that took them makes of them, B of them.

    Attributes:
        obs: (B, O), or a dict of such.
        action: (B, A) as the policy drew them, or (B,) of discrete ones.
        log_prob: (B,), of ``action``.
        value: (B,), of ``obs``.
        advantage: (B,), by generalised advantage estimation.
        target: (B,), of the value: its sum with the advantage.

    """

    obs: Any
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor


class PPO(Algorithm):
    """Actor and value from whole rollouts, by the clipped objective (equation 7).

    Advantages are those of Schulman et al., 2016, https://arxiv.org/abs/1506.02438. Continuous
    actions are Gaussian; the environment gets them clipped to [-1, 1].

    Deviations:
        The details are those of Stable-Baselines3: advantages are normalised in each minibatch, the
        value's squared error is not halved, an update stops a rollout's epochs at 1.5 times
        ``target_kl``.
        An episode cut by a time limit bootstraps from its real final observation.
        The log-probabilities of a rollout are computed when it is complete, by the policy that
        collected it, on observations as they are processed then: a processor that has learned from
        this rollout may process them otherwise than when they were acted on.

    Args:
        network: maps observations (B, ...) to distributions of actions, and values (B,).
        optim: builds an optimizer from parameters.
        gae_lambda: weight of longer returns in the advantages, in [0, 1]; 1 is Monte Carlo.
        clip: how far a probability ratio may move from 1 before its gradient ends, above 0.
        clip_value: how far a value may move from that of the rollout, above 0; None for no bound.
        normalise_advantage: whether advantages are shifted and scaled in each minibatch.
        value_weight: of the value's squared error, at least 0.
        entropy_weight: of the policy's entropy, at least 0.
        target_kl: divergence from the rollout's policy beyond 1.5 times which its updates end;
            None for no end.

    """

    def __init__(
        self,
        network: ActorValue,
        *,
        optim: OptimFactory,
        gae_lambda: Fraction,
        clip: PositiveFloat,
        clip_value: PositiveFloat | None,
        normalise_advantage: bool,
        value_weight: NonNegativeFloat,
        entropy_weight: NonNegativeFloat,
        target_kl: PositiveFloat | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optim = optim
        self.gae_lambda = gae_lambda
        self.clip = clip
        self.clip_value = clip_value
        self.normalise_advantage = normalise_advantage
        self.value_weight = value_weight
        self.entropy_weight = entropy_weight
        self.target_kl = target_kl
        if isinstance(network.action_space, Box):
            self.extras = {UNCLIPPED: network.action_space.shape}

    def objectives(self) -> Sequence[Objective]:
        stop = None if self.target_kl is None else Stop("kl", above=1.5 * self.target_kl)
        network, optim = self.network, self.optim
        return [Objective(name="policy", loss=self.loss, trains=[network], optim=optim, stop=stop)]

    def act_with_memory(
        self, obs: Tree, memory: Any, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        distribution = self.network.policy(obs)
        action = distribution.sample() if explore else distribution.center()
        if not self.extras:
            return Acted(action)
        return Acted(action.clamp(-1, 1), extras={UNCLIPPED: action})

    def prepare(self, rollout: Rollout, num_envs: int) -> Judged:
        """The rollout's steps with log-probabilities, values and advantages."""
        distribution, value = self.network(rollout.obs)
        action = rollout.extras.get(UNCLIPPED, rollout.action)
        # the value of a step's next observation is that of the next step, unless none continues it
        next_value = value.roll(-num_envs)
        is_last = rollout.over.clone()
        is_last[-num_envs:] = True
        next_obs = map_tensors(lambda tensor: tensor[is_last], rollout.next_obs)
        next_value[is_last] = self.network.values(next_obs)
        error = rollout.reward + rollout.discount * next_value - value
        decay = self.gae_lambda * rollout.discount * ~is_last
        errors, decays = (part.view(-1, num_envs).flip(0) for part in (error, decay))
        advantage = accumulate(errors, decays, torch.zeros_like(errors[0])).flip(0).flatten()
        log_prob = distribution.log_prob(action)
        return Judged(rollout.obs, action, log_prob, value, advantage, value + advantage)

    def augment(self, batch: Judged) -> Judged:
        """The minibatch, with normalised advantages."""
        if not self.normalise_advantage:
            return batch
        return batch._replace(advantage=normalise(batch.advantage))

    def loss(self, batch: Judged, noise: None) -> Loss:
        """Minus the clipped objective and the entropy, plus the value's error (equation 9)."""
        distribution, value = self.network(batch.obs)
        log_ratio = distribution.log_prob(batch.action) - batch.log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = torch.minimum(batch.advantage * ratio, batch.advantage * clipped).mean()
        if self.clip_value is not None:
            bound = self.clip_value
            value = batch.value + (value - batch.value).clamp(-bound, bound)
        value_loss = F.mse_loss(value, batch.target)
        entropy = distribution.entropy().mean()
        loss = self.value_weight * value_loss - gain
        if self.entropy_weight > 0:  # without one, its gradient would be computed for nothing
            loss = loss - self.entropy_weight * entropy
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean()
            clip_share = (ratio != clipped).to(ratio.dtype).mean()
        metrics = {
            "gain": gain,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": kl,
            "clip_share": clip_share,
        }
        return Loss(loss, metrics)


@torch.no_grad()
def normalise(values: Tensor) -> Tensor:
    """Values (B,) shifted and scaled by their mean and standard deviation, those of all ranks."""
    if not is_parallel():
        return values if len(values) < 2 else (values - values.mean()) / (values.std() + 1e-8)
    count, total = sum_of_ranks(torch.stack([values.new_tensor(len(values)), values.sum()]))
    centred = values - total / count
    variance = sum_of_ranks(centred.square().sum()) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + 1e-8)
