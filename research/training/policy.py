"""From an environment's observations to its actions."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from research.algs.base import Acted, Algorithm
from research.batches import list_tensors, map_tensors
from research.processors.base import Processor
from research.training.capture import Captured, Graphs
from research.training.precision import DTYPES, Precision, autocast, make_step


class Response(NamedTuple):
    """What a policy does for E environments.

    Attributes:
        action: (E, A), as the environments take it.
        memory: of the algorithm, on its device.
        extras: values (E, ...) to be stored with the step, by name, float32.

    """

    action: np.ndarray
    memory: Any
    extras: Mapping[str, np.ndarray]


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
        self.captured: Captured | None = None

    def capture(self, graphs: Graphs, level: int = logging.WARNING) -> None:
        """Let graphs choose the actions from now on, from the processed observations.

        Args:
            graphs: of the device.
            level: of logging, at which it is said if they cannot.

        """
        self.captured = Captured(graphs, "actions", level)

    def __call__(self, obs: Any, *, step: int, explore: bool) -> np.ndarray:
        """Actions (E, A) for the first observations (E, O) of episodes, or a dict of such."""
        num_envs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        memory = self.alg.initial_memory(num_envs)
        return self.respond(obs, memory, {}, step=step, explore=explore).action

    @torch.no_grad()
    def respond(
        self,
        obs: Any,
        memory: Any,
        info: Mapping[str, np.ndarray],
        *,
        step: int,
        explore: bool,
    ) -> Response:
        """What to do for the observations of E environments.

        Args:
            obs: (E, O), or a dict of such.
            memory: of the episodes, as ``begin_episodes`` or the last response gave it.
            info: infos (E, ...) that came with ``obs``, by name.
            step: steps of the run so far.
            explore: whether to add the noise of training.

        """
        self.step.fill_(step)
        seen = self.processor.process_obs(self.to_device(obs)), memory, self.to_device(info)
        if self.captured is None:
            acted = self.act(*seen, explore=explore)
        else:
            key = explore, self.alg.training
            acted = self.captured(key, lambda seen: self.act(*seen, explore=explore), seen)
        action, memory, extras = acted
        if action.dtype in DTYPES.values():
            action = action.float()
        stored = {name: value.float().cpu().numpy() for name, value in extras.items()}
        return Response(self.processor.unprocess_action(action).cpu().numpy(), memory, stored)

    def act(self, obs: Any, memory: Any, info: Any, *, explore: bool) -> Acted:
        """The algorithm's actions for processed observations."""
        with self.autocast():
            return self.alg.act_with_memory(obs, memory, info, self.step, explore)

    def observe(self, obs: Any) -> None:
        """Let the processor take note of the observations (E, O) of a step of training."""
        self.processor.observe(self.to_device(obs))

    def begin_episodes(self, memory: Any, mask: np.ndarray) -> Any:
        """The memory of E environments where those of ``mask`` (E,) begin an episode.

        Args:
            memory: as it was; None before the first episodes.
            mask: (E,) bool.

        """
        initial = self.alg.initial_memory(len(mask))
        if memory is None or initial is None:
            return initial
        begun, fresh = torch.as_tensor(mask, device=self.device), iter(list_tensors(initial))

        def begin(old: Tensor) -> Tensor:
            return torch.where(begun.view(-1, *[1] * (old.ndim - 1)), next(fresh), old)

        return map_tensors(begin, memory)

    def load_memory(self, tensors: Sequence[Tensor], num_envs: int) -> Any:
        """The memory of E environments whose tensors, in order, were saved."""
        saved = iter(tensors)
        return map_tensors(lambda _: next(saved).to(self.device), self.alg.initial_memory(num_envs))

    def to_device(self, value: Any) -> Any:
        """Arrays, or a dict of them, as tensors on the device."""
        if type(value) is np.ndarray and self.device.type == "cpu":
            return torch.from_numpy(value)  # in a third of the time of as_tensor
        if isinstance(value, Mapping):
            return {key: torch.as_tensor(part, device=self.device) for key, part in value.items()}
        return torch.as_tensor(value, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which the networks compute in ``precision``."""
        return autocast(self.device, self.precision)
