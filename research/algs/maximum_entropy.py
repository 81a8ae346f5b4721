"""What algorithms of maximum entropy share: Haarnoja et al., https://arxiv.org/abs/1812.05905."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from research.algs.base import Algorithm, Loss, Objective, OptimFactory, PolyakCopy
from research.algs.targets import frozen_copy
from research.batches import Transition, Tree
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
        network: what is trained; its encoder by the critics' loss and not by the actor's, as in
            Yarats et al., 2021, https://arxiv.org/abs/1910.01741.
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
        critics = [self.network.encoder, self.network.critics]
        delayed = {"optim": self.optim, "every": self.actor_every}
        return [
            Objective(name="critic", loss=self.critic_loss, trains=critics, optim=self.optim),
            Objective(
                name="actor",
                loss=self.actor_loss,
                trains=[self.network.actor],
                reuses="critic",
                **delayed,
            ),
            Objective(
                name="temperature",
                loss=self.temperature_loss,
                trains=[self.log_temperature],
                reuses="actor",
                **delayed,
            ),
        ]

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        distribution = self.network.actor(self.network.encoder(obs))
        if not explore:
            return distribution.center()
        return distribution.action(torch.randn_like(distribution.mean))

    def draw(self, batch: Transition, step: Tensor) -> Any:
        return Noise(torch.randn_like(batch.action), torch.randn_like(batch.action))

    @abstractmethod
    def critic_loss(self, batch: Transition, noise: Any) -> Loss:
        """Distance of every critic to the soft target; the result is the features (B, R)."""

    @abstractmethod
    def actor_loss(self, batch: Transition, noise: Any, features: Tensor) -> Loss:
        """Minus a value and the weighted entropy; the result is the log-probabilities (B,)."""

    def temperature_loss(self, batch: Transition, noise: Any, log_prob: Tensor) -> Loss:
        """The loss that raises the temperature while the entropy is below its target (eq. 18)."""
        return Loss(self.temperature * (-log_prob.mean() - self.target_entropy))

    @property
    def temperature(self) -> Tensor:
        """The weight of the entropy, alpha."""
        return self.log_temperature.exp()


class MaximumEntropyWithTargets(MaximumEntropy):
    """``MaximumEntropy`` whose critics, and their encoder, have copies that follow slowly.

    Args:
        network: as for ``MaximumEntropy``.
        tau: Polyak step per target update, in (0, 1]; 1 copies the critics.
        target_every: critic updates per target update, at least 1.
        settings: the other arguments of ``MaximumEntropy``.

    """

    def __init__(
        self, network: StochasticActorCritic, *, tau: float, target_every: int, **settings: Any
    ) -> None:
        super().__init__(network, **settings)
        self.target_encoder = frozen_copy(network.encoder)
        self.target_critics = frozen_copy(network.critics)
        self.tau = tau
        self.target_every = target_every

    def copies(self) -> Sequence[PolyakCopy]:
        tau, every = self.tau, self.target_every
        return [
            PolyakCopy(self.target_encoder, self.network.encoder, tau, every),
            PolyakCopy(self.target_critics, self.network.critics, tau, every),
        ]
