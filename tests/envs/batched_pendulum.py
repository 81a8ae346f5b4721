"""Pendulums that are stepped as one tensor."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

LENGTH = 200


class BatchedPendulum(VectorEnv):
    """E copies of gymnasium's Pendulum-v1, written in torch; all episodes begin and end at once."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, max_episode_steps: int | None = None) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(-8, 8, (3,), np.float32)
        self.single_action_space = Box(-2, 2, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator = torch.Generator()
        self.steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self.generator.manual_seed(seed if isinstance(seed, int) else seed[0])
        draws = 2 * torch.rand(2, self.num_envs, generator=self.generator) - 1
        self.angle, self.speed = torch.pi * draws[0], draws[1]
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return torch.stack([self.angle.cos(), self.angle.sin(), self.speed], dim=1).numpy()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        never, zeros = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs)
        if self.steps == LENGTH:
            return self.reset()[0], zeros, never, never, {}
        torque = torch.from_numpy(actions)[:, 0].clamp(-2, 2)
        angle = (self.angle + torch.pi) % (2 * torch.pi) - torch.pi
        cost = angle.square() + 0.1 * self.speed.square() + 0.001 * torque.square()
        gravity = 15 * self.angle.sin()
        self.speed = (self.speed + (gravity + 3 * torque) * 0.05).clamp(-8, 8)
        self.angle = self.angle + 0.05 * self.speed
        self.steps += 1
        over = np.full(self.num_envs, self.steps == LENGTH)
        return self.observe(), -cost.numpy(), never, over, {}


gymnasium.register("BatchedPendulum-v0", vector_entry_point=f"{__name__}:BatchedPendulum")
