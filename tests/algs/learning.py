"""An algorithm's updates without a dataset and a trainer."""

from typing import Any

from gymnasium.spaces import Box

from research.algs.base import Algorithm
from research.processors.base import Identity
from research.training.learner import Learner

SETTINGS: dict[str, Any] = {
    "total_updates": 1000,
    "schedule": None,
    "max_grad_norm": None,
    "prefetch": None,
    "precision": "fp32",
    "accumulate": 1,
    "ema_decay": None,
    "execution": "eager",
}


def make_learner(alg: Algorithm, dataset: Any = None, **changes: Any) -> Learner:
    """A learner; without a dataset, for batches that are handed to its ``learn``."""
    processor, device = Identity(Box(-1, 1), Box(-1, 1)), next(alg.parameters()).device
    return Learner(alg, processor, dataset, device, **(SETTINGS | changes))
