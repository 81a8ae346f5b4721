"""Distributions of actions, as a policy gives them for a batch of observations."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Gaussian(NamedTuple):
    """Normal actions with independent components.

    Attributes:
        mean: (B, A).
        log_std: (A,) or (B, A), logarithm of the standard deviation.

    """

    mean: Tensor
    log_std: Tensor

    def center(self) -> Tensor:
        """The most likely actions, (B, A)."""
        return self.mean

    def sample(self) -> Tensor:
        """Actions (B, A), drawn from torch's global generator."""
        return self.mean + self.log_std.exp() * torch.randn_like(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-densities (B,) of actions (B, A)."""
        z = (action - self.mean) * (-self.log_std).exp()
        constant = 0.5 * math.log(2 * math.pi) * self.mean.shape[-1]
        return -(0.5 * z.square() + self.log_std).sum(dim=-1) - constant

    def entropy(self) -> Tensor:
        """Differential entropies (B,), in nats."""
        constant = 0.5 * (1 + math.log(2 * math.pi))
        return (self.log_std + constant).expand_as(self.mean).sum(dim=-1)


class Categorical(NamedTuple):
    """One of K actions.

    Attributes:
        logits: (B, K), logarithms of the probabilities up to a constant.

    """

    logits: Tensor

    def center(self) -> Tensor:
        """The most likely actions, (B,) int64."""
        return self.logits.argmax(dim=-1)

    def sample(self) -> Tensor:
        """Actions (B,) int64, drawn from torch's global generator."""
        probs = self.logits.softmax(dim=-1)
        # torch.multinomial's own draw, without its check, which waits for a GPU
        return (probs / torch.empty_like(probs).exponential_()).argmax(dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probabilities (B,) of actions (B,)."""
        return -F.cross_entropy(self.logits, action.long(), reduction="none")

    def entropy(self) -> Tensor:
        """Entropies (B,), in nats."""
        log_probs = self.logits.log_softmax(dim=-1)
        return -(log_probs.exp() * log_probs).sum(dim=-1)
