"""What algorithms of maximum entropy share: Haarnoja et al., https://arxiv.org/abs/1812.05905."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from research.algs.base import Algorithm, Loss, Objective, OptimFactory
from research.batches import Transition
from research.networks.actor_critic import StochasticActorCritic


class Noise(NamedTuple):
    """Standard noise (B, A) of an update.

    Attributes:
        target: of the next actions, in the target.
        actor: of the actions that the actor is trained on.

    """

    target: Tensor
    actor: Tensor


class MaximumEntropy(Algorithm):
    """Critics, a stochastic actor, and a temperature that holds the actor's entropy.

    Subclasses define ``critic_loss`` and ``actor_loss``. Actions are squashed Gaussian, in [-1, 1],
    unless a subclass has others. The temperature is learned as its logarithm, which keeps it
    positive.

    Args:
        network: what is trained.
        optim: builds an optimizer from parameters; critics, actor and temperature have one each.
        temperature: at the start, above 0.
        target_entropy: entropy that the temperature aims at, in nats; None for minus A.
        actor_every: critic updates per update of actor and temperature, at least 1.

    """

    def __init__(
        self,
        network: StochasticActorCritic,
        *,
        optim: OptimFactory,
        temperature: float,
        target_entropy: float | None,
        actor_every: int,
    ) -> None:
        super().__init__()
        self.network = network
        device = next(network.parameters()).device
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature), device=device))
        self.optim = optim
        self.target_entropy = -network.action_dim if target_entropy is None else target_entropy
        self.actor_every = actor_every

    def objectives(self) -> Sequence[Objective]:
        actor, critics, optim = self.network.actor, self.network.critics, self.optim
        delayed = {"optim": optim, "every": self.actor_every}
        return [
            Objective(name="critic", loss=self.critic_loss, trains=[critics], optim=optim),
            Objective(name="actor", loss=self.actor_loss, trains=[actor], **delayed),
            Objective(
                name="temperature",
                loss=self.temperature_loss,
                trains=[self.log_temperature],
                reuses="actor",
                **delayed,
            ),
        ]

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        distribution = self.network.actor(obs)
        if not explore:
            return distribution.center()
        return distribution.sample(torch.randn_like(distribution.mean))[0]

    def draw(self, batch: Transition, step: Tensor) -> Any:
        return Noise(torch.randn_like(batch.action), torch.randn_like(batch.action))

    @abstractmethod
    def critic_loss(self, batch: Transition, noise: Any) -> Loss:
        """Distance of every critic to the soft target."""

    @abstractmethod
    def actor_loss(self, batch: Transition, noise: Any) -> Loss:
        """Minus a value and the weighted entropy; the result is the log-probabilities (B,)."""

    def temperature_loss(self, batch: Transition, noise: Any, log_prob: Tensor) -> Loss:
        """The loss that raises the temperature while the entropy is below its target (eq. 18)."""
        return Loss(self.temperature * (-log_prob.mean() - self.target_entropy))

    @property
    def temperature(self) -> Tensor:
        """The weight of the entropy, alpha."""
        return self.log_temperature.exp()
