"""Behaviour cloning: Pomerleau, 1991, https://doi.org/10.1162/neco.1991.3.1.88."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete
from torch import Tensor

from research.algs.base import Algorithm, Loss, Metrics, Objective, OptimFactory
from research.algs.supervised import check_shape
from research.batches import Example, Tree
from research.networks.predictor import Predictor


class BehaviourCloning(Algorithm):
    """Learns to act as in examples of observations and actions, and may be evaluated by acting.

    Discrete actions are learned by cross entropy, others in [-1, 1] by squared error.

    Args:
        network: maps observations (B, ...) to scores of the actions (B, K), or to actions (B, A).
        optim: builds an optimizer from groups of parameters.

    """

    def __init__(self, network: Predictor, *, optim: OptimFactory) -> None:
        super().__init__()
        self.network = network
        self.optim = optim
        self.is_discrete = isinstance(network.action_space, Discrete)

    def objectives(self) -> Sequence[Objective]:
        return [Objective(name="policy", loss=self.loss, trains=[self.network], optim=self.optim)]

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        """The likeliest action (B,), or actions (B, A) within their bounds."""
        output = self.network(obs)
        return output.argmax(dim=1) if self.is_discrete else output.clamp(-1, 1)

    def loss(self, batch: Example, noise: None) -> Loss:
        """The error of the actions, over the batch."""
        output, action = self.network(batch.obs), batch.target
        if self.is_discrete:
            right = (output.argmax(dim=1) == action).float()
            return Loss(F.cross_entropy(output, action), {"accuracy": right.mean()})
        check_shape(output, tuple(action.shape))
        absolute = (output.clamp(-1, 1) - action).abs()
        return Loss(F.mse_loss(output, action), {"absolute_error": absolute.mean()})

    @torch.no_grad()
    def validate(self, batch: Example) -> Metrics:
        loss = self.loss(batch, None)
        return {"loss": loss.value, **loss.metrics}
