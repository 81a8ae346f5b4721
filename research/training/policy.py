"""From an environment's observations to its actions."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from research.algs.base import Algorithm
from research.processors.base import Processor
from research.training.precision import DTYPES, Precision, autocast, make_step


class Policy:
    """Acts with an algorithm and its processor: NumPy in, NumPy out, computed on their device.

    Args:
        alg: gives actions for processed observations.
        processor: processes observations and undoes the processing of actions.
        precision: of the networks' arithmetic.

    """

    def __init__(self, alg: Algorithm, processor: Processor, precision: Precision = "fp32") -> None:
        self.alg = alg
        self.processor = processor
        self.device = next(alg.parameters()).device
        self.precision: Precision = precision
        self.step = make_step(self.device)

    @torch.no_grad()
    def __call__(self, obs: Any, *, step: int, explore: bool) -> np.ndarray:
        """Actions (E, A) for the observations (E, O), or a dict of such, of E environments."""
        if isinstance(obs, dict):
            tensors = {key: torch.as_tensor(part, device=self.device) for key, part in obs.items()}
        else:
            tensors = torch.as_tensor(obs, device=self.device)
        self.step.fill_(step)
        with self.autocast():
            action = self.alg.act(self.processor.process_obs(tensors), self.step, explore)
        if action.dtype in DTYPES.values():
            action = action.float()
        return self.processor.unprocess_action(action).cpu().numpy()

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which the networks compute in ``precision``."""
        return autocast(self.device, self.precision)
