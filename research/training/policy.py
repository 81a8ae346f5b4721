"""From an environment's observations to its actions."""

from typing import Any

import numpy as np
import torch

from research.algs.base import Algorithm
from research.processors.base import Processor


class Policy:
    """Acts with an algorithm and its processor: NumPy in, NumPy out, computed on their device.

    Args:
        alg: gives actions for processed observations.
        processor: processes observations and undoes the processing of actions.

    """

    def __init__(self, alg: Algorithm, processor: Processor) -> None:
        self.alg = alg
        self.processor = processor
        self.device = next(alg.parameters()).device

    @torch.no_grad()
    def __call__(self, obs: Any, *, step: int, explore: bool) -> np.ndarray:
        """Actions (E, A) for the observations (E, O), or a dict of such, of E environments."""
        if isinstance(obs, dict):
            tensors = {key: torch.as_tensor(part, device=self.device) for key, part in obs.items()}
        else:
            tensors = torch.as_tensor(obs, device=self.device)
        action = self.alg.act(self.processor.process_obs(tensors), step, explore)
        return self.processor.unprocess_action(action).cpu().numpy()
